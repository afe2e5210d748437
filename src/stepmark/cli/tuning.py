"""The command that has a policy learn from what its own attempts earn.

stepmark reinforce --help
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from stepmark.cli import parameters as p
from stepmark.cli.app import app
from stepmark.cli.terminal import Show, end
from stepmark.errors import ConfigError

if TYPE_CHECKING:
    from stepmark.rl.rewards import Credit
    from stepmark.rl.settings import Reinforced

METHODS = ("ppo", "grpo", "rft")


@app.command()
def reinforce(
    policy: Annotated[str, typer.Option(help="Checkpoint to go on from: a directory or a hub id.")],
    out: p.Out,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERIFIER[=WEIGHT]",
            help="Directory of a trained verifier, the path of your own kind, or gold; several are added up.",
        ),
    ] = None,
    credit: Annotated[
        str | None,
        typer.Option(
            help="What scores become: min (of one of steps by default; sum for grpo), sum, difference, outcome."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="ppo, grpo, or rft: sample, keep what is right, learn that.")] = "ppo",
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    problems: p.Limit = None,
    held_out: Annotated[str, typer.Option(help="The split that is looked at while it learns.")] = "dev",
    held_out_problems: Annotated[int, typer.Option(min=1, help="How many of its problems.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Attempts at each problem.")] = 8,
    grader: p.GraderName = None,
    prompt: p.Prompt = "{question}\n",
    max_tokens: p.MaxTokens = 256,
    temperature: p.Temperature = 1.0,
    stop: p.Stop = None,
    seed: p.Seed = 0,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="updates, kl, lr, guard, ...; of rft: of training."),
    ] = None,
    json: p.AsJson = False,
) -> None:
    """Have a policy learn from verifiers or from gold answers, while its true accuracy is watched.

    \b
    Examples:
      stepmark reinforce --policy runs/demo/generator --task arithmetic --reward runs/demo/verifiers/prm \\
        --max-tokens 120 --set updates=20 --out policy/
      stepmark reinforce --policy generator/ --reward prm/ --reward gold=0.5 --credit difference --out policy/
      stepmark reinforce --policy generator/ --method rft --set epochs=2 --out policy/
    """
    from stepmark.rl.settings import ReinforceSettings
    from stepmark.run.recipe import settings
    from stepmark.stages.train import TrainSettings
    from stepmark.text.prompts import Template
    from stepmark.types import SamplingParams

    weights = _checked(method, reward or [], credit)
    own = [f"seed={seed}", *(set or [])]
    if method == "rft":
        training = settings(TrainSettings, own, "--set")
    else:
        drawn = [f"method={method}", f"samples={samples}", f"max_tokens={max_tokens}", f"temperature={temperature}"]
        how = settings(ReinforceSettings, [*drawn, f"stop={list(stop or ())}", *own], "--set")
    found, bad, taken = p.load(task, task_option, split, problems)
    judge = p.grader(grader, taken)
    # Loads torch: after everything that can be wrong with what was asked for.
    if method == "rft":
        from stepmark.rl.rft import rft

        with Show(json) as show:
            params = SamplingParams(max_tokens, temperature, stop=tuple(stop or ()), seed=seed)
            trained = rft(
                policy,
                found,
                judge,
                out,
                samples=samples,
                params=params,
                train=training,
                template=Template(prompt),
                steps=taken.steps,
                progress=show,
            )
        end(trained, json, bad)
        return
    from stepmark.plugins.loading import load_verifier
    from stepmark.rl.loop import reinforce as loop
    from stepmark.rl.rewards import reward_source

    watched, more, _ = p.load(task, task_option, held_out, held_out_problems)
    verifiers = {name: None if name == "gold" else load_verifier(name) for name in weights}
    with Show(json) as show:
        source = reward_source(verifiers, weights, cast("Credit | None", credit), judge, method)
        done = loop(
            policy,
            found,
            watched,
            source,
            judge,
            out,
            how,
            template=Template(prompt),
            steps=taken.steps,
            progress=show,
        )
    if json:
        end(done, json, [*bad, *more])
        return
    print(table(done))
    short = {k: v for k, v in asdict(done).items() if k not in ("looks", "rewards") and v != ""}
    end(short, json, [*bad, *more])


def table(done: Reinforced) -> str:
    """The looks at held-out problems, the one that was handed on marked."""
    lines = ["update  accuracy    reward        kl"]
    for look in done.looks:
        mark = "  <- handed on" if look.update == done.best else ""
        lines.append(f"{look.update:6}  {100 * look.accuracy:7.1f}%  {look.reward:8.3f}  {look.kl:8.4f}{mark}")
    return "\n".join(lines) + "\n"


def _checked(method: str, rewards: Sequence[str], credit: str | None) -> dict[str, float]:
    """What it earns by, with weights. Raises ConfigError with all that does not fit."""
    from stepmark.rl.rewards import CREDITS

    faults = []
    if method not in METHODS:
        faults.append(f"--method is {method!r}; it can be {', '.join(METHODS)}.")
    if credit is not None and credit not in CREDITS:
        faults.append(f"--credit is {credit!r}; it can be {', '.join(CREDITS)}.")
    if method == "rft" and (rewards or credit):
        faults.append("rft keeps what the grader finds correct; leave --reward and --credit out.")
    if method in ("ppo", "grpo") and not rewards:
        faults.append("--reward is missing: a trained verifier's directory, or gold.")
    weights = {}
    for text in rewards:
        name, equals, weight = text.rpartition("=")
        try:
            weights[name if equals else text] = float(weight) if equals else 1.0
        except ValueError:
            faults.append(f"--reward {text}: the weight {weight!r} is not a number.")
    faults += [f"--reward {name}: its weight must be above 0, got {w}." for name, w in weights.items() if not w > 0]
    if len(weights) < len(rewards) and not faults:
        faults.append("--reward names one verifier twice; give it the sum of the weights.")
    if credit is not None and list(weights) == ["gold"]:
        faults.append("gold answers say nothing of steps; leave --credit out.")
    if faults:
        raise ConfigError(faults)
    return weights

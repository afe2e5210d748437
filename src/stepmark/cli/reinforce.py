"""The command that trains a policy on the rewards of its own attempts.

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
    policy: Annotated[str, typer.Option(help="Checkpoint to start from: a directory or a hub id.")],
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
            help="How scores become rewards of tokens: min, sum, difference or outcome. By default min (grpo: sum) for "
            "scores of steps, else outcome."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="ppo, grpo, or rft: fine-tuning on the attempts that are correct.")
    ] = "ppo",
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    problems: p.Limit = None,
    held_out: Annotated[
        str, typer.Option(help="Split of the task that accuracy is watched on during training.")
    ] = "dev",
    held_out_problems: Annotated[int, typer.Option(min=1, help="Number of held-out problems.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Attempts at each problem.")] = 8,
    grader: p.GraderName = None,
    prompt: p.Prompt = "{question}\n",
    max_tokens: p.MaxTokens = 256,
    temperature: p.Temperature = 1.0,
    stop: p.Stop = None,
    seed: p.Seed = 0,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting: updates, kl, lr, guard, ...; for rft a training setting."),
    ] = None,
    json: p.AsJson = False,
) -> None:
    """Train a policy with rewards from verifiers or gold answers, while its true accuracy is watched.

    \b
    Examples:
      stepmark reinforce --policy runs/demo/generator --task arithmetic --reward runs/demo/verifiers/prm \\
        --max-tokens 120 --set updates=20 --out policy/
      stepmark reinforce --policy generator/ --reward prm/ --reward gold=0.5 --credit difference --out policy/
      stepmark reinforce --policy generator/ --method rft --set epochs=2 --out policy/
    """
    from stepmark.rl.settings import ReinforceSettings
    from stepmark.run.recipe import settings as parse_settings
    from stepmark.stages.train import TrainSettings
    from stepmark.text.prompts import Template
    from stepmark.types import SamplingParams

    weights = _checked(method, reward or [], credit)
    if method == "rft":
        training = parse_settings(TrainSettings, set or [], "--set", seed=seed)
    else:
        settings = parse_settings(
            ReinforceSettings,
            set or [],
            "--set",
            method=method,
            samples=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            stop=tuple(stop or ()),
            seed=seed,
        )
    train_problems, bad, plugin = p.load(task, task_option, split, problems)
    task_grader = p.grader(grader, plugin)
    # This loads torch, so it comes after all checks of the arguments.
    if method == "rft":
        from stepmark.rl.rft import rft

        with Show(json) as show:
            params = SamplingParams(max_tokens, temperature, stop=tuple(stop or ()), seed=seed)
            trained = rft(
                policy,
                train_problems,
                task_grader,
                out,
                samples=samples,
                params=params,
                train=training,
                template=Template(prompt),
                steps=plugin.steps,
                progress=show,
            )
        end(trained, json, bad)
        return
    from stepmark.plugins.loading import load_verifier
    from stepmark.rl.loop import reinforce as loop
    from stepmark.rl.rewards import reward_source

    watched, bad_held_out, _ = p.load(task, task_option, held_out, held_out_problems)
    verifiers = {name: None if name == "gold" else load_verifier(name) for name in weights}
    with Show(json) as show:
        source = reward_source(verifiers, weights, cast("Credit | None", credit), task_grader, method)
        done = loop(
            policy,
            train_problems,
            watched,
            source,
            task_grader,
            out,
            settings,
            template=Template(prompt),
            steps=plugin.steps,
            progress=show,
        )
    if json:
        end(done, json, [*bad, *bad_held_out])
        return
    print(table(done))
    summary = {k: v for k, v in asdict(done).items() if k not in ("looks", "rewards", "explored") and v != ""}
    end(summary, json, [*bad, *bad_held_out])


def table(done: Reinforced) -> str:
    """The looks at held-out problems. The look whose policy was handed on is marked."""
    lines = ["update  accuracy    reward        kl"]
    for look in done.looks:
        mark = "  <- handed on" if look.update == done.best else ""
        lines.append(f"{look.update:6}  {100 * look.accuracy:7.1f}%  {look.reward:8.3f}  {look.kl:8.4f}{mark}")
    return "\n".join(lines) + "\n"


def _checked(method: str, rewards: Sequence[str], credit: str | None) -> dict[str, float]:
    """The rewards, verifier -> weight. Raises ConfigError with all faults of these arguments."""
    from stepmark.rl.rewards import CREDITS

    faults = []
    if method not in METHODS:
        faults.append(f"--method is {method!r}; it can be {', '.join(METHODS)}.")
    if credit is not None and credit not in CREDITS:
        faults.append(f"--credit is {credit!r}; it can be {', '.join(CREDITS)}.")
    if method == "rft" and (rewards or credit):
        faults.append("rft keeps the attempts that the grader finds correct; leave --reward and --credit out.")
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
        faults.append("--reward names one verifier twice; give it once, with the sum of the weights.")
    if credit is not None and list(weights) == ["gold"]:
        faults.append("gold grades whole solutions, not steps; leave --credit out.")
    if faults:
        raise ConfigError(faults)
    return weights

"""The command line: parses, calls the stages, prints what came. It decides nothing.

    stepmark --help
    stepmark demo

Exit status: 0 all went well; 1 something failed; 2 a setting is wrong; 3 everything usable was used, but some rows
were set aside or some items failed (they are listed); 4 a budget is spent; 130 interrupted. What is done is kept in
every case, and the same command goes on. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from stepmark import parameters as p
from stepmark.errors import ConfigError, StepmarkError
from stepmark.terminal import Show, end, print_json, say_failed


class _Group(TyperGroup):
    """Turns what Stepmark raises on purpose into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StepmarkError as e:
            typer.echo("\n".join(f"stepmark: {line}" for line in str(e).splitlines()), err=True)
            raise typer.Exit(e.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("stepmark: interrupted. What is done is kept; the same command goes on.", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


app = typer.Typer(
    cls=_Group,
    name="stepmark",
    help=(
        "Turn a task with checkable answers and any language model into a verifier of step-by-step reasoning.\n\n"
        "\b\nSee it work:      stepmark demo\n"
        "Your own data:    stepmark run my_recipe.yaml\nThis machine:     stepmark doctor"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """The entry point."""
    # Loading a model draws a bar of its own for each worker process, over ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()
    raise SystemExit(0)


@app.command()
def init(
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    problems: p.Limit = 20000,
    shape: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="hidden, layers, heads, ...")] = None,
    prompt: p.Prompt = "{question}\n",
    seed: p.Seed = 0,
    json: p.AsJson = False,
) -> None:
    """Make a small new model: a tokenizer learned from a task, and random weights.

    \b
    Example:
      stepmark init --task arithmetic --shape hidden=64 --shape layers=2 --out base/
    """
    from stepmark import checkpoints
    from stepmark.prompts import Template
    from stepmark.recipe import settings

    size = settings(checkpoints.Shape, shape or [], "--shape")
    found, bad, _ = p.load(task, task_option, split, problems)
    context = Template(prompt)
    checkpoints.create(out, [context(x) + (x.demonstration or x.reference) for x in found], size, seed)
    end({"path": str(out), "problems": len(found)}, json, bad)


@app.command()
def sample(
    out: p.Out,
    model: p.Model = None,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "test",
    problems: p.Limit = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Solutions of each problem.")] = 16,
    backend: p.BackendName = "local",
    backend_option: p.BackendOptions = None,
    prompt: p.Prompt = "{question}\n",
    max_tokens: p.MaxTokens = 256,
    temperature: p.Temperature = 1.0,
    top_p: p.TopP = 1.0,
    stop: p.Stop = None,
    seed: p.Seed = 0,
    workers: p.Workers = 1,
    budget: p.BudgetLimits = None,
    json: p.AsJson = False,
) -> None:
    """Draw solutions of a task's problems. Asking for more later adds to what is there.

    \b
    Example:
      stepmark sample --task arithmetic --split test --model runs/demo/generator --n 16 --out solutions.jsonl
    """
    from stepmark.ledger import Ledger, parse_budget
    from stepmark.loading import load_executor
    from stepmark.prompts import Template
    from stepmark.sample import sample as stage
    from stepmark.store import Records
    from stepmark.types import SamplingParams, Solution

    limits = parse_budget(budget or [])
    found, bad, taken = p.load(task, task_option, split, problems)
    generator = p.backend(backend, backend_option, model)
    paid = limits is not None or getattr(generator, "remote", False)
    with Show(json) as show, Records(out, Solution) as records:
        done = stage(
            found,
            generator,
            records,
            n=n,
            context=Template(prompt),
            params=SamplingParams(max_tokens, temperature, top_p, tuple(stop or ()), seed),
            steps=taken.steps,
            ledger=Ledger.of(p.rollouts(out) / "solutions.jsonl", generator) if paid else None,
            budget=limits,
            executor=load_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def grade(
    solutions: p.Solutions,
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "test",
    grader: p.GraderName = None,
    workers: p.Workers = 1,
    json: p.AsJson = False,
) -> None:
    """Compare the solutions' answers with the references: correct, incorrect, or ungradable with a reason.

    \b
    Example:
      stepmark grade --task arithmetic --split test --solutions solutions.jsonl --out grades.jsonl
    """
    from stepmark.grade import grade as stage
    from stepmark.loading import load_executor
    from stepmark.store import Records
    from stepmark.types import GradedSolution, Solution

    found, bad, taken = p.load(task, task_option, split)
    given = p.there(solutions, Solution)
    with Show(json) as show, Records(out, GradedSolution) as records:
        done = stage(given, found, p.grader(grader, taken), records, executor=load_executor(workers), progress=show)
    end(done, json, bad)


@app.command()
def label(
    solutions: p.Solutions,
    out: p.Out,
    model: p.Model = None,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    labeler: Annotated[str, typer.Option(help="A labelling method's name, or the path of your own.")] = "monte_carlo",
    labeler_option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="e.g. rollouts=8")] = None,
    distinct: Annotated[bool, typer.Option(help="Label solutions with the same text once.")] = True,
    backend: p.BackendName = "local",
    backend_option: p.BackendOptions = None,
    grader: p.GraderName = None,
    prompt: p.Prompt = "{question}\n",
    max_tokens: p.MaxTokens = 256,
    temperature: p.Temperature = 1.0,
    top_p: p.TopP = 1.0,
    stop: p.Stop = None,
    seed: p.Seed = 0,
    judge: Annotated[str | None, typer.Option(help="The judge's checkpoint, for labellers that ask one.")] = None,
    judge_backend: Annotated[str | None, typer.Option(help="What runs the judge.")] = None,
    judge_option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the judge's backend.")] = None,
    workers: p.Workers = 1,
    budget: p.BudgetLimits = None,
    json: p.AsJson = False,
) -> None:
    """Label every step of solutions without a human, by what a model makes of it from there.

    \b
    Example:
      stepmark label --task arithmetic --split train --solutions solutions.jsonl --model runs/demo/generator \\
        --labeler-option rollouts=8 --out labels.jsonl
    """
    from stepmark import plugins, units
    from stepmark.label import distinct as first_of_each
    from stepmark.label import label as stage
    from stepmark.label import ledgers
    from stepmark.ledger import parse_budget
    from stepmark.loading import load_executor
    from stepmark.prompts import Template
    from stepmark.protocols import Tools
    from stepmark.store import Records
    from stepmark.types import LabelledSolution, SamplingParams, Solution

    limits = parse_budget(budget or [])
    method = plugins.load("labeler", labeler, **p.options(labeler_option))
    found, bad, taken = p.load(task, task_option, split)
    pairs = units.pair(found, p.there(solutions, Solution))
    completes = model is not None or backend != "local"
    judges = judge is not None or judge_backend is not None
    tools = Tools(
        p.grader(grader, taken),
        Template(prompt),
        SamplingParams(max_tokens, temperature, top_p, tuple(stop or ()), seed),
        p.backend(backend, backend_option, model) if completes else None,
        p.backend(judge_backend or "local", judge_option, judge) if judges else None,
    )
    with Show(json) as show, Records(out, LabelledSolution) as records:
        done = stage(
            first_of_each(pairs) if distinct else pairs,
            method,
            tools,
            records,
            ledgers=ledgers(p.rollouts(out), tools),
            budget=limits,
            executor=load_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="generator, orm, prm, ... or the path of your own.")],
    out: p.Out,
    base: Annotated[str, typer.Option(help="Checkpoint to start from: a directory or a hub id.")],
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    problems: p.Limit = None,
    labels: Annotated[Path | None, typer.Option(help="JSONL of labelled solutions; for verifiers.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the verifier kind.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of training: lr, epochs, ...")] = None,
    prompt: p.Prompt = "{question}\n",
    json: p.AsJson = False,
) -> None:
    """Train a generator on a task's demonstrations, or a verifier on labelled solutions.

    \b
    Examples:
      stepmark train generator --task arithmetic --base base/ --set epochs=3 --set lr=3e-3 --out generator/
      stepmark train prm --task arithmetic --labels labels.jsonl --base generator/ --out prm/
    """
    from stepmark import plugins
    from stepmark.recipe import settings
    from stepmark.train import Generator, TrainSettings
    from stepmark.train import train as loop
    from stepmark.types import LabelledSolution

    how = settings(TrainSettings, set or [], "--set")
    found, bad, _ = p.load(task, task_option, split, problems)
    with Show(json) as show:
        if kind == "generator":
            done = loop(Generator(base, prompt, **p.options(option)), found, out, how, show)
        else:
            if labels is None:
                raise ConfigError(f"training the verifier {kind} needs --labels. Make them: stepmark label --help")
            by_id = {x.id: x for x in found}
            labelled = {x.key: x for x in p.there(labels, LabelledSolution)}
            examples = [
                (by_id[x.solution.problem_id], x) for _, x in sorted(labelled.items()) if x.solution.problem_id in by_id
            ]
            given: dict[str, Any] = {"path": base, "template": prompt}
            taken = plugins.options("verifier", kind)
            given = {k: v for k, v in given.items() if k in taken}
            done = loop(plugins.load("verifier", kind, **given, **p.options(option)), examples, out, how, show)
    end(done, json, bad)


@app.command()
def score(
    verifier: Annotated[str, typer.Option(help="Directory of a trained verifier, or the path of your own kind.")],
    solutions: p.Solutions,
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "test",
    workers: p.Workers = 1,
    json: p.AsJson = False,
) -> None:
    """Score solutions with a verifier, which never sees the reference answers.

    \b
    Example:
      stepmark score --verifier runs/demo/verifiers/prm --task arithmetic --split test \\
        --solutions solutions.jsonl --out scores.jsonl
    """
    from stepmark.loading import load_executor, load_verifier
    from stepmark.score import score as stage
    from stepmark.store import Records
    from stepmark.types import Solution, Verification

    found, bad, _ = p.load(task, task_option, split)
    given = p.there(solutions, Solution)
    with Show(json) as show, Records(out, Verification) as records:
        done = stage(load_verifier(verifier), found, given, records, executor=load_executor(workers), progress=show)
    end(done, json, bad)


@app.command()
def rank(
    run: p.RunPath,
    method: Annotated[str, typer.Option(help="prm, self_consistency, self_consistency+prm, prm:prod, ...")] = "prm",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Only each problem's first n candidates.")] = None,
    json: p.AsJson = False,
) -> None:
    """Choose an answer for every test problem of a run. With --json, one line of JSON for each problem.

    \b
    Example:
      stepmark rank runs/demo --method self_consistency+prm --n 16
    """
    from stepmark.rank import rank as choose
    from stepmark.recipe import parse
    from stepmark.reporting import pools
    from stepmark.store import RunDir

    directory = RunDir(run)
    recipe = parse(directory.read_json("config.json"), f"{run}/config.json")
    for problem_id, pool in pools(directory, recipe).items():
        chosen = choose(pool[:n], method, recipe.evaluate.aggregates[0], problem_id=problem_id, seed=recipe.seed)
        if json:
            print_json(chosen)
        else:
            print(f"{chosen.problem_id}\t{chosen.answer}\t{chosen.share:.3f}\t{chosen.solution_id}")


@app.command()
def evaluate(run: p.RunPath, json: p.AsJson = False) -> None:
    """Measure a run's verifiers anew from its stored scores; writes metrics.json.

    \b
    Example:
      stepmark evaluate runs/demo
    """
    from stepmark import report as pages
    from stepmark.pipeline import Run
    from stepmark.recipe import parse
    from stepmark.store import RunDir

    stored = RunDir(run).read_json("config.json")
    recipe = parse(stored, f"{run}/config.json")
    with RunDir(run).open(stored) as directory, Show(json) as show:
        metrics = Run(recipe, directory, show).evaluate()
    if json:
        print_json(metrics)
    else:
        print(pages.table(metrics))


@app.command()
def report(run: p.RunPath, json: p.AsJson = False) -> None:
    """Write a run's report.html anew.

    \b
    Example:
      stepmark report runs/demo
    """
    from stepmark.reporting import write_report
    from stepmark.store import RunDir

    path = write_report(RunDir(run))
    if json:
        print_json({"report": str(path)})
    else:
        print(path)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, e.g. recipes/demo.yaml")],
    changes: p.Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME of the recipe by default.")] = None,
    budget: p.BudgetLimits = None,
    json: p.AsJson = False,
) -> None:
    """Run a recipe, or go on with it: from a task to a verifier, its metrics and its report.

    \b
    Examples:
      stepmark run recipes/demo.yaml
      stepmark run recipes/demo.yaml seed=2 sample.test.n=16 'evaluate.n=[1,4,16]' --out runs/second
      stepmark run mine.yaml --budget money=20 --budget hours=8
    """
    _run(recipe, changes or [], out, json, budget or [])


@app.command()
def demo(
    changes: p.Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/demo by default.")] = None,
    json: p.AsJson = False,
) -> None:
    """Watch a verifier that nobody labelled beat majority voting; minutes on a laptop, no GPU.

    \b
    Example:
      stepmark demo
    """
    import stepmark

    home = Path(stepmark.__file__).parent
    places = (home / "_recipes" / "demo.yaml", home.parent.parent / "recipes" / "demo.yaml")
    _run(next((x for x in places if x.is_file()), places[0]), changes or [], out, json)


@app.command()
def doctor(json: p.AsJson = False) -> None:
    """Say what this machine has, and what is missing for what.

    \b
    Example:
      stepmark doctor
    """
    from stepmark.doctor import checks

    found = list(checks())
    if json:
        print_json({c.what: c for c in found})
        return
    for c in found:
        print(f"{'ok  ' if c.ok else 'warn'}  {c.what:<13} {c.found}" + (f"\n      -> {c.advice}" if not c.ok else ""))


# ---- what the commands share ----


def _run(path: Path, changes: Sequence[str], out: Path | None, json: bool, budget: Sequence[str] = ()) -> None:
    from stepmark import report as pages
    from stepmark.ledger import parse_budget
    from stepmark.pipeline import run as whole
    from stepmark.recipe import load

    limits = parse_budget(budget)
    recipe = load(path, changes)
    with Show(json) as show:
        done = whole(recipe, out or Path("runs") / recipe.name, show, " ".join(["stepmark", *sys.argv[1:]]), limits)
    if json:
        print_json(done.metrics)
    else:
        print(pages.table(done.metrics, done.path / "report.html"))
    if done.quarantined:
        typer.echo(f"stepmark: {done.quarantined} rows were set aside: {done.path / 'quarantine.jsonl'}", err=True)
    say_failed([dataclasses.asdict(f) for f in done.failed])
    raise typer.Exit(done.exit_code)

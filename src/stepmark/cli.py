"""The command line: parses, calls the stages, prints what came. It decides nothing.

    stepmark --help
    stepmark demo

Exit status: 0 all went well; 1 something failed; 2 a setting is wrong; 3 everything usable was used, but some rows
were set aside or some items failed (they are listed); 130 interrupted. What is done is kept in every case, and the
same command goes on. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from stepmark.errors import ConfigError, StepmarkError
from stepmark.parameters import (
    AsJson,
    BackendName,
    BackendOptions,
    Changes,
    GraderName,
    Limit,
    MaxTokens,
    Model,
    Out,
    Prompt,
    RunPath,
    Seed,
    Solutions,
    Split,
    Stop,
    TaskName,
    TaskOptions,
    Temperature,
    TopP,
    Workers,
)
from stepmark.terminal import Show, end, print_json, say_failed

if TYPE_CHECKING:
    from stepmark.protocols import Executor, Grader
    from stepmark.types import Problem, Quarantined


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
    out: Out,
    task: TaskName = "arithmetic",
    task_option: TaskOptions = None,
    split: Split = "train",
    problems: Limit = 20000,
    shape: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="hidden, layers, heads, ...")] = None,
    prompt: Prompt = "{question}\n",
    seed: Seed = 0,
    json: AsJson = False,
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
    found, bad, _ = _load(task, task_option, split, problems)
    context = Template(prompt)
    checkpoints.create(out, [context(p) + (p.demonstration or p.reference) for p in found], size, seed)
    end({"path": str(out), "problems": len(found)}, json, bad)


@app.command()
def sample(
    out: Out,
    model: Model = None,
    task: TaskName = "arithmetic",
    task_option: TaskOptions = None,
    split: Split = "test",
    problems: Limit = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Solutions of each problem.")] = 16,
    backend: BackendName = "local",
    backend_option: BackendOptions = None,
    prompt: Prompt = "{question}\n",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    workers: Workers = 1,
    json: AsJson = False,
) -> None:
    """Draw solutions of a task's problems. Asking for more later adds to what is there.

    \b
    Example:
      stepmark sample --task arithmetic --split test --model runs/demo/generator --n 16 --out solutions.jsonl
    """
    from stepmark.prompts import Template
    from stepmark.sample import sample as stage
    from stepmark.store import Records
    from stepmark.types import SamplingParams, Solution

    found, bad, taken = _load(task, task_option, split, problems)
    with Show(json) as show, Records(out, Solution) as records:
        done = stage(
            found,
            _backend(backend, backend_option, model),
            records,
            n=n,
            context=Template(prompt),
            params=SamplingParams(max_tokens, temperature, top_p, tuple(stop or ()), seed),
            steps=taken.steps,
            executor=_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def grade(
    solutions: Solutions,
    out: Out,
    task: TaskName = "arithmetic",
    task_option: TaskOptions = None,
    split: Split = "test",
    grader: GraderName = None,
    workers: Workers = 1,
    json: AsJson = False,
) -> None:
    """Compare the solutions' answers with the references: correct, incorrect, or ungradable with a reason.

    \b
    Example:
      stepmark grade --task arithmetic --split test --solutions solutions.jsonl --out grades.jsonl
    """
    from stepmark.grade import grade as stage
    from stepmark.store import Records
    from stepmark.types import GradedSolution, Solution

    found, bad, taken = _load(task, task_option, split)
    given = _there(solutions, Solution)
    with Show(json) as show, Records(out, GradedSolution) as records:
        done = stage(given, found, _grader(grader, taken), records, executor=_executor(workers), progress=show)
    end(done, json, bad)


@app.command()
def label(
    solutions: Solutions,
    out: Out,
    model: Model = None,
    task: TaskName = "arithmetic",
    task_option: TaskOptions = None,
    split: Split = "train",
    labeler: Annotated[str, typer.Option(help="A labelling method's name, or the path of your own.")] = "monte_carlo",
    labeler_option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="e.g. rollouts=8")] = None,
    distinct: Annotated[bool, typer.Option(help="Label solutions with the same text once.")] = True,
    backend: BackendName = "local",
    backend_option: BackendOptions = None,
    grader: GraderName = None,
    prompt: Prompt = "{question}\n",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    workers: Workers = 1,
    json: AsJson = False,
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
    from stepmark.prompts import Template
    from stepmark.store import Records
    from stepmark.types import LabelledSolution, SamplingParams, Solution

    found, bad, taken = _load(task, task_option, split)
    pairs = units.pair(found, _there(solutions, Solution))
    with Show(json) as show, Records(out, LabelledSolution) as records:
        done = stage(
            first_of_each(pairs) if distinct else pairs,
            plugins.load("labeler", labeler, **_options(labeler_option)),
            _backend(backend, backend_option, model),
            _grader(grader, taken),
            records,
            context=Template(prompt),
            params=SamplingParams(max_tokens, temperature, top_p, tuple(stop or ()), seed),
            executor=_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="generator, orm, prm, ... or the path of your own.")],
    out: Out,
    base: Annotated[str, typer.Option(help="Checkpoint to start from: a directory or a hub id.")],
    task: TaskName = "arithmetic",
    task_option: TaskOptions = None,
    split: Split = "train",
    problems: Limit = None,
    labels: Annotated[Path | None, typer.Option(help="JSONL of labelled solutions; for verifiers.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the verifier kind.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of training: lr, epochs, ...")] = None,
    prompt: Prompt = "{question}\n",
    json: AsJson = False,
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
    found, bad, _ = _load(task, task_option, split, problems)
    with Show(json) as show:
        if kind == "generator":
            done = loop(Generator(base, prompt, **_options(option)), found, out, how, show)
        else:
            if labels is None:
                raise ConfigError(f"training the verifier {kind} needs --labels. Make them: stepmark label --help")
            by_id = {p.id: p for p in found}
            labelled = {x.key: x for x in _there(labels, LabelledSolution)}
            examples = [
                (by_id[x.solution.problem_id], x) for _, x in sorted(labelled.items()) if x.solution.problem_id in by_id
            ]
            given: dict[str, Any] = {"path": base, "template": prompt}
            taken = plugins.options("verifier", kind)
            given = {k: v for k, v in given.items() if k in taken}
            done = loop(plugins.load("verifier", kind, **given, **_options(option)), examples, out, how, show)
    end(done, json, bad)


@app.command()
def score(
    verifier: Annotated[str, typer.Option(help="Directory of a trained verifier, or the path of your own kind.")],
    solutions: Solutions,
    out: Out,
    task: TaskName = "arithmetic",
    task_option: TaskOptions = None,
    split: Split = "test",
    workers: Workers = 1,
    json: AsJson = False,
) -> None:
    """Score solutions with a verifier, which never sees the reference answers.

    \b
    Example:
      stepmark score --verifier runs/demo/verifiers/prm --task arithmetic --split test \\
        --solutions solutions.jsonl --out scores.jsonl
    """
    from stepmark.loading import load_verifier
    from stepmark.score import score as stage
    from stepmark.store import Records
    from stepmark.types import Solution, Verification

    found, bad, _ = _load(task, task_option, split)
    given = _there(solutions, Solution)
    with Show(json) as show, Records(out, Verification) as records:
        done = stage(load_verifier(verifier), found, given, records, executor=_executor(workers), progress=show)
    end(done, json, bad)


@app.command()
def rank(
    run: RunPath,
    method: Annotated[str, typer.Option(help="prm, self_consistency, self_consistency+prm, prm:prod, ...")] = "prm",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Only each problem's first n candidates.")] = None,
    json: AsJson = False,
) -> None:
    """Choose an answer for every test problem of a run. With --json, one line of JSON for each problem.

    \b
    Example:
      stepmark rank runs/demo --method self_consistency+prm --n 16
    """
    from stepmark.pipeline import pools
    from stepmark.rank import rank as choose
    from stepmark.recipe import parse
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
def evaluate(run: RunPath, json: AsJson = False) -> None:
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
def report(run: RunPath, json: AsJson = False) -> None:
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
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME of the recipe by default.")] = None,
    json: AsJson = False,
) -> None:
    """Run a recipe, or go on with it: from a task to a verifier, its metrics and its report.

    \b
    Examples:
      stepmark run recipes/demo.yaml
      stepmark run recipes/demo.yaml seed=2 sample.test.n=16 'evaluate.n=[1,4,16]' --out runs/second
    """
    _run(recipe, changes or [], out, json)


@app.command()
def demo(
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/demo by default.")] = None,
    json: AsJson = False,
) -> None:
    """Watch a verifier that nobody labelled beat majority voting; minutes on a laptop, no GPU.

    \b
    Example:
      stepmark demo
    """
    import stepmark

    home = Path(stepmark.__file__).parent
    places = (home / "_recipes" / "demo.yaml", home.parent.parent / "recipes" / "demo.yaml")
    _run(next((p for p in places if p.is_file()), places[0]), changes or [], out, json)


@app.command()
def doctor(json: AsJson = False) -> None:
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


def _run(path: Path, changes: Sequence[str], out: Path | None, json: bool) -> None:
    from stepmark import report as pages
    from stepmark.pipeline import run as whole
    from stepmark.recipe import load

    recipe = load(path, changes)
    with Show(json) as show:
        done = whole(recipe, out or Path("runs") / recipe.name, show, " ".join(["stepmark", *sys.argv[1:]]))
    if json:
        print_json(done.metrics)
    else:
        print(pages.table(done.metrics, done.path / "report.html"))
    if done.quarantined:
        typer.echo(f"stepmark: {done.quarantined} rows were set aside: {done.path / 'quarantine.jsonl'}", err=True)
    say_failed([dataclasses.asdict(f) for f in done.failed])
    raise typer.Exit(done.exit_code)


def _load(
    task: str, options: Sequence[str] | None, split: str, limit: int | None = None
) -> tuple[Sequence[Problem], Sequence[Quarantined], Any]:
    from stepmark.errors import DataError
    from stepmark.loading import load_task

    taken = load_task(task, **_options(options))
    found = taken.load(split, limit)
    if not found.problems:
        reason = f" The first of {len(found.quarantined)} bad rows: {found.quarantined[0]}" if found.quarantined else ""
        raise DataError(f"the split {split!r} of {task} has no usable problem.{reason}")
    return found.problems, found.quarantined, taken


def _options(changes: Sequence[str] | None) -> dict[str, Any]:
    if not changes:
        return {}
    from stepmark.recipe import changed

    return changed({}, changes)


def _backend(name: str, options: Sequence[str] | None, model: str | None) -> Any:
    from stepmark import plugins

    given = _options(options)
    if "path" in plugins.options("backend", name) and "path" not in given:
        if model is None:
            raise ConfigError(f"the backend {name} needs --model, a checkpoint directory or a hub id.")
        given["path"] = model
    return plugins.load("backend", name, **given)


def _grader(name: str | None, task: Any) -> Grader:
    from stepmark.loading import load_grader

    return load_grader(name or task.grader)


def _executor(workers: int) -> Executor:
    from stepmark.pipeline import executor

    return executor(workers)


def _there(path: Path, kind: type[Any]) -> list[Any]:
    """The records of a file that has to be there."""
    from stepmark.errors import DataError
    from stepmark.store import Records

    if not path.is_file():
        raise DataError(f"no file {path} (working directory: {Path.cwd()}).")
    return list(Records(path, kind))

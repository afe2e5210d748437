"""The parameters that several commands share, and functions that turn them into objects."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepmark.errors import ConfigError

if TYPE_CHECKING:
    from stepmark.protocols import Grader, Task
    from stepmark.text.few_shot import FewShot
    from stepmark.types import LabelledSolution, Problem, Quarantined, SamplingParams

TaskName = Annotated[str, typer.Option("--task", help="Name of a task, or the path of your own file: ./mine.py")]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", metavar="KEY=VALUE", help="An option of the task; may be given several times."),
]
Split = Annotated[
    str, typer.Option(help="Split of the task, e.g. train or test; the task jsonl also has all, the whole file.")
]
Limit = Annotated[int | None, typer.Option("--problems", min=1, help="Number of problems; by default all.")]
Model = Annotated[str | None, typer.Option("--model", help="A checkpoint directory, a hub id, or a name on a server.")]
BackendName = Annotated[
    str, typer.Option("--backend", help="What runs the model: name of a backend, or the path of your own file.")
]
BackendOptions = Annotated[
    list[str] | None,
    typer.Option("--backend-option", metavar="KEY=VALUE", help="An option of the backend; may be given several times."),
]
GraderName = Annotated[
    str | None,
    typer.Option("--grader", help="Name of a grader, or the path of your own file; by default the task's own grader."),
]
Prompt = Annotated[str, typer.Option(help="Prompt of the model; {question} stands for the question.")]
FewShots = Annotated[
    int,
    typer.Option(
        "--few-shot",
        min=0,
        help="Worked examples of the task before each question, for a base model; they are left out of the problems.",
    ),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Largest number of new tokens in each text.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 means greedy decoding.")]
TopP = Annotated[
    float,
    typer.Option(min=0, max=1, help="Nucleus sampling: share of the probability to sample from; 1 means all of it."),
]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string: a text ends before it; may be given several times.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random in this command.")]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes that work at a time; changes no result.")]
BudgetLimits = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=LIMIT",
        help="Stop at this limit: rollouts=, tokens=, money= or hours=. All work is kept.",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=SHARE",
        help="Stop above this share: failed=, truncated= or ungradable=; 1 never stops.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and no progress.")]
Solutions = Annotated[Path, typer.Option(help="JSONL file of solutions.")]
Out = Annotated[
    Path, typer.Option(help="File or directory of the results; the same command continues an existing one.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/demo")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes of recipe keys, e.g. sample.test.n=16")
]


def load(
    task: str, changes: Sequence[str] | None, split: str, limit: int | None = None
) -> tuple[Sequence[Problem], Sequence[Quarantined], Task]:
    """The problems of a split, the rows that were set aside, and the task. Says on standard error how the task divided
    its rows. Raises DataError if no problem is left."""
    from stepmark.data.rows import need_problems
    from stepmark.plugins import registry
    from stepmark.plugins.loading import load_task

    plugin = load_task(task, **options(changes, registry.find("task", task)))
    loaded = plugin.load(split, limit)
    need_problems(task, split, loaded)
    if loaded.note:
        typer.echo(f"stepmark: {loaded.note}", err=True)
    return loaded.problems, loaded.quarantined, plugin


def options(changes: Sequence[str] | None, kind: type[Any]) -> dict[str, Any]:
    """`key=value` settings as options of a plug-in's class. plugins/values.py says how values are read."""
    if not changes:
        return {}
    from stepmark.plugins import registry, values

    return values.changed({}, changes, registry.types_of(kind))


def backend(name: str, changes: Sequence[str] | None, model: str | None) -> Any:
    """The backend. `model` fills in its option `path`, a checkpoint, or else `model`, a name on a server.

    An option in `changes` wins. Raises ConfigError where the backend needs a model and there is none."""
    from stepmark.plugins import registry

    settings = options(changes, registry.find("backend", name))
    allowed = registry.options("backend", name)
    option = next((o for o in ("path", "model") if o in allowed), None)
    if option is not None and option not in settings:
        if model is not None:
            settings[option] = model
        elif allowed[option] is inspect.Parameter.empty:
            what = "a checkpoint directory or a hub id" if option == "path" else "the model's name on the server"
            raise ConfigError(f"the backend {name} needs --model, {what}.")
    return registry.load("backend", name, **settings)


def grader(name: str | None, task: Task) -> Grader:
    """The grader `name`, or the task's own."""
    from stepmark.plugins.loading import load_grader

    return load_grader(name or task.grader)


def prompted(template: str, few_shots: int, task: Task, grader_name: str | None = None) -> FewShot:
    """What renders the questions, with worked examples of the task."""
    from stepmark.text import few_shot
    from stepmark.text.prompts import Template

    return few_shot.few_shot(Template(template), few_shots, task, grader(grader_name, task))


def rollouts(out: Path) -> Path:
    """The directory of the rollouts of a command that writes `out`."""
    return out.with_name(f"{out.stem}.rollouts")


def kept(out: Path, prompt: str, params: SamplingParams, **models: Any) -> AbstractContextManager[object]:
    """Opens the directory of the rollouts of `out`, for this process alone.

    Raises ConfigChanged where its rollouts come from another model, prompt or sampling, since they would be used as if
    they were new; StageError while another process has it open. Where `out` has settings beside it, those decide
    (cli/settings.py): they know the models by their content."""
    from stepmark.data import settings
    from stepmark.data.store import RunDir

    names = {
        role: {"backend": type(model).__name__, "model": getattr(model, "path", getattr(model, "model", ""))}
        for role, model in models.items()
        if model is not None
    }
    if not names:
        return nullcontext()
    plain = asdict(params)
    if not params.choices:
        del plain["choices"]  # older directories lack this setting, and their rollouts can be used
    directory = RunDir(rollouts(out))
    config = {"prompt": prompt, "params": plain, **names}
    if settings.beside(out).exists() and (directory.path / "config.json").exists():
        config = directory.read_json("config.json")
    return directory.open(config)


def examples(path: Path, format: str) -> tuple[list[tuple[Problem, LabelledSolution]], Sequence[Quarantined]]:
    """The labelled solutions of a file of another project, with their problems, and the rows that were set aside.
    Raises DataError for a file without a usable row."""
    from stepmark.data import exchange
    from stepmark.errors import DataError
    from stepmark.plugins import registry
    from stepmark.protocols import Format
    from stepmark.types import LabelledSolution, Problem, Quarantined

    reader = registry.load("format", format)
    if not isinstance(reader, Format):
        raise ConfigError(f"the format {format} can be written, but not read. Choose another.")
    found, bad = list[tuple[Problem, LabelledSolution]](), list[Quarantined]()
    for row in reader.read(path):
        if isinstance(row, Quarantined):
            bad.append(row)
        else:
            found += [(row.problem, x) for x in exchange.labelled(row)]
    if not found:
        raise DataError(f"{path} has no usable row." + (f" The first of {len(bad)} bad rows: {bad[0]}" if bad else ""))
    return found, bad


def there(path: Path, kind: type[Any]) -> list[Any]:
    """The records of a file. Raises DataError if it does not exist."""
    from stepmark.data.paths import nowhere
    from stepmark.data.store import Records
    from stepmark.errors import DataError

    if not path.is_file():
        raise DataError(f"no file {path} {nowhere(path)}")
    return list(Records(path, kind))

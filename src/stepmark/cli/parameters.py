"""The parameters that several commands take, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepmark.errors import ConfigError

if TYPE_CHECKING:
    from stepmark.protocols import Grader, Task
    from stepmark.types import Problem, Quarantined, SamplingParams

TaskName = Annotated[str, typer.Option("--task", help="A task's name, or the path of your own file: ./mine.py")]
TaskOptions = Annotated[list[str] | None, typer.Option("--task-option", metavar="KEY=VALUE", help="Of the task.")]
Split = Annotated[str, typer.Option(help="Which part of the task.")]
Limit = Annotated[int | None, typer.Option("--problems", min=1, help="How many problems; all by default.")]
Model = Annotated[str | None, typer.Option("--model", help="A checkpoint directory or a hub id.")]
BackendName = Annotated[str, typer.Option("--backend", help="What runs the model: a name or a path.")]
BackendOptions = Annotated[
    list[str] | None, typer.Option("--backend-option", metavar="KEY=VALUE", help="Of the backend.")
]
GraderName = Annotated[str | None, typer.Option("--grader", help="A name or a path; by default the task's own.")]
Prompt = Annotated[str, typer.Option(help="How a question is put; {question} stands for it.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most new tokens for each text.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of sampling; 0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Share of the probability to sample from; 1 is all of it.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text ends before this; may be given several times.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random in this command.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes at a time; changes no result.")]
BudgetLimits = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="NAME=LIMIT", help="rollouts=, tokens=, money= or hours=; stops there, all kept."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=SHARE", help="failed=, truncated=, ungradable=: stop above; 1 never stops."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, no progress.")]
Solutions = Annotated[Path, typer.Option(help="JSONL of solutions.")]
Out = Annotated[Path, typer.Option(help="Where results go; the same command goes on with what is there.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/demo")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="e.g. sample.test.n=16")]


def load(
    task: str, changes: Sequence[str] | None, split: str, limit: int | None = None
) -> tuple[Sequence[Problem], Sequence[Quarantined], Task]:
    """The problems of a split, the rows that were set aside, and the task. Raises DataError without a problem."""
    from stepmark.errors import DataError
    from stepmark.plugins.loading import load_task

    taken = load_task(task, **options(changes))
    found = taken.load(split, limit)
    if not found.problems:
        reason = f" The first of {len(found.quarantined)} bad rows: {found.quarantined[0]}" if found.quarantined else ""
        raise DataError(f"the split {split!r} of {task} has no usable problem.{reason}")
    return found.problems, found.quarantined, taken


def options(changes: Sequence[str] | None) -> dict[str, Any]:
    """`key=value` settings as a plug-in's options."""
    if not changes:
        return {}
    from stepmark.run.recipe import changed

    return changed({}, changes)


def backend(name: str, changes: Sequence[str] | None, model: str | None) -> Any:
    """The backend, with the model where it takes one."""
    from stepmark.plugins import registry

    given = options(changes)
    if "path" in registry.options("backend", name) and "path" not in given:
        if model is None:
            raise ConfigError(f"the backend {name} needs --model, a checkpoint directory or a hub id.")
        given["path"] = model
    return registry.load("backend", name, **given)


def grader(name: str | None, task: Task) -> Grader:
    """The grader asked for, or the task's own."""
    from stepmark.plugins.loading import load_grader

    return load_grader(name or task.grader)


def rollouts(out: Path) -> Path:
    """Where a command that writes `out` keeps the rollouts behind it."""
    return out.with_name(f"{out.stem}.rollouts")


def kept(out: Path, prompt: str, params: SamplingParams, **models: Any) -> AbstractContextManager[object]:
    """The directory of the rollouts behind `out`, for this process alone. Raises ConfigChanged where those in it come
    of another model, prompt or sampling: they would be taken for new ones. StageError while another process has it."""
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
        del plain["choices"]  # rollouts from before there were any go on
    return RunDir(rollouts(out)).open({"prompt": prompt, "params": plain, **names})


def there(path: Path, kind: type[Any]) -> list[Any]:
    """The records of a file that has to be there."""
    from stepmark.data.store import Records
    from stepmark.errors import DataError

    if not path.is_file():
        raise DataError(f"no file {path} (working directory: {Path.cwd()}).")
    return list(Records(path, kind))

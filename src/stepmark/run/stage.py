"""A stage of a run: its name, the files that it reads and writes, its progress, and how to run it.

The stages that come with Stepmark are in run/pipeline/, one file each; run/pipeline/__init__.py lists them in order. A
stage of your own is one file too; the recipe gives its path. `{name: ./longest.py, called: ten}` gives it another name
than its file has, so that a recipe can use a file twice.

    stages: [./longest.py]

    class Longest:
        after = "sample"                # runs after these stages; without it before the report
        outputs = ("longest.json",)     # files of the run directory that it writes

        def run(self, context):         # a RunContext (run/context.py)
            solutions = sorted(context.solutions("test"), key=lambda s: -len(s.text))
            context.directory.write_json("longest.json", [s.id for s in solutions[:10]])

stepmark run recipes/demo.yaml --dry-run
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from stepmark.errors import ConfigError, StageError, StepmarkError
from stepmark.run.context import RunContext


@dataclass(frozen=True, slots=True)
class State:
    """The progress of a stage, counted in its records or trained models."""

    made: int  # records or models that exist
    total: int | None = None  # records or models in the end; None where that is not known before the stage runs

    @property
    def done(self) -> bool:
        """Whether all records or models exist."""
        return self.total is not None and self.made >= self.total


class Stage(Protocol):
    """One stage. Its constructor takes plain values and does no I/O; paths are relative to the run directory."""

    @property
    def name(self) -> str:
        """A name that is unique in the run. `--only` and `--from` take it or its first words: "score", "score prm"."""
        ...

    def inputs(self, context: RunContext) -> Sequence[str]:
        """Files and directories of earlier stages that this stage reads."""
        ...

    def outputs(self, context: RunContext) -> Sequence[str]:
        """Files and directories that only this stage writes. They are archived before the stage is run again."""
        ...

    def state(self, context: RunContext) -> State:
        """The progress of the stage. A stage that is done is not run. Loads no model and no torch."""
        ...

    def run(self, context: RunContext) -> None:
        """Makes the records or models that are missing. If the process is killed, the next call goes on."""
        ...


@dataclass(frozen=True, slots=True)
class UserStage:
    """A stage from a user's file."""

    name: str
    plugin: Any  # an object with `run(context)`; optional: `after`, `inputs`, `outputs`

    @property
    def after(self) -> str:
        """The name, or the first words, of the stages that it follows."""
        return str(getattr(self.plugin, "after", "evaluate"))

    @property
    def _record(self) -> str:
        """Written when the stage has ended, so that files which a kill left unfinished don't count."""
        return f"stages/{self.name}.json"

    def inputs(self, context: RunContext) -> Sequence[str]:
        """Raises ConfigError for what is not a path inside the run directory."""
        return self._paths("inputs")

    def outputs(self, context: RunContext) -> Sequence[str]:
        """Raises ConfigError for what is not a path inside the run directory."""
        return [*self._paths("outputs"), self._record]

    def state(self, context: RunContext) -> State:
        """Done when it ended once and its outputs are there. A stage without outputs is never done."""
        done = all(map(context.exists, self.outputs(context)))
        return State(int(done), 1 if self._paths("outputs") else None)

    def run(self, context: RunContext) -> None:
        """Raises StageError with the place in the user's file where something went wrong, or with outputs that it did
        not write."""
        try:
            self.plugin.run(context)
        except (StepmarkError, KeyboardInterrupt):
            raise
        except Exception as e:
            frame = traceback.extract_tb(e.__traceback__)[-1]
            raise StageError(
                f"the stage {self.name} failed: {type(e).__name__}: {e} ({frame.filename}, line {frame.lineno})"
            ) from e
        if missing := [name for name in self._paths("outputs") if not context.exists(name)]:
            raise StageError(
                f"the stage {self.name} ended without writing {', '.join(missing)}, which its outputs name."
            )
        context.directory.write_json(self._record, {"outputs": self._paths("outputs")})

    def _paths(self, attribute: str) -> list[str]:
        names = getattr(self.plugin, attribute, ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f'stages: {self.name}.{attribute} is {names!r}; it is a tuple of paths, as ("a.csv",).')
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ConfigError(
                    f"stages: {self.name}.{attribute} has {name!r}; it takes paths inside the run directory."
                )
        return list(names)


def check(stages: Sequence[Stage], context: RunContext) -> None:
    """Raises ConfigError where two stages write the same file, or a user's stage reads what no stage before it writes
    and what is not there."""
    faults, writers = [], dict[str, str]()
    for stage in stages:
        if isinstance(stage, UserStage):
            faults += [
                f"stages: {stage.name} reads {name}, which no stage before it writes."
                for name in stage.inputs(context)
                if name not in writers and not context.exists(name)
            ]
        for name in stage.outputs(context):
            if name in writers:
                faults.append(f"stages: {stage.name} writes {name}, and so does {writers[name]}; choose another name.")
            writers.setdefault(name, stage.name)
    if faults:
        raise ConfigError(faults)


def matches(stage: Stage, name: str) -> bool:
    """Whether a stage's name is `name` or begins with these words."""
    return stage.name == name or stage.name.startswith(f"{name} ")

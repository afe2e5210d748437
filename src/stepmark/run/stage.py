"""A stage of a run: its name, the files that it reads and writes, its progress, and how to run it.

The stages that come with Stepmark are in run/pipeline/, one file each; run/pipeline/__init__.py lists them in order. A
stage of your own is one file too; the recipe gives its path:

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    def inputs(self, context: RunContext) -> Sequence[str]:
        return tuple(getattr(self.plugin, "inputs", ()))

    def outputs(self, context: RunContext) -> Sequence[str]:
        return tuple(getattr(self.plugin, "outputs", ()))

    def state(self, context: RunContext) -> State:
        """Done when all its outputs exist. A stage without outputs is never done."""
        outputs = self.outputs(context)
        return State(sum(map(context.exists, outputs)), len(outputs) or None)

    def run(self, context: RunContext) -> None:
        self.plugin.run(context)


def matches(stage: Stage, name: str) -> bool:
    """Whether a stage's name is `name` or begins with these words."""
    return stage.name == name or stage.name.startswith(f"{name} ")

"""What a stage of a run is: a name, the files it reads and writes, how far it is, and how to run it.

The stages that come with Stepmark are in run/pipeline/, one a file; run/pipeline/__init__.py lists them in order. A
stage of your own is one file too, named in the recipe:

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
    """How far a stage is, counted in what it makes: records, or trained models."""

    made: int
    total: int | None = None  # None where it is not known before the stage runs

    @property
    def done(self) -> bool:
        """Whether nothing is left to make."""
        return self.total is not None and self.made >= self.total


class Stage(Protocol):
    """One stage. Its constructor takes plain values and does no I/O; paths are relative to the run directory."""

    @property
    def name(self) -> str:
        """Unique in a run. `--only` and `--from` take it whole, or its first words: "score" or "score prm"."""
        ...

    def inputs(self, context: RunContext) -> Sequence[str]:
        """Files and directories that earlier stages wrote and this one reads."""
        ...

    def outputs(self, context: RunContext) -> Sequence[str]:
        """Files and directories that this stage and no other writes. They are archived when it is done anew."""
        ...

    def state(self, context: RunContext) -> State:
        """How far the stage is. A stage that is done is not run. Loads no model and no torch."""
        ...

    def run(self, context: RunContext) -> None:
        """Makes what is missing. Killed at any moment, the next call goes on."""
        ...


@dataclass(frozen=True, slots=True)
class UserStage:
    """A stage from a user's file, as the recipe names it."""

    name: str
    plugin: Any  # an object with `run(context)`; optional: `after`, `inputs`, `outputs`

    @property
    def after(self) -> str:
        """The stages that it follows."""
        return str(getattr(self.plugin, "after", "evaluate"))

    def inputs(self, context: RunContext) -> Sequence[str]:
        return tuple(getattr(self.plugin, "inputs", ()))

    def outputs(self, context: RunContext) -> Sequence[str]:
        return tuple(getattr(self.plugin, "outputs", ()))

    def state(self, context: RunContext) -> State:
        """Done when all its outputs are there; never, where it names none."""
        outputs = self.outputs(context)
        return State(sum(map(context.exists, outputs)), len(outputs) or None)

    def run(self, context: RunContext) -> None:
        self.plugin.run(context)


def matches(stage: Stage, name: str) -> bool:
    """Whether a stage has this name, or one that begins with these words."""
    return stage.name == name or stage.name.startswith(f"{name} ")

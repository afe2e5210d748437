"""Stages `grade PART`: the grader compares the answers of the part's solutions with the references.

Imported solutions keep the grades that came with them; only the others are graded.

stepmark run recipes/demo.yaml --only "grade test"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stepmark.run.context import RunContext
from stepmark.run.stage import State
from stepmark.stages.grade import grade


@dataclass(frozen=True, slots=True)
class Grade:
    """Grades the solutions of one part."""

    part: str

    @property
    def name(self) -> str:
        return f"grade {self.part}"

    def inputs(self, context: RunContext) -> Sequence[str]:
        return [f"problems/{self.part}.jsonl", f"solutions/{self.part}.jsonl"]

    def outputs(self, context: RunContext) -> Sequence[str]:
        """None for an imported part: stage `problems` writes its grades, from the file."""
        return [] if context.recipe.sample.source(self.part).file is not None else [f"grades/{self.part}.jsonl"]

    def state(self, context: RunContext) -> State:
        return State(len(context.grades(self.part)), len(context.solutions(self.part)) or None)

    def run(self, context: RunContext) -> None:
        result = grade(
            context.solutions(self.part),
            list(context.problems(self.part)),
            context.grader,
            context.grades(self.part),
            limits=context.recipe.limits,
            executor=context.executor,
            progress=context.log.progress,
        )
        context.log.summary(asdict(result), result.failed)

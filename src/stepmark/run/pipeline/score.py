"""Stages `score VERIFIER [PART]`: a verifier scores the solutions of a part of the test.

stepmark run recipes/demo.yaml --from score
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stepmark.run.context import RunContext, scores_name
from stepmark.run.stage import State
from stepmark.stages.score import score


@dataclass(frozen=True, slots=True)
class Score:
    """Scores one part of the test with one verifier."""

    verifier: str
    part: str = "test"

    @property
    def name(self) -> str:
        return f"score {self.verifier}" if self.part == "test" else f"score {self.verifier} {self.part}"

    def inputs(self, context: RunContext) -> Sequence[str]:
        learns = context.recipe.verifiers[self.verifier].learns
        files = [f"problems/{self.part}.jsonl", f"solutions/{self.part}.jsonl"]
        return [*files, *([f"verifiers/{self.verifier}/"] if learns else [])]

    def outputs(self, context: RunContext) -> Sequence[str]:
        return [f"{scores_name(self.verifier, self.part)}.jsonl"]

    def state(self, context: RunContext) -> State:
        return State(len(context.scores(self.verifier, self.part)), len(context.solutions(self.part)) or None)

    def run(self, context: RunContext) -> None:
        result = score(
            context.verifier(self.verifier),
            list(context.problems(self.part)),
            context.solutions(self.part),
            context.scores(self.verifier, self.part),
            limits=context.recipe.verifiers[self.verifier].limits or context.recipe.limits,
            executor=context.executor,
            progress=context.log.progress,
        )
        context.log.summary({"verifier": self.verifier, "part": self.part, **asdict(result)}, result.failed)

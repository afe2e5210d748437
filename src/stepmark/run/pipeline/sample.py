"""Stages `sample PART`: the generator writes solutions of the part's problems.

stepmark run recipes/demo.yaml --only "sample test"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stepmark.data.ledger import Ledger
from stepmark.run.context import RunContext
from stepmark.run.stage import State
from stepmark.stages.sample import sample


@dataclass(frozen=True, slots=True)
class Sample:
    """Samples the solutions of one part."""

    part: str

    @property
    def name(self) -> str:
        return f"sample {self.part}"

    def inputs(self, context: RunContext) -> Sequence[str]:
        generator = context.recipe.generator
        trained = generator is not None and generator.train is not None
        return [f"problems/{self.part}.jsonl", *(["generator/"] if trained else [])]

    def outputs(self, context: RunContext) -> Sequence[str]:
        return [f"solutions/{self.part}.jsonl", f"rollouts/solutions-{self.part}.jsonl"]

    def state(self, context: RunContext) -> State:
        problems = len(context.problems(self.part))
        n = context.recipe.sample.source(self.part).n
        return State(len(context.solutions(self.part)), problems * n or None)

    def run(self, context: RunContext) -> None:
        recipe = context.recipe
        generator = context.backend("generator")
        ledger = Ledger.of(context.rollouts / f"solutions-{self.part}.jsonl", generator)
        # A ledger of an earlier sitting is used too: it may hold paid rollouts that are not among the solutions yet.
        paid = context.budget is not None or getattr(generator, "remote", False) or ledger.path.exists()
        result = sample(
            list(context.problems(self.part)),
            generator,
            context.solutions(self.part),
            n=recipe.sample.source(self.part).n,
            context=context.prompt,
            params=context.params,
            steps=context.steps,
            ledger=ledger if paid else None,
            budget=context.budget,
            limits=recipe.limits,
            executor=context.executor,
            progress=context.log.progress,
        )
        context.log.summary(asdict(result), result.failed)

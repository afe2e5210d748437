"""Stage `evaluate`: measures the verifiers, and the policies where there are any; writes metrics.json.

    RUN/metrics.json        metrics of the test; with a second test also those of both, under their names; `stage_notes`
                            has what each stage said of fallbacks and their price
    RUN/by_problem.json     for each selection method and test problem, whether the answer is correct; to pool seeds

stepmark evaluate runs/demo
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stepmark.run.context import RunContext, scores_name
from stepmark.run.policies import Policies
from stepmark.run.reinforce_schema import SFT
from stepmark.run.stage import State
from stepmark.types import Solution

if TYPE_CHECKING:
    from stepmark.evaluation.evaluate import Metrics


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measures the stored scores. It runs each time."""

    name: str = "evaluate"

    def inputs(self, context: RunContext) -> Sequence[str]:
        recipe = context.recipe
        files = [
            f"{folder}/{part}.jsonl" for part in recipe.sample.tests for folder in ("problems", "solutions", "grades")
        ]
        files += [f"{scores_name(name, part)}.jsonl" for part in recipe.sample.tests for name in recipe.verifiers]
        return [*files, *(["after/"] if recipe.reinforce is not None else [])]

    def outputs(self, context: RunContext) -> Sequence[str]:
        return ["metrics.json", "by_problem.json"]

    def state(self, context: RunContext) -> State:
        return State(int(context.exists("metrics.json")))

    def run(self, context: RunContext) -> None:
        tests = context.recipe.sample.tests
        measured = {part: _measure(context, part) for part in tests}
        by_problem = {part: [asdict(way) for way in metrics.ways] for part, metrics in measured.items()}
        context.directory.write_text("by_problem.json", json.dumps(by_problem, allow_nan=False) + "\n")
        sections = {part: metrics.to_json() for part, metrics in measured.items()}
        policies = _measure_policies(context) if context.recipe.reinforce is not None else {}
        context.log.save_seconds()  # so that the stage's own time is among them
        about = {"name": context.recipe.name, "seconds": context.log.seconds, "stage_notes": context.log.notes}
        metrics: dict[str, Any] = sections["test"] | policies | about
        if "out_of_distribution" in tests:
            metrics |= {"in_distribution": sections["test"], "out_of_distribution": sections["out_of_distribution"]}
        context.directory.write_json("metrics.json", metrics)


def _measure(context: RunContext, part: str) -> Metrics:
    from stepmark.evaluation.evaluate import evaluate

    recipe = context.recipe
    first = part == "test"  # labels and rationales are those of train, so they are measured once
    writers = {"": None} | recipe.writers
    return evaluate(
        list(context.problems(part)),
        _complete(context, part),
        context.grades(part),
        {name: list(context.scores(name, part)) for name in recipe.verifiers},
        ns=recipe.evaluate.n,
        aggregates=recipe.evaluate.aggregates,
        seed=recipe.seed,
        labels=list(context.labels) if recipe.label is not None and first else (),
        labelled_problems=list(context.problems("train")),
        rationales=[x for writer in writers for x in context.rationales(writer)] if first else (),
        oracle=getattr(context.task, "judge_steps", None),
        kind_of=getattr(context.task, "error_kind", None),
        votes=recipe.evaluate.votes,
        progress=context.log.progress,
    )


def _measure_policies(context: RunContext) -> dict[str, Any]:
    """The results of reinforcement, in the layout of metrics.json."""
    from stepmark.run.policy_evaluation import measure

    policies, settings = Policies(context), context.recipe.evaluate
    n = policies.settings.test.n
    return measure(
        list(context.problems("after")),
        {name: policies.samples(name) for name in policies.names},
        policies.all_trained(),
        ns=sorted({1, n, *(k for k in settings.n if k < n)}),
        aggregate=settings.aggregates[0],
        seed=context.recipe.seed,
        first=SFT,
    ).to_json()


def _complete(context: RunContext, part: str) -> list[Solution]:
    """The solutions that are graded and scored by every verifier. The others failed and are tried again next time."""
    stages = [context.grades(part).keys(), *(context.scores(n, part).keys() for n in context.recipe.verifiers)]
    return [s for s in context.solutions(part) if all(s.id in keys for keys in stages)]

"""Stage `test policies`: the generator and every policy answer the test's problems; verifiers select among the answers.

All answer the same problems, greedily and in samples, so all differences are paired. Every verifier, the refreshed ones
included, scores the samples of each policy. This shows which verifiers have become stale.

stepmark run recipes/reinforce_arithmetic.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records
from stepmark.data.work_units import Failed
from stepmark.plugins.loading import load_executor
from stepmark.protocols import Backend, Grader, Verifier
from stepmark.run.context import RunContext
from stepmark.run.policies import Policies
from stepmark.run.stage import State
from stepmark.stages.grade import grade
from stepmark.stages.sample import sample
from stepmark.stages.score import score
from stepmark.text.prompts import Template
from stepmark.types import GradedSolution, Problem, Progress, SamplingParams, Solution, Verification


@dataclass(frozen=True, slots=True)
class _Job:
    """A policy to test."""

    name: str
    backend: Backend
    place: Path  # where its solutions, grades and scores go


@dataclass(frozen=True, slots=True)
class PolicyTests:
    """Tests as many policies at a time as there are workers."""

    name: str = "test policies"

    def inputs(self, context: RunContext) -> Sequence[str]:
        policies = Policies(context)
        verifiers = [
            v for v in policies.verifiers if v not in context.recipe.verifiers or context.recipe.verifiers[v].learns
        ]
        checkpoints = [f"policies/{name}/" for name in policies.names[1:]]
        return ["problems/after.jsonl", *checkpoints, *(f"verifiers/{name}/" for name in verifiers)]

    def outputs(self, context: RunContext) -> Sequence[str]:
        return ["after/"]

    def state(self, context: RunContext) -> State:
        policies = Policies(context)
        return State(sum(policies.tested(name, policies.verifiers) for name in policies.names), len(policies.names))

    def run(self, context: RunContext) -> None:
        policies = Policies(context)
        samples = policies.settings.test.n
        verifiers = {name: policies.verifier(name) for name in policies.verifiers} if samples > 1 else {}
        work = partial(
            _test,
            problems=list(context.problems("after")),
            n=samples,
            verifiers=verifiers,
            grader=context.grader,
            template=Template(context.recipe.prompt),
            params=context.recipe.params,
            steps=context.steps,
            limits=policies.limits,
        )
        todo = [name for name in policies.names if not policies.tested(name, verifiers)]
        jobs = [_Job(name, policies.backend(name), context.path / "after" / name) for name in todo]
        for done, (name, failed) in enumerate(context.executor.map(work, jobs), 1):
            context.log.summary({"policy": name}, failed)
            context.log.progress(Progress("", done, len(jobs), context.log.elapsed, name))


def _test(
    job: _Job,
    *,
    problems: Sequence[Problem],
    n: int,
    verifiers: Mapping[str, Verifier],
    grader: Grader,
    template: Template,
    params: SamplingParams,
    steps: str,
    limits: Limits,
) -> tuple[str, tuple[Failed, ...]]:
    """Tests one policy, in the process of a worker. Stored records are not made again."""
    executor = load_executor(1)
    failed: list[Failed] = []
    for count, sampling, names in (
        (1, replace(params, temperature=0.0), ("greedy", "greedy_grades")),
        (n, params, ("solutions", "grades")),
    ):
        if names[0] == "solutions" and n == 1:
            continue
        solutions_path, grades_path = (job.place / f"{name}.jsonl" for name in names)
        with Records(solutions_path, Solution) as solutions, Records(grades_path, GradedSolution) as grades:
            sampled = sample(
                problems,
                job.backend,
                solutions,
                n=count,
                context=template,
                params=sampling,
                steps=steps,
                limits=limits,
                executor=executor,
            )
            failed += sampled.failed
            failed += grade(solutions, problems, grader, grades, limits=limits, executor=executor).failed
            if names[0] == "greedy":
                continue
            for name, verifier in verifiers.items():
                with Records(job.place / "scores" / f"{name}.jsonl", Verification) as scores:
                    failed += score(verifier, problems, solutions, scores, limits=limits, executor=executor).failed
    return job.name, tuple(failed)

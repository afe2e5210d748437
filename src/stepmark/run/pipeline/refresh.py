"""Stages `refresh` and `refresh ROUND`: a verifier is trained again on solutions of a policy.

A verifier that was trained before reinforcement goes stale (Math-Shepherd, table 3). The policy writes solutions. They
are graded and labelled as the recipe says, and the verifier learns from them and from its first training data. The
policy also completes the prefixes of its solutions, unless the recipe has a completer of its own.

stepmark run recipes/reinforce_arithmetic.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from stepmark.data.work_units import pair
from stepmark.run.context import RunContext
from stepmark.run.pipeline.verifiers import train_again
from stepmark.run.policies import Policies
from stepmark.run.reinforce_schema import Refresh
from stepmark.run.stage import State
from stepmark.run.training_data import Example, TrainingData, unlabelled
from stepmark.stages.grade import grade
from stepmark.stages.label import distinct, label, ledgers, references_among
from stepmark.stages.sample import sample
from stepmark.text.prompts import Template
from stepmark.types import GradedSolution, LabelledSolution, Problem, Solution


@dataclass(frozen=True, slots=True)
class RefreshVerifier:
    """Trains the verifier again on solutions of the policy of a round."""

    round: int = 1

    @property
    def name(self) -> str:
        return "refresh" if self.round == 1 else f"refresh {self.round}"

    def inputs(self, context: RunContext) -> Sequence[str]:
        refresh = _settings(context)
        files = ["problems/reinforce.jsonl", f"policies/{refresh.policy_of(self.round)}/"]
        return [*files, *(["labels/train.jsonl"] if refresh.keep and context.recipe.label is not None else [])]

    def outputs(self, context: RunContext) -> Sequence[str]:
        name = _settings(context).verifier_of(self.round)
        return [f"refreshed/{name}/", f"rollouts/{name}/", f"verifiers/{name}/"]

    def state(self, context: RunContext) -> State:
        return State(int(context.trained(f"verifiers/{_settings(context).verifier_of(self.round)}")), 1)

    def run(self, context: RunContext) -> None:
        refresh = _settings(context)
        name, policy = refresh.verifier_of(self.round), refresh.policy_of(self.round)
        problems = list(context.problems("reinforce"))[: refresh.problems]
        examples = _examples(context, name, policy, problems, refresh.n)
        earlier = TrainingData(context).examples() if refresh.keep else []
        train_again(context, refresh.verifier, name, [*earlier, *examples])


def _settings(context: RunContext) -> Refresh:
    refresh = Policies(context).settings.refresh
    assert refresh is not None
    return refresh


def _examples(context: RunContext, name: str, policy: str, problems: Sequence[Problem], n: int) -> list[Example]:
    """The examples from the policy's solutions, with step labels where the recipe has a labeler."""
    policies, recipe, log = Policies(context), context.recipe, context.log
    solutions = context.directory.records(f"refreshed/{name}/solutions", Solution)
    graded = context.directory.records(f"refreshed/{name}/grades", GradedSolution)
    backend, limits = policies.backend(policy), policies.limits
    sampled = sample(
        problems,
        backend,
        solutions,
        n=n,
        context=Template(recipe.prompt),
        params=recipe.params,
        steps=context.steps,
        limits=limits,
        executor=context.executor,
        progress=log.progress,
    )
    log.summary({"policy": policy, **asdict(sampled)}, sampled.failed)
    grading = grade(solutions, problems, context.grader, graded, limits=limits, executor=context.executor)
    log.summary(asdict(grading), grading.failed)

    grades = {g.solution_id: g.grade for g in graded}
    pairs = pair(problems, solutions)
    labeler = recipe.label
    if labeler is None:
        return [(p, unlabelled(s, grades[s.id])) for p, s in distinct(pairs) if s.id in grades]
    if labeler.distinct:
        pairs = distinct(pairs)
    tools = context.tools
    if recipe.completer is None:
        tools = replace(tools, completer=backend)
    labels = context.directory.records(f"refreshed/{name}/labels", LabelledSolution)
    labelling = label(
        pairs,
        labeler.load(),
        tools,
        labels,
        references=references_among(pairs, lambda _, s: grades.get(s.id)),
        ledgers=ledgers(context.rollouts / name, tools),
        budget=context.budget,
        limits=limits,
        executor=context.executor,
        progress=log.progress,
    )
    log.summary({"verifier": name, **asdict(labelling)}, labelling.failed)
    by_id = {x.key: x for x in labels}
    return [(p, by_id[s.id]) for p, s in pairs if s.id in by_id]

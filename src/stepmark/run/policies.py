"""The policies of a run that reinforces: their names, checkpoints, backends, records and training results.

    RUN/policies/NAME/             checkpoint of a policy, with its log
    RUN/policies.jsonl             the result of each training; policies-2.jsonl for the second round, and so on
    RUN/after/NAME/                greedy solutions and samples of the test's problems, with grades and scores
    RUN/refreshed/NAME/            solutions, grades and labels that the refreshed verifier NAME learns from

The generator itself has the name `sft`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records
from stepmark.plugins.loading import load_verifier
from stepmark.protocols import Backend, Verifier
from stepmark.rl.settings import Reinforced
from stepmark.run.context import RunContext
from stepmark.run.reinforce_schema import SFT, Reinforce
from stepmark.types import GradedSolution, Solution, Verification


@dataclass(frozen=True, slots=True)
class TrainedPolicy:
    """The result of the training of one policy. Stored when the training ends."""

    policy: str  # its name in the recipe
    method: str  # ppo, grpo or rft
    result: Reinforced

    @property
    def key(self) -> str:
        return self.policy


@dataclass(frozen=True, slots=True)
class PolicySamples:
    """The answers of one policy to the test's problems."""

    greedy: Sequence[GradedSolution]  # of its greedy solutions, at most one for each problem
    solutions: Sequence[Solution] = ()  # samples; empty where the recipe has none
    grades: Sequence[GradedSolution] = ()  # of the samples
    scores: Mapping[str, Sequence[Verification]] = field(default_factory=dict)  # verifier -> of the samples


class Policies:
    """Access to the policies for the stages of reinforcement. Raises AssertionError for a recipe without policies."""

    def __init__(self, context: RunContext) -> None:
        assert context.recipe.reinforce is not None
        self.context, self.recipe = context, context.recipe
        self.settings: Reinforce = context.recipe.reinforce

    @property
    def names(self) -> list[str]:
        """The generator and all policies, in order."""
        refresh = self.settings.refresh
        later = [refresh.policy_of(i) for i in range(2, refresh.rounds + 1)] if refresh is not None else []
        return [SFT, *self.settings.policies, *later]

    @property
    def verifiers(self) -> list[str]:
        """The verifiers that choose among the policies' samples, refreshed ones included."""
        refreshed = self.settings.refresh.made if self.settings.refresh is not None else ()
        chosen = self.recipe.verifiers if self.settings.verifiers is None else self.settings.verifiers
        return [*chosen, *refreshed]

    @property
    def limits(self) -> Limits:
        """The recipe's limits, but none on truncated and ungradable: here bad solutions are a result."""
        return replace(self.recipe.limits, truncated=1.0, ungradable=1.0)

    def verifier(self, name: str) -> Verifier:
        """A verifier of the recipe, or a refreshed one."""
        if name in self.recipe.verifiers:
            return self.context.verifier(name)
        return load_verifier(self.context.path / "verifiers" / name)

    def model_path(self, policy: str) -> str:
        """The checkpoint of a policy."""
        return self.context.model_path("generator") if policy == SFT else str(self.context.path / "policies" / policy)

    def backend(self, policy: str) -> Backend:
        """The backend of a policy: that of the generator with another checkpoint."""
        assert self.recipe.generator is not None
        return cast(Backend, self.recipe.generator.backend.load(path=self.model_path(policy)))

    @property
    def backend_options(self) -> Mapping[str, Any]:
        """The options of the generator's backend."""
        assert self.recipe.generator is not None
        return self.recipe.generator.backend.options

    # ---- records ----

    def trained(self, round: int) -> Records[TrainedPolicy]:
        """The results of the trainings of a round."""
        return self.context.directory.records(trained_name(round), TrainedPolicy)

    def all_trained(self) -> list[TrainedPolicy]:
        """The results of all trainings, in the order of `names`."""
        rounds = self.settings.refresh.rounds if self.settings.refresh is not None else 1
        trainings = [x for round in range(1, rounds + 1) for x in self.trained(round)]
        return sorted(trainings, key=lambda x: self.names.index(x.policy))

    def test_records(self, policy: str, name: str, kind: Any) -> Any:
        """Records of a policy on the test's problems: greedy, greedy_grades, solutions, grades or scores/VERIFIER."""
        return self.context.directory.records(f"after/{policy}/{name}", kind)

    def tested(self, policy: str, verifiers: Iterable[str]) -> bool:
        """Whether a policy's test is complete."""
        problems = len(self.context.problems("after"))
        samples = problems * self.settings.test.n
        wanted = {"greedy_grades": problems}
        if self.settings.test.n > 1:
            wanted |= {"grades": samples, **{f"scores/{name}": samples for name in verifiers}}
        kinds = {"greedy_grades": GradedSolution, "grades": GradedSolution}
        counts = {name: len(self.test_records(policy, name, kinds.get(name, Verification))) for name in wanted}
        return problems > 0 and counts == wanted

    def samples(self, policy: str) -> PolicySamples:
        """A policy's answers to the test's problems. Samples that lack a grade or a score are left out."""
        scores = {v: list(self.test_records(policy, f"scores/{v}", Verification)) for v in self.verifiers}
        grades = list(self.test_records(policy, "grades", GradedSolution))
        complete = {g.key for g in grades}.intersection(
            *({x.key for x in of_verifier} for of_verifier in scores.values())
        )
        return PolicySamples(
            list(self.test_records(policy, "greedy_grades", GradedSolution)),
            [s for s in self.test_records(policy, "solutions", Solution) if s.id in complete],
            grades,
            scores,
        )


def trained_name(round: int) -> str:
    """The name of a round's records in the run directory."""
    return "policies" if round == 1 else f"policies-{round}"

"""Rewards of a policy's attempts, from gold answers, verifiers or mixtures of them, and their credit to the steps.

- `sum`: each step is rewarded with its own score, the step-by-step PPO of Math-Shepherd (arXiv 2312.08935, section
  3.5). Every further step with a score above 0 adds reward, so a policy learns to write more steps.
- `outcome`: the whole attempt gets one reward, Math-Shepherd's ORM-PPO.
- `min`: the total is the score of the worst step, by PURE's softmin (Cheng et al., arXiv 2504.15275). Further steps add
  no reward, so an attempt of one harmless line scores well: mix this credit with an outcome.
- `difference`: a step's reward is its score minus the score of the step before. The total is the last step's score.

    source = Mixture(((1.0, Gold(grader)), (0.5, Verified(prm, credit="min"))))
    source.reward([(problem, solution)])[0].total
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stepmark.errors import ConfigError, DataError, StageError, UnknownName
from stepmark.evaluation.aggregate import AGGREGATES, Aggregate, aggregate
from stepmark.protocols import Grader, RewardSource, Verifier
from stepmark.stages.score import ask
from stepmark.text.grading import grade_solution
from stepmark.types import Finish, Outcome, Problem, Reward, Solution, Verdict, Verification

Attempt = tuple[Problem, Solution]
Credit = Literal["sum", "min", "difference", "outcome"]
CREDITS = ("sum", "min", "difference", "outcome")
LATEST, ENOUGH = 1000, 100  # the share of lost rewards is over the latest 1000, and is tested from 100 rewards on


@dataclass(frozen=True, slots=True)
class Gold:
    """Rewards a correct final answer at the end of the attempt. It sees the reference answer, unlike a verifier."""

    grader: Grader
    right: float = 1.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        if not self.right > self.wrong:
            raise ConfigError(
                f"gold: a right answer must earn more than a wrong one, got right={self.right}, wrong={self.wrong}."
            )

    def reward(self, attempts: Sequence[Attempt]) -> list[Reward]:
        return [self._reward(problem, solution) for problem, solution in attempts]

    def _reward(self, problem: Problem, solution: Solution) -> Reward:
        zero = _no_reward(solution)
        if solution.finish is Finish.LENGTH:
            return zero
        grade = grade_solution(solution, problem, self.grader)
        if grade.verdict is Verdict.UNGRADABLE:
            return Reward(solution.id, zero.steps, lost=grade.reason)
        return Reward(solution.id, zero.steps, self.right if grade.correct else self.wrong)


@dataclass(frozen=True, slots=True)
class Verified:
    """Rewards an attempt by a verifier's scores. Raises ConfigError for settings that can't be combined."""

    verifier: Verifier  # any kind for `outcome`; one with a score for each step for the other credits
    credit: Credit = "min"
    aggregate: Aggregate | None = None  # outcome: aggregation of the scores; None: the verifier's own
    temperature: float = 0.0  # min: of the softmin over steps; 0 gives all credit to the first worst step
    before: float = 0.0  # difference: the score before the first step

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise UnknownName("credit", str(self.credit), CREDITS)
        faults = [
            f"verified: {name} is for credit={credit}, but credit is {self.credit}; leave {name} out."
            for name, credit in (("aggregate", "outcome"), ("temperature", "min"), ("before", "difference"))
            if getattr(self, name) and self.credit != credit
        ]
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            faults.append(f"verified: temperature must be at least 0, got {self.temperature}.")
        if not math.isfinite(self.before):
            faults.append(f"verified: before must be a number, got {self.before}.")
        if isinstance(self.aggregate, str) and self.aggregate not in AGGREGATES:
            faults += UnknownName("aggregation", self.aggregate, AGGREGATES).faults
        if faults:
            raise ConfigError(faults)

    @property
    def by_step(self) -> bool:
        """Whether the step rewards are the scores of the steps, not shares or differences of scores."""
        return self.credit == "sum"

    def reward(self, attempts: Sequence[Attempt]) -> list[Reward]:
        """Raises ConfigError when the credit needs step scores and the verifier gives one score for the solution, and
        DataError when the number of scores is not the number of steps."""
        rewards = [_no_reward(solution) for _, solution in attempts]
        # Verifiers take one question with all its attempts at a time.
        by_question: dict[str, list[int]] = {}
        for i, (problem, solution) in enumerate(attempts):
            if solution.spans and solution.finish is not Finish.LENGTH:
                by_question.setdefault(problem.question, []).append(i)
        order = [i for indices in by_question.values() for i in indices]
        pairs = [(question, [attempts[i][1] for i in indices]) for question, indices in by_question.items()]
        for i, verification in zip(order, ask(self.verifier, pairs) if pairs else (), strict=True):
            rewards[i] = self._reward(attempts[i][1], verification)
        return rewards

    def _reward(self, solution: Solution, v: Verification) -> Reward:
        zeros = _no_reward(solution).steps
        if v.outcome is not Outcome.SCORED:
            return Reward(solution.id, zeros, lost=v.reason or f"the verification is {v.outcome}")
        if unknown := [x for x in (*v.scores, v.score) if not math.isfinite(x)]:
            return Reward(solution.id, zeros, lost=f"the verifier gave the score {unknown[0]}")
        if self.credit == "outcome":
            return Reward(
                solution.id, zeros, v.score if self.aggregate is None else aggregate(v.scores, self.aggregate)
            )
        self._check(solution, v)
        if self.credit == "sum":
            return Reward(solution.id, v.scores)
        if self.credit == "difference":
            return Reward(solution.id, tuple(b - a for a, b in pairwise((self.before, *v.scores))))
        return Reward(solution.id, softmin(v.scores, self.temperature))

    def _check(self, solution: Solution, v: Verification) -> None:
        steps, kind = len(solution.spans), type(self.verifier).__name__
        if len(v.scores) == steps:
            return
        if len(v.scores) == 1:
            raise ConfigError(
                f"verified: credit={self.credit} needs a score for each step; {kind} gave one for all {steps} steps of "
                f"{solution.id}. Use credit=outcome, or a verifier that scores steps (prm)."
            )
        raise DataError(
            f"{kind} gave {len(v.scores)} scores for the {steps} steps of {solution.id}; it must give one for each."
        )


@dataclass(frozen=True, slots=True)
class Mixture:
    """The weighted sum of several sources' rewards. If one of them is lost, the sum is lost: a partial sum would be
    another reward."""

    parts: tuple[tuple[float, RewardSource], ...]  # (weight, source)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("mixture: nothing to mix; give at least one (weight, source).")
        if bad_weights := [weight for weight, _ in self.parts if not (math.isfinite(weight) and weight)]:
            raise ConfigError(f"mixture: weights must be finite and other than 0, got {bad_weights}.")

    @property
    def by_step(self) -> bool:
        """Whether all sources that reward steps give the scores of the steps."""
        credits = [getattr(source, "credit", "outcome") for _, source in self.parts]
        return "sum" in credits and not {"min", "difference"} & set(credits)

    def reward(self, attempts: Sequence[Attempt]) -> list[Reward]:
        by_source = [source.reward(attempts) for _, source in self.parts]
        weights = [weight for weight, _ in self.parts]
        return [_sum(weights, rewards) for rewards in zip(*by_source, strict=True)]


class RecentRewards:
    """The latest rewards, with a limit on the share of lost ones: the rest would be a biased sample."""

    def __init__(self, most_lost: float) -> None:
        if not 0 <= most_lost <= 1:
            raise ConfigError(f"rewards: most_lost must be a share from 0 to 1, got {most_lost}.")
        self.most_lost = most_lost
        self.rewards: deque[Reward] = deque(maxlen=LATEST)

    def add(self, rewards: Iterable[Reward]) -> None:
        """Raises StageError with the most frequent reasons when the share of lost rewards is above `most_lost`."""
        self.rewards.extend(rewards)
        lost = Counter(r.lost for r in self.rewards if r.lost)
        if len(self.rewards) >= ENOUGH and lost.total() > self.most_lost * len(self.rewards):
            reasons = "; ".join(f"{reason} ({n})" for reason, n in lost.most_common(3))
            raise StageError(
                f"{lost.total()} of the latest {len(self.rewards)} attempts have no reward, more than the share of "
                f"{self.most_lost} allowed (most_lost): {reasons}. Remove the causes, or raise most_lost."
            )

    @property
    def mean(self) -> float:
        """The mean of the known rewards; 0 if there are none."""
        known = [r.total for r in list(self.rewards) if not r.lost]
        return math.fsum(known) / len(known) if known else 0.0


def softmin(scores: Sequence[float], temperature: float) -> tuple[float, ...]:
    """s_i exp(-s_i / T) / sum_j exp(-s_j / T). At T = 0 only the first lowest score is kept, and the sum is the
    minimum."""
    lowest = min(scores)
    if temperature == 0:
        first = scores.index(lowest)
        return tuple(s if i == first else 0.0 for i, s in enumerate(scores))
    weights = [math.exp((lowest - s) / temperature) for s in scores]
    total = math.fsum(weights)
    return tuple(s * w / total for s, w in zip(scores, weights, strict=True))


def _no_reward(solution: Solution) -> Reward:
    return Reward(solution.id, (0.0,) * len(solution.spans))


def _sum(weights: Sequence[float], rewards: Sequence[Reward]) -> Reward:
    steps = tuple(
        math.fsum(w * s for w, s in zip(weights, step_rewards, strict=True))
        for step_rewards in zip(*(r.steps for r in rewards), strict=True)
    )
    lost = "; ".join(dict.fromkeys(r.lost for r in rewards if r.lost))
    if lost:
        return Reward(rewards[0].solution_id, (0.0,) * len(steps), lost=lost)
    return Reward(rewards[0].solution_id, steps, math.fsum(w * r.end for w, r in zip(weights, rewards, strict=True)))


def reward_source(
    verifiers: Mapping[str, Verifier | None],
    weights: Mapping[str, float],
    credit: Credit | None,
    grader: Grader,
    method: str,
) -> RewardSource:
    """A source of rewards from verifiers by name, None standing for gold answers. Several are added up by weight; a
    single one counts as it is. Without a credit an attempt earns its worst step's score; by GRPO, which normalises
    scores within the group, each step's own. By PPO that would pay for every further step, and did: attempts grew to
    three times their steps (docs/results/reinforcement.md). A verifier without scores for steps gives an outcome, among
    several whatever the credit."""
    usual: Credit = "sum" if method == "grpo" else "min"

    def rewarding(verifier: Verifier) -> RewardSource:
        of_steps = getattr(verifier, "per_step", False)
        return Verified(
            verifier, credit=(credit or usual) if of_steps or (credit and len(verifiers) == 1) else "outcome"
        )

    sources: dict[str, RewardSource] = {
        name: Gold(grader) if verifier is None else rewarding(verifier) for name, verifier in verifiers.items()
    }
    if len(sources) == 1 and next(iter(weights.values())) == 1:
        return next(iter(sources.values()))
    return Mixture(tuple((weights[name], source) for name, source in sources.items()))

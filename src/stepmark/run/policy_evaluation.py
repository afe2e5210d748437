"""The results of reinforcement: the policies' part of metrics.json.

Greedy accuracy of the generator (`sft`) and of each policy on the same problems (Math-Shepherd, table 2), and accuracy
of voting and of verifiers on n samples of each, before and after reinforcement (table 3: a verifier trained before
reinforcement goes stale). All intervals resample the same problems, so every difference is paired.

The paper does not say, we chose: a greedy answer that is truncated, could not be graded or is missing counts as wrong.
Curves are those of the policies' logs; they include updates that were rolled back.

    stepmark evaluate runs/reinforce_arithmetic
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np

from stepmark.evaluation.candidates import CandidatePool
from stepmark.evaluation.evaluate import ORACLE, accuracies, plain
from stepmark.evaluation.rank import SELF_CONSISTENCY, Method, candidates
from stepmark.evaluation.stats import Bootstrap, Floats, Interval
from stepmark.evaluation.token_curves import ONE_SAMPLE, WEIGHTED
from stepmark.run.policies import PolicySamples, TrainedPolicy
from stepmark.types import GradedSolution, Problem

CURVES = ("reward_curve", "accuracy_curve", "held_out_reward_curve", "kl_curve")
EXPLORED = ("same_reward", "empty", "truncated", "entropy")  # NAME_curve, of the attempts of each update
PER_SEED = "_per_seed"
DRAWS, RESAMPLES = 400, 2000

Curve = tuple[tuple[int, float], ...]  # (number of updates, value)


@dataclass(frozen=True, slots=True)
class PolicyTraining:
    """The results of one policy's training."""

    method: str
    updates: int  # number of updates, those included that were rolled back
    best: int  # the update whose policy was handed on as the result; 0 is the start
    stopped: str  # why training ended before its last update; "" if it did not
    tokens: int  # generated during training
    seconds: float
    kl: float  # of the policy that was handed on, from its start, in nats per token, on its own attempts


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """All measurements of the policies. Accuracies are shares in [0, 1]."""

    greedy: Mapping[str, Interval]  # policy -> accuracy
    greedy_differences: Mapping[str, Interval]  # "A - B" -> paired difference; A sorts after B, and sft is always B
    after: Mapping[str, Mapping[str, Mapping[int, Interval]]]  # policy -> method -> N -> accuracy
    # policy -> "A - B" -> N: difference of two methods on this policy's samples. In "METHOD - greedy" B is the policy's
    # greedy accuracy, in "METHOD - sft" it is the same method on the generator's samples.
    after_differences: Mapping[str, Mapping[str, Mapping[int, Interval]]]
    reward_curve: Mapping[str, Curve]  # policy -> mean reward of the attempts of each update
    accuracy_curve: Mapping[str, Curve]  # policy -> greedy accuracy on held-out problems
    held_out_reward_curve: Mapping[str, Curve]  # policy -> mean reward of the same greedy answers
    kl_curve: Mapping[str, Curve]  # policy -> KL from the reference policy, in nats per token
    policies: Mapping[str, PolicyTraining]
    # of the attempts of each update; without the policies of earlier versions' logs
    same_reward_curve: Mapping[str, Curve]  # policy -> share of the prompts whose attempts all earn the same
    empty_curve: Mapping[str, Curve]  # policy -> share of the attempts without text
    truncated_curve: Mapping[str, Curve]  # policy -> share of the attempts that ran out of tokens
    entropy_curve: Mapping[str, Curve]  # policy -> entropy of the policy, in nats per token

    def to_json(self) -> dict[str, Any]:
        """The layout of metrics.json: plain values, and keys that are text."""
        values: dict[str, Any] = plain(self)
        return values


def measure(
    problems: Sequence[Problem],
    tried: Mapping[str, PolicySamples],
    learned: Sequence[TrainedPolicy],
    *,
    ns: Sequence[int],
    aggregate: str,
    seed: int,
    first: str,
) -> PolicyMetrics:
    """Measures policies. `tried` has their answers to `problems` by name; `first` names the policy that the others
    started from.

    `ns` are the numbers of candidates, at most the number of samples. `aggregate` is the rule that makes one score of
    the step scores."""
    bootstrap = Bootstrap(len(problems), draws=RESAMPLES, seed=seed)
    greedy = {name: _correct(problems, samples.greedy) for name, samples in tried.items()}
    tables = {name: _table(problems, samples, ns, aggregate, seed) for name, samples in tried.items()}
    pairs = [(b, a) for a, b in combinations(sorted(set(greedy) - {first}), 2)]
    pairs = [(name, first) for name in greedy if name != first and first in greedy] + pairs
    differences = {
        name: dict(_differences(table, greedy[name], tables.get(first, {}), first)) for name, table in tables.items()
    }
    return PolicyMetrics(
        greedy=_intervals(bootstrap, greedy),
        greedy_differences=_intervals(bootstrap, {f"{a} - {b}": greedy[a] - greedy[b] for a, b in pairs}),
        after={name: _rows(bootstrap, table, ns) for name, table in tables.items() if table},
        after_differences={name: _rows(bootstrap, columns, ns) for name, columns in differences.items() if columns},
        reward_curve={x.policy: tuple(enumerate(x.result.rewards, 1)) for x in learned if x.result.rewards},
        accuracy_curve=_curves(learned, "looks", "accuracy"),
        held_out_reward_curve=_curves(learned, "looks", "reward"),
        kl_curve=_curves(learned, "looks", "kl"),
        policies={x.policy: _training(x) for x in learned},
        **{f"{name}_curve": _curves(learned, "explored", name) for name in EXPLORED},
    )


def _correct(problems: Sequence[Problem], grades: Iterable[GradedSolution]) -> Floats:
    """[problems]: 1 where the answer is correct, else 0."""
    correct = {g.problem_id for g in grades if g.grade.correct}
    return np.array([float(p.id in correct) for p in problems])


def _table(
    problems: Sequence[Problem], samples: PolicySamples, ns: Sequence[int], aggregate: str, seed: int
) -> dict[str, Floats]:
    """Method -> [problems, len(ns)], accuracy; empty where there are no samples."""
    if not samples.solutions:
        return {}
    joined = candidates(samples.solutions, samples.grades, samples.scores)
    graded = {g.solution_id: g for g in samples.grades}
    pools = [CandidatePool(p, joined.get(p.id, []), graded) for p in problems]
    methods = {name: Method.parse(name, aggregate) for name in samples.scores}
    return accuracies(pools, methods, ns, DRAWS, seed, None, [])


def _differences(
    table: Mapping[str, Floats], greedy: Floats, first: Mapping[str, Floats], name_of_first: str
) -> Iterator[tuple[str, Floats]]:
    """The differences to report for one policy: "A - B" -> [problems, len(ns)]. `first` is the table of its start."""
    verifiers = [name for name in table if name not in (ONE_SAMPLE, SELF_CONSISTENCY, ORACLE) and "+" not in name]
    for name in verifiers:
        for method in (name, WEIGHTED + name):
            yield f"{method} - {SELF_CONSISTENCY}", table[method] - table[SELF_CONSISTENCY]
    for i, name in enumerate(verifiers):
        for other in verifiers[:i]:
            yield f"{name} - {other}", table[name] - table[other]
            yield f"{WEIGHTED}{name} - {WEIGHTED}{other}", table[WEIGHTED + name] - table[WEIGHTED + other]
    for method, values in table.items():
        if method not in (ONE_SAMPLE, ORACLE):
            yield f"{method} - greedy", values - greedy[:, None]
        if method in first and first is not table:
            yield f"{method} - {name_of_first}", values - first[method]


def _intervals(bootstrap: Bootstrap, columns: Mapping[str, Floats]) -> dict[str, Interval]:
    if not columns:
        return {}
    return dict(zip(columns, bootstrap.mean(np.stack(list(columns.values()), axis=1)), strict=True))


def _rows(bootstrap: Bootstrap, table: Mapping[str, Floats], ns: Sequence[int]) -> dict[str, dict[int, Interval]]:
    columns = iter(bootstrap.mean(np.hstack(list(table.values()))))
    return {name: {n: next(columns) for n in ns} for name in table}


def _curves(learned: Sequence[TrainedPolicy], part: str, field: str) -> dict[str, Curve]:
    """policy -> the course of a field of the looks or of what was explored."""
    curves = {x.policy: tuple((y.update, getattr(y, field)) for y in getattr(x.result, part)) for x in learned}
    return {policy: curve for policy, curve in curves.items() if curve}


def _training(learned: TrainedPolicy) -> PolicyTraining:
    result = learned.result
    return PolicyTraining(
        learned.method, result.updates, result.best, result.stopped, result.tokens, result.seconds, result.kl
    )


# ---- several seeds as one ----


def pooled(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything in several runs (seed -> decoded metrics.json) that is not an interval: curves and training results.

    A curve is the mean over seeds, at the updates that all seeds have; CURVE_per_seed has the curve of each seed.
    Updates, best and kl are means; tokens and seconds are sums; the reasons for stopping are listed by seed."""
    metrics = list(runs.values())
    out: dict[str, Any] = {}
    for name in (*CURVES, *(f"{name}_curve" for name in EXPLORED)):
        if all(name in x for x in metrics):
            shared = [policy for policy in metrics[0][name] if all(policy in x[name] for x in metrics)]
            out[name] = {policy: _mean_curve([x[name][policy] for x in metrics]) for policy in shared}
            out[name + PER_SEED] = {
                policy: {str(seed): x[name][policy] for seed, x in runs.items()} for policy in shared
            }
    if all("policies" in x for x in metrics):
        shared = [policy for policy in metrics[0]["policies"] if all(policy in x["policies"] for x in metrics)]
        out["policies"] = {
            policy: _pool_trainings({seed: x["policies"][policy] for seed, x in runs.items()}) for policy in shared
        }
    return out


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    values = [{int(update): value for update, value in curve} for curve in curves]
    return [[u, mean(x[u] for x in values)] for u in sorted(set(values[0]).intersection(*values[1:]))]


def _pool_trainings(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    trainings = list(by_seed.values())
    stopped = {seed: x["stopped"] for seed, x in by_seed.items() if x["stopped"]}
    return {
        "method": trainings[0]["method"],
        "updates": mean(x["updates"] for x in trainings),
        "best": mean(x["best"] for x in trainings),
        "stopped": "; ".join(f"seed {seed}: {reason}" for seed, reason in stopped.items()),
        "tokens": sum(x["tokens"] for x in trainings),
        "seconds": round(sum(x["seconds"] for x in trainings), 3),
        "kl": mean(x["kl"] for x in trainings),
    }

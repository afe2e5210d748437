"""What reinforcement came to, in numbers: the policies' part of metrics.json.

Greedy accuracy of the generator (`sft`) and of each policy on the same problems (Math-Shepherd, table 2), and what
votes and verifiers make of n samples of each, before and after (table 3: a verifier trained before reinforcement goes
stale). All intervals resample the same problems, so every difference is paired.

Choices of ours: a greedy answer that did not end, could not be graded or is missing counts as wrong. Curves are as the
policies' logs have them: updates that were rolled back are in them.

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
PER_SEED = "_per_seed"
DRAWS, RESAMPLES = 400, 2000

Curve = tuple[tuple[int, float], ...]  # (updates made, value)


@dataclass(frozen=True, slots=True)
class PolicyTraining:
    """How one policy's training went."""

    method: str
    updates: int  # made, those included that were rolled back
    best: int  # the update whose policy was handed on; 0 is the one it started from
    stopped: str  # why it ended before its last update; "" if it didn't
    tokens: int  # generated for learning
    seconds: float
    kl: float  # of the policy that was handed on from the one it began as, nats a token, on its own attempts


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """Everything measured of the policies. Accuracies are shares in [0, 1]."""

    greedy: Mapping[str, Interval]  # policy -> accuracy
    greedy_differences: Mapping[str, Interval]  # "A - B" -> paired; sft is never A, else names that sort later are
    after: Mapping[str, Mapping[str, Mapping[int, Interval]]]  # policy -> method -> N -> accuracy
    # policy -> "A - B" -> N: two methods on this policy's samples; "METHOD - greedy": its greedy accuracy instead;
    # "METHOD - sft": the same method on the generator's samples
    after_differences: Mapping[str, Mapping[str, Mapping[int, Interval]]]
    reward_curve: Mapping[str, Curve]  # policy -> mean reward of each update's attempts
    accuracy_curve: Mapping[str, Curve]  # policy -> greedy accuracy on held-out problems
    held_out_reward_curve: Mapping[str, Curve]  # policy -> mean reward of those same greedy attempts
    kl_curve: Mapping[str, Curve]  # policy -> from the reference, nats a token
    policies: Mapping[str, PolicyTraining]

    def to_json(self) -> dict[str, Any]:
        """As metrics.json has it: plain values, text as keys."""
        found: dict[str, Any] = plain(self)
        return found


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
    """Measures policies (name -> what they made of `problems`), `first` being the one that all the others began as.

    `ns` are the numbers of candidates, at most as many as there are samples; `aggregate` makes step scores one."""
    bootstrap = Bootstrap(len(problems), draws=RESAMPLES, seed=seed)
    greedy = {name: _right(problems, x.greedy) for name, x in tried.items()}
    tables = {name: _table(problems, x, ns, aggregate, seed) for name, x in tried.items()}
    pairs = [(b, a) for a, b in combinations(sorted(set(greedy) - {first}), 2)]
    pairs = [(name, first) for name in greedy if name != first and first in greedy] + pairs
    apart = {name: dict(_apart(table, greedy[name], tables.get(first, {}), first)) for name, table in tables.items()}
    return PolicyMetrics(
        greedy=_intervals(bootstrap, greedy),
        greedy_differences=_intervals(bootstrap, {f"{a} - {b}": greedy[a] - greedy[b] for a, b in pairs}),
        after={name: _rows(bootstrap, table, ns) for name, table in tables.items() if table},
        after_differences={name: _rows(bootstrap, found, ns) for name, found in apart.items() if found},
        reward_curve={x.policy: tuple(enumerate(x.result.rewards, 1)) for x in learned if x.result.rewards},
        accuracy_curve=_looks(learned, "accuracy"),
        held_out_reward_curve=_looks(learned, "reward"),
        kl_curve=_looks(learned, "kl"),
        policies={x.policy: _outcome(x) for x in learned},
    )


def _right(problems: Sequence[Problem], grades: Iterable[GradedSolution]) -> Floats:
    """[problems]: 1 where the answer is right."""
    right = {g.problem_id for g in grades if g.grade.correct}
    return np.array([float(p.id in right) for p in problems])


def _table(
    problems: Sequence[Problem], tried: PolicySamples, ns: Sequence[int], aggregate: str, seed: int
) -> dict[str, Floats]:
    """Method -> [problems, len(ns)]; empty where there are no samples."""
    if not tried.solutions:
        return {}
    joined = candidates(tried.solutions, tried.grades, tried.scores)
    graded = {g.solution_id: g for g in tried.grades}
    pools = [CandidatePool(p, joined.get(p.id, []), graded) for p in problems]
    ways = {name: Method.parse(name, aggregate) for name in tried.scores}
    return accuracies(pools, ways, ns, DRAWS, seed, None, [])


def _apart(
    table: Mapping[str, Floats], greedy: Floats, first: Mapping[str, Floats], name_of_first: str
) -> Iterator[tuple[str, Floats]]:
    """What a reader asks of one policy's samples; `first` is the table of the one it began as."""
    verifiers = [name for name in table if name not in (ONE_SAMPLE, SELF_CONSISTENCY, ORACLE) and "+" not in name]
    for name in verifiers:
        for method in (name, WEIGHTED + name):
            yield f"{method} - {SELF_CONSISTENCY}", table[method] - table[SELF_CONSISTENCY]
    for i, name in enumerate(verifiers):
        for other in verifiers[:i]:
            yield f"{name} - {other}", table[name] - table[other]
            yield f"{WEIGHTED}{name} - {WEIGHTED}{other}", table[WEIGHTED + name] - table[WEIGHTED + other]
    for method, found in table.items():
        if method not in (ONE_SAMPLE, ORACLE):
            yield f"{method} - greedy", found - greedy[:, None]
        if method in first and first is not table:
            yield f"{method} - {name_of_first}", found - first[method]


def _intervals(bootstrap: Bootstrap, columns: Mapping[str, Floats]) -> dict[str, Interval]:
    if not columns:
        return {}
    return dict(zip(columns, bootstrap.mean(np.stack(list(columns.values()), axis=1)), strict=True))


def _rows(bootstrap: Bootstrap, table: Mapping[str, Floats], ns: Sequence[int]) -> dict[str, dict[int, Interval]]:
    columns = iter(bootstrap.mean(np.hstack(list(table.values()))))
    return {name: {n: next(columns) for n in ns} for name in table}


def _looks(learned: Sequence[TrainedPolicy], what: str) -> dict[str, Curve]:
    return {
        x.policy: tuple((look.update, getattr(look, what)) for look in x.result.looks)
        for x in learned
        if x.result.looks
    }


def _outcome(learned: TrainedPolicy) -> PolicyTraining:
    found = learned.result
    return PolicyTraining(
        learned.method, found.updates, found.best, found.stopped, found.tokens, found.seconds, found.kl
    )


# ---- several seeds as one ----


def pooled(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Of several runs (seed -> decoded metrics.json) what is no interval: curves, and how trainings went.

    A curve is the mean over seeds of the updates that all of them have; CURVE_per_seed has each one's. Updates, best
    and kl are means, tokens and seconds sums; why policies stopped is said seed by seed."""
    found = list(runs.values())
    out: dict[str, Any] = {}
    for name in CURVES:
        if all(name in x for x in found):
            shared = [policy for policy in found[0][name] if all(policy in x[name] for x in found)]
            out[name] = {policy: _mean_curve([x[name][policy] for x in found]) for policy in shared}
            out[name + PER_SEED] = {
                policy: {str(seed): x[name][policy] for seed, x in runs.items()} for policy in shared
            }
    if all("policies" in x for x in found):
        shared = [policy for policy in found[0]["policies"] if all(policy in x["policies"] for x in found)]
        out["policies"] = {
            policy: _together({seed: x["policies"][policy] for seed, x in runs.items()}) for policy in shared
        }
    return out


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    values = [{int(update): value for update, value in curve} for curve in curves]
    return [[u, mean(x[u] for x in values)] for u in sorted(set(values[0]).intersection(*values[1:]))]


def _together(outcomes: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    found = list(outcomes.values())
    stopped = {seed: x["stopped"] for seed, x in outcomes.items() if x["stopped"]}
    return {
        "method": found[0]["method"],
        "updates": mean(x["updates"] for x in found),
        "best": mean(x["best"] for x in found),
        "stopped": "; ".join(f"seed {seed}: {why}" for seed, why in stopped.items()),
        "tokens": sum(x["tokens"] for x in found),
        "seconds": round(sum(x["seconds"] for x in found), 3),
        "kl": mean(x["kl"] for x in found),
    }

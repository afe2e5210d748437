"""What the verifiers are worth on a test set: the numbers of metrics.json.

For N = 1 to 256 candidates, the accuracy of one sample, of plain voting, of best-of-N by each verifier, of votes
weighted by it (Math-Shepherd, section 3.4 and figure 3) and of the oracle that always finds a right candidate; as means
over all subsets of N of the stored candidates (stats.py says which are exact), with 95% bootstrap intervals by problem.
Beside it: paired differences, AUC, label quality against a step oracle (section 5.4), and which errors slip through.

Choices of ours: a candidate that did not end or has no answer can't be chosen and counts as wrong everywhere; so does
a candidate whose answer could not be graded (`rates` tells how many); a problem without candidates is a wrong answer; a
problem with fewer than N candidates enters with all it has, and an N that more than one problem in ten falls short of
is left out. `notes` says where that happened.

    stepmark evaluate runs/demo
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from stepmark.data import outcome_counts
from stepmark.errors import ConfigError, DataError
from stepmark.evaluation import stats, token_curves
from stepmark.evaluation.candidates import CandidatePool
from stepmark.evaluation.rank import SELF_CONSISTENCY, Method, candidates
from stepmark.evaluation.stats import Bootstrap, Floats, Interval, LabelQuality
from stepmark.evaluation.token_curves import ONE_SAMPLE as PASS_1
from stepmark.evaluation.token_curves import WEIGHTED, Compute, MeasuredRun, Way
from stepmark.types import (
    GradedSolution,
    LabelledSolution,
    Problem,
    Progress,
    Solution,
    Verification,
)

NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ORACLE = "oracle"
SHORT = 0.1  # an N is left out when a larger share of the problems has fewer candidates
EVIDENT = ("oracle", "outcome")  # sources of labels that are known, not estimated from rollouts

Oracle = Callable[[Problem, Solution], Sequence[bool]]  # one flag per step: is it right?
Pairs = dict[str, Interval]
KindOf = Callable[[Problem, Solution], str | None]  # what the first wrong step is; None where all are right


@dataclass(frozen=True, slots=True)
class Auc:
    """The chance that a right candidate outscores a wrong one. Only gradable, scored candidates that ended count."""

    within_problem: Interval | None  # mean over the problems that have both kinds; None without such a problem
    global_: float | None  # over all candidates of all problems; None without both kinds


@dataclass(frozen=True, slots=True)
class Missed:
    """How often a verifier lets one kind of error pass."""

    missed: int  # solutions whose first wrong step it gives more than one half
    total: int  # solutions that it scored and whose first wrong step is of this kind


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything measured. Accuracies are shares in [0, 1]; an empty part could not be measured."""

    problems: int  # test problems
    candidates: int  # solutions to them
    seed: int  # of the random subsets and the bootstrap
    best_of_n: Mapping[str, Mapping[int, Interval]]  # method -> N -> accuracy
    differences: Mapping[str, Mapping[int, Interval]]  # "A - B" -> N -> difference of accuracies, paired by problem
    auc: Mapping[str, Auc]  # verifier -> how well its scores order candidates
    auc_differences: Mapping[str, Interval]  # "B - A" -> difference within problems, paired by problem
    label_quality: Mapping[int, LabelQuality]  # rollouts per step -> agreement with the oracle
    errors_missed: Mapping[str, Mapping[str, Missed]]  # verifier -> kind of the first wrong step -> how often missed
    errors_selected: Mapping[str, Mapping[str, float]]  # verifier -> kind -> share of problems, at the largest N
    rates: Mapping[str, float]  # what happened -> share of the candidates
    notes: tuple[str, ...]  # for the reader, in sentences
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> wall seconds
    votes: Mapping[int, Interval] = field(default_factory=dict)  # of the main generative verifier: K -> as below
    votes_by_verifier: Mapping[str, Mapping[int, Interval]] = field(default_factory=dict)  # at the largest N, K -> acc.
    compute: Compute | None = None  # accuracy against tokens; None where solutions don't say how many they took
    rationales: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # source -> what came of them -> count
    ways: tuple[Way, ...] = ()  # behind `compute`, problem by problem; in by_problem.json

    def to_json(self) -> dict[str, Any]:
        """As metrics.json has it: plain values, text as keys."""
        found: dict[str, Any] = plain(dataclasses.replace(self, ways=()))
        del found["ways"]
        return found


def evaluate(
    problems: Sequence[Problem],
    solutions: Iterable[Solution],
    grades: Iterable[GradedSolution],
    verifications: Mapping[str, Iterable[Verification]],
    *,
    ns: Sequence[int] = NS,
    aggregates: Sequence[str] = ("min", "prod", "mean", "last"),
    seed: int = 0,
    labels: Iterable[LabelledSolution] = (),
    labelled_problems: Sequence[Problem] = (),
    rationales: Iterable[LabelledSolution] = (),
    oracle: Oracle | None = None,
    kind_of: KindOf | None = None,
    votes: Sequence[int] = (),
    draws: int = 400,
    resamples: int = 2000,
    seconds: Mapping[str, float] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Metrics:
    """Measures every verifier in `verifications` (name -> what it made of each solution) on `problems`.

    The first of `aggregates` goes under the verifier's own name, further ones under "NAME:AGGREGATE". `labels` are
    judged by `oracle`, on `labelled_problems` where they are not of the test problems; `rationales` are what generative
    verifiers could learn from. `votes` are Ks wanted beside the powers of two, for verifiers with votes. `draws` is the
    number of random subsets per vote, `resamples` that of the bootstrap. Raises DataError when nothing can be measured
    or a solution lacks its grade or verification, ConfigError for settings that make no sense."""
    _check(ns, aggregates, votes, draws, resamples)
    if not problems:
        raise DataError("no problem to evaluate on.")
    by_id = {p.id: p for p in problems}
    given = list(solutions)
    kept = {s.id: s for s in given if s.problem_id in by_id}
    if not kept:
        raise DataError(f"none of the {len(given)} solutions belongs to one of the {len(problems)} problems.")
    graded = {g.solution_id: g for g in grades}
    scored = {name: list(found) for name, found in verifications.items()}
    ways = _ways(scored, aggregates)
    joined = candidates(kept.values(), graded.values(), scored)
    pools = [CandidatePool(p, joined.get(p.id, []), graded) for p in problems]
    labelled = list(labels)
    notes = []
    if len(kept) < len(given):
        notes.append(f"{len(given) - len(kept)} solutions belong to none of the {len(problems)} problems: left out.")
    ns = _reachable(ns, [len(p.candidates) for p in pools], notes)
    table = accuracies(pools, ways, ns, draws, seed, progress, notes)
    bootstrap = Bootstrap(len(pools), draws=resamples, seed=seed)
    primary = {name: Method.parse(name, aggregates[0]) for name in scored}
    auc, auc_differences = _auc(pools, primary, bootstrap)
    ks = token_curves.grids(scored, votes, notes)
    by_votes = token_curves.with_votes(pools, scored, primary, ks, table, ns, draws=draws, seed=seed, progress=progress)
    curves = token_curves.curves(by_votes, ks, bootstrap)
    every = token_curves.ways(pools, kept, scored, ks, table, by_votes, ns, notes)
    missed, selected, flawed = _errors(pools, kept, primary, ns[-1], oracle, kind_of)
    return Metrics(
        problems=len(problems),
        candidates=len(kept),
        seed=seed,
        best_of_n=_intervals(bootstrap, table, ns),
        differences=_intervals(bootstrap, _differences(table, list(scored), ns), ns),
        auc=auc,
        auc_differences=auc_differences,
        label_quality=_label_quality(labelled, {p.id: p for p in [*labelled_problems, *problems]}, oracle, notes),
        errors_missed=missed,
        errors_selected=selected,
        rates=_rates(pools, scored, kept) | _rollout_rates(labelled) | flawed,
        compute=_costs(every, resamples, seed),
        notes=tuple(notes),
        seconds=dict(seconds or {}),
        votes=curves.get(token_curves.main_verifier(ks) or "", {}),
        votes_by_verifier=curves,
        rationales=outcome_counts.of_rationales(rationales),
        ways=every,
    )


def _costs(ways: tuple[Way, ...], resamples: int, seed: int) -> Compute | None:
    if not ways:
        return None
    return token_curves.summarise([MeasuredRun(ways, Bootstrap(len(ways[0].correct), draws=resamples, seed=seed))])


def accuracies(
    pools: Sequence[CandidatePool],
    ways: Mapping[str, Method],
    ns: Sequence[int],
    draws: int,
    seed: int,
    progress: Callable[[Progress], None] | None,
    notes: list[str],
) -> dict[str, Floats]:
    """Method -> [problems, len(ns)], the expected correctness of its choice. `ways` are verifiers' rules by name."""
    plain = [name for name in ways if ":" not in name]
    further = [name for name in ways if ":" in name]
    table = {
        method: np.zeros((len(pools), len(ns)))
        for method in [
            PASS_1,
            SELF_CONSISTENCY,
            *plain,
            *(WEIGHTED + name for name in plain),
            ORACLE,
            *further,
            *(WEIGHTED + name for name in further),
        ]
    }
    variance = np.zeros((1 + len(ways), len(ns)))
    started = time.monotonic()
    for i, pool in enumerate(pools):
        m = len(pool.candidates)
        if m:
            sizes = [min(n, m) for n in ns]
            correct = pool.correct.astype(float)
            scores = np.stack([pool.scores(rule) for rule in ways.values()]) if ways else np.empty((0, m))
            best = stats.best_of(scores, correct, sizes) if ways else scores
            weights = np.vstack([np.ones((1, m)), np.maximum(scores, 0)])
            votes = stats.votes(pool.answers, weights, pool.right, sizes, draws=draws, rng=pool.rng(seed))
            variance += votes.variance
            hits = int(pool.correct.sum())
            table[PASS_1][i] = correct.mean()
            table[ORACLE][i] = [stats.pass_at_k(m, hits, n) for n in sizes]
            table[SELF_CONSISTENCY][i] = votes.value[0]
            for v, name in enumerate(ways):
                table[name][i] = best[v]
                table[WEIGHTED + name][i] = votes.value[1 + v]
        if progress:
            progress(Progress("evaluate", i + 1, len(pools), time.monotonic() - started))
    if error := math.sqrt(variance.max()) / len(pools):
        notes.append(
            f"Where a problem has more than {draws} subsets of N candidates, {draws} random ones of them voted; "
            f"this adds a standard error of at most {100 * error:.2f} points. All else is exact over all subsets."
        )
    return table


def _differences(table: Mapping[str, Floats], names: Sequence[str], ns: Sequence[int]) -> dict[str, Floats]:
    """What a reader asks: does a verifier beat voting, does one beat another, does one fall with more candidates?"""
    pairs = [(WEIGHTED + v, SELF_CONSISTENCY) for v in names] + [(v, SELF_CONSISTENCY) for v in names]
    for i, v in enumerate(names):
        pairs += [(v, w) for w in names[:i]] + [(WEIGHTED + v, WEIGHTED + w) for w in names[:i]]
    found = {f"{a} - {b}": table[a] - table[b] for a, b in pairs}
    if 16 in ns:
        at = list(ns).index(16)
        found |= {f"{v} - {v}@16": table[v] - table[v][:, at : at + 1] for v in names}
    return found


def _intervals(bootstrap: Bootstrap, table: Mapping[str, Floats], ns: Sequence[int]) -> dict[str, dict[int, Interval]]:
    if not table:
        return {}
    columns = iter(bootstrap.mean(np.hstack(list(table.values()))))
    return {name: {n: next(columns) for n in ns} for name in table}


def _auc(
    pools: Sequence[CandidatePool], rules: Mapping[str, Method], bootstrap: Bootstrap
) -> tuple[dict[str, Auc], Pairs]:
    """Each verifier's AUC, and the paired differences of those within problems."""
    found, within = {}, {}
    for name, rule in rules.items():
        kept = []
        for pool in pools:
            scores = pool.scores(rule) if len(pool.candidates) else np.empty(0)
            usable = pool.gradable & (scores >= 0)
            kept.append((scores[usable], pool.correct[usable]))
        each = [stats.auc(scores, correct) for scores, correct in kept]
        both = np.array([a is not None for a in each], dtype=float)
        within[name] = np.array([a or 0.0 for a in each]), both
        overall = stats.auc(np.concatenate([s for s, _ in kept]), np.concatenate([c for _, c in kept]))
        found[name] = Auc(bootstrap.ratio(*within[name]) if both.any() else None, overall)
    pairs = {}
    for (a, (of_a, in_a)), (b, (of_b, in_b)) in combinations(within.items(), 2):
        both = in_a * in_b
        if both.any():
            pairs[f"{b} - {a}"] = bootstrap.ratio((of_b - of_a) * both, both)
    return found, pairs


def _label_quality(
    labels: Iterable[LabelledSolution], problems: Mapping[str, Problem], oracle: Oracle | None, notes: list[str]
) -> dict[int, LabelQuality]:
    if oracle is None:
        return {}
    correct, gradable, truth, sampled = [], [], [], set()
    for labelled in labels:
        problem = problems.get(labelled.solution.problem_id)
        if problem is None:
            raise DataError(
                f"labelled solution {labelled.key!r} belongs to no problem given: pass `labelled_problems`."
            )
        for label, right in zip(labelled.labels, oracle(problem, labelled.solution), strict=True):
            if label.source not in EVIDENT and not label.inferred:
                correct.append(label.correct)
                gradable.append(label.gradable)
                truth.append(right)
                sampled.add(label.gradable + label.truncated + label.ungradable)
    if not correct:
        return {}
    if len(sampled) > 1:
        notes.append(
            "Not every step has the same number of rollouts. If they were stopped early at the first correct one, the "
            "label quality below is biased: label without early stopping to measure it."
        )
    most = max(gradable)
    sizes = sorted({2**i for i in range(most.bit_length())} | {most})
    counts = np.array(correct), np.array(gradable), np.array(truth, dtype=bool)
    found = {n: stats.label_quality(*counts, n) for n in sizes if n}
    return {n: quality for n, quality in found.items() if quality is not None}


def _errors(
    pools: Sequence[CandidatePool],
    solutions: Mapping[str, Solution],
    rules: Mapping[str, Method],
    n: int,
    oracle: Oracle | None,
    kind_of: KindOf | None,
) -> tuple[dict[str, dict[str, Missed]], dict[str, dict[str, float]], dict[str, float]]:
    """Errors missed; errors selected from N candidates; of the correct choices, the share with a wrong step."""
    if oracle is None:
        return {}, {}, {}
    totals = {name: Counter[str]() for name in rules}
    missed = {name: Counter[str]() for name in rules}
    selected = {name: defaultdict[str, float](float) for name in rules}
    sound, flawed = dict.fromkeys(rules, 0.0), dict.fromkeys(rules, 0.0)
    for pool in pools:
        if not pool.candidates:
            continue
        kinds: list[str | None] = []
        for c in pool.candidates:
            solution = solutions[c.solution_id]
            flags = list(oracle(pool.problem, solution))
            kind = None
            if not all(flags):
                kind = (kind_of(pool.problem, solution) if kind_of else None) or "wrong step"
                at = flags.index(False)
                for name in rules:
                    scores = c.scores[name]
                    if scores and (len(scores) == len(flags) or len(scores) == 1):
                        totals[name][kind] += 1
                        missed[name][kind] += scores[at if len(scores) == len(flags) else 0] > 0.5
            kinds.append(kind)
        for name, rule in rules.items():
            chance = stats.chances(pool.scores(rule), [min(n, len(kinds))])[0].tolist()
            for kind, right, allowed, share in zip(kinds, pool.correct, pool.allowed, chance, strict=True):
                if right:
                    (sound if kind is None else flawed)[name] += share
                elif share:
                    selected[name][(kind or "no wrong step") if allowed else "no answer"] += share / len(pools)
    return (
        {name: {k: Missed(missed[name][k], t) for k, t in sorted(totals[name].items())} for name in rules},
        {name: dict(sorted(found.items())) for name, found in selected.items()},
        {f"correct_by_wrong_steps:{v}": flawed[v] / (sound[v] + flawed[v]) for v in rules if sound[v] + flawed[v]},
    )


def _rates(
    pools: Sequence[CandidatePool], scored: Mapping[str, Sequence[Verification]], kept: Mapping[str, Solution]
) -> dict[str, float]:
    everyone = [c for pool in pools for c in pool.candidates]
    total = len(everyone)
    finished = [c for c in everyone if c.finished]
    ungradable = sum(int(p.allowed.sum() - p.gradable.sum()) for p in pools)
    rates = {
        "truncated": 1 - len(finished) / total,
        "no_answer": sum(c.answer is None for c in finished) / total,
        "ungradable": ungradable / total,
        "problems_without_candidates": sum(not p.candidates for p in pools) / len(pools),
    }
    for name, found in scored.items():
        ends = Counter(v.outcome.value for v in found if v.solution_id in kept)
        rates |= {f"{name}_{outcome}": count / total for outcome, count in ends.items() if outcome != "scored"}
    return rates


def _rollout_rates(labelled: Sequence[LabelledSolution]) -> dict[str, float]:
    """Of the rollouts behind the labels, the shares that could not count."""
    found = outcome_counts.of_labels(labelled)
    shares = {"truncated": found.truncated, "ungradable": found.ungradable, "failed": found.failed}
    return {f"rollouts_{name}": count / found.total for name, count in shares.items()} if found.total else {}


def _ways(scored: Mapping[str, Sequence[Verification]], aggregates: Sequence[str]) -> dict[str, Method]:
    """Name in metrics.json -> rule. A verifier with one score per solution has nothing to aggregate."""
    for name in scored:
        if name in (PASS_1, ORACLE, SELF_CONSISTENCY) or ":" in name or "+" in name or " - " in name:
            raise ConfigError(f"a verifier can't go by the name {name!r}: rename it (no ':', '+' or ' - ').")
    ways = {name: Method.parse(name, aggregates[0]) for name in scored}
    for name, found in scored.items():
        if any(len(v.scores) > 1 for v in found):
            ways |= {f"{name}:{how}": Method.parse(name, how) for how in aggregates[1:]}
    return ways


def _reachable(ns: Sequence[int], pools: Sequence[int], notes: list[str]) -> list[int]:
    """The Ns that enough problems have candidates for, ascending."""
    short = {n: sum(0 < m < n for m in pools) for n in sorted(set(ns))}
    there = sum(m > 0 for m in pools)
    kept = [n for n in short if short[n] <= SHORT * there]
    if not kept:
        raise ConfigError(f"N = {min(short)} is more than the problems have candidates (at most {max(pools)}).")
    if dropped := [n for n in short if n not in kept]:
        notes.append(f"N = {', '.join(map(str, dropped))} left out: too few problems have that many candidates.")
    if partly := short[kept[-1]]:
        notes.append(
            f"{partly} problems have fewer than {kept[-1]} candidates: for larger N they enter with all they have."
        )
    if there < len(pools):
        notes.append(f"{len(pools) - there} of {len(pools)} problems have no candidate: they count as wrong.")
    return kept


def _check(ns: Sequence[int], aggregates: Sequence[str], votes: Sequence[int], draws: int, resamples: int) -> None:
    faults = []
    if votes and min(votes) < 1:
        faults.append(f"votes is {list(votes)}; each K must be 1 or more.")
    if not ns or min(ns) < 1:
        faults.append(f"ns is {list(ns)}; it needs at least one N, each 1 or more.")
    if not aggregates:
        faults.append("aggregates is empty; give at least one, such as 'min'.")
    if draws < 2 or resamples < 2:
        faults.append(f"draws is {draws} and resamples {resamples}; both must be at least 2.")
    if faults:
        raise ConfigError(faults)


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as metrics.json has them: plain values, text as keys."""
    if dataclasses.is_dataclass(value):
        return {f.name.rstrip("_"): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return value

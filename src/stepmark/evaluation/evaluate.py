"""Measures the verifiers on a test set: the figures of metrics.json.

For N = 1 to 256 candidates: the accuracy of one sample, of plain voting, of best-of-N by each verifier, of votes
weighted by it (Math-Shepherd, section 3.4 and figure 3), and of the oracle that always finds a right candidate. Each is
the mean over all subsets of N stored candidates (stats.py says which are exact), with a 95% bootstrap interval over
problems. In addition: paired differences, AUC, label quality against a step oracle (section 5.4), and the kinds of
errors that verifiers miss.

Our choices: a candidate that did not end or has no answer can't be chosen and counts as wrong everywhere. A candidate
whose answer could not be graded counts as wrong (`rates` has their share). A problem without candidates counts as
wrong. A problem with fewer than N candidates is used with all it has; an N is left out if more than one problem in ten
has fewer candidates. `notes` says where that happened.

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
SHORT = 0.1  # an N is left out if a larger share of the problems has fewer candidates
EVIDENT = ("oracle", "outcome")  # sources of labels that are known, not estimated from rollouts

Oracle = Callable[[Problem, Solution], Sequence[bool]]  # one flag per step: whether it is right
Pairs = dict[str, Interval]
KindOf = Callable[[Problem, Solution], str | None]  # the kind of the first wrong step; None if all steps are right


@dataclass(frozen=True, slots=True)
class Auc:
    """The probability that a right candidate has a higher score than a wrong one, over gradable and scored candidates
    that ended."""

    within_problem: Interval | None  # mean over the problems with right and wrong candidates; None without any
    global_: float | None  # over all candidates of all problems; None unless there are right and wrong ones


@dataclass(frozen=True, slots=True)
class Missed:
    """How often a verifier misses one kind of error."""

    missed: int  # solutions whose first wrong step is of this kind and has a score above one half
    total: int  # scored solutions whose first wrong step is of this kind


@dataclass(frozen=True, slots=True)
class Metrics:
    """All figures. Accuracies are shares in [0, 1]. A field is empty if it could not be measured."""

    problems: int  # test problems
    candidates: int  # solutions of them
    seed: int  # of the random subsets and the bootstrap
    best_of_n: Mapping[str, Mapping[int, Interval]]  # method -> N -> accuracy
    differences: Mapping[str, Mapping[int, Interval]]  # "A - B" -> N -> difference of accuracies, paired by problem
    auc: Mapping[str, Auc]  # verifier -> how well its scores order candidates
    auc_differences: Mapping[str, Interval]  # "B - A" -> difference within problems, paired by problem
    label_quality: Mapping[int, LabelQuality]  # rollouts per step -> agreement with the oracle
    errors_missed: Mapping[str, Mapping[str, Missed]]  # verifier -> kind of the first wrong step -> how often missed
    errors_selected: Mapping[str, Mapping[str, float]]  # verifier -> kind -> share of problems, at the largest N
    rates: Mapping[str, float]  # event, such as "truncated" -> share of the candidates
    notes: tuple[str, ...]  # for the reader, in sentences
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> wall seconds
    votes: Mapping[int, Interval] = field(default_factory=dict)  # votes_by_verifier of the main generative verifier
    votes_by_verifier: Mapping[str, Mapping[int, Interval]] = field(default_factory=dict)  # K -> acc., at the largest N
    compute: Compute | None = None  # accuracy against tokens; None if solutions have no token counts
    rationales: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # source -> "kept", "leak", ... -> count
    ways: tuple[Way, ...] = ()  # the figures behind `compute`, by problem; stored in by_problem.json

    def to_json(self) -> dict[str, Any]:
        """The content of metrics.json: plain values, with strings as keys."""
        values: dict[str, Any] = plain(dataclasses.replace(self, ways=()))
        del values["ways"]
        return values


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
    """Measures every verifier in `verifications` (name -> its verifications of the solutions) on `problems`.

    The figures of the first of `aggregates` have the verifier's own name, those of further ones "NAME:AGGREGATE".
    `labels` are compared with `oracle`; `labelled_problems` has their problems if these are not the test problems.
    `rationales` are the training data of generative verifiers. `votes` are Ks to measure in addition to the powers of
    two, for verifiers with votes. `draws` is the number of random subsets per vote, `resamples` that of the bootstrap.
    Raises DataError if nothing can be measured, or if a solution lacks its grade or a verification; ConfigError for
    settings that make no sense."""
    _check(ns, aggregates, votes, draws, resamples)
    if not problems:
        raise DataError("no problem to evaluate on.")
    by_id = {p.id: p for p in problems}
    sampled = list(solutions)
    kept = {s.id: s for s in sampled if s.problem_id in by_id}
    if not kept:
        raise DataError(f"none of the {len(sampled)} solutions belongs to one of the {len(problems)} problems.")
    graded = {g.solution_id: g for g in grades}
    scored = {name: list(verified) for name, verified in verifications.items()}
    ways = _ways(scored, aggregates)
    joined = candidates(kept.values(), graded.values(), scored)
    pools = [CandidatePool(p, joined.get(p.id, []), graded) for p in problems]
    labelled = list(labels)
    notes = []
    if len(kept) < len(sampled):
        notes.append(f"{len(sampled) - len(kept)} solutions belong to none of the {len(problems)} problems: left out.")
    ns = _reachable(ns, [len(p.candidates) for p in pools], notes)
    table = accuracies(pools, ways, ns, draws, seed, progress, notes)
    bootstrap = Bootstrap(len(pools), draws=resamples, seed=seed)
    primary = {name: Method.parse(name, aggregates[0]) for name in scored}
    auc, auc_differences = _auc(pools, primary, bootstrap)
    ks = token_curves.grids(scored, votes, notes)
    by_votes = token_curves.with_votes(pools, scored, primary, ks, table, ns, draws=draws, seed=seed, progress=progress)
    curves = token_curves.curves(by_votes, ks, bootstrap)
    all_ways = token_curves.ways(pools, kept, scored, ks, table, by_votes, ns, notes)
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
        compute=_compute(all_ways, resamples, seed),
        notes=tuple(notes),
        seconds=dict(seconds or {}),
        votes=curves.get(token_curves.main_verifier(ks) or "", {}),
        votes_by_verifier=curves,
        rationales=outcome_counts.of_rationales(rationales),
        ways=all_ways,
    )


def _compute(ways: tuple[Way, ...], resamples: int, seed: int) -> Compute | None:
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
    """Method -> [problems, len(ns)], the expected correctness of its choice. `ways` are the verifiers' methods by
    name."""
    primary = [name for name in ways if ":" not in name]
    further = [name for name in ways if ":" in name]
    table = {
        method: np.zeros((len(pools), len(ns)))
        for method in [
            PASS_1,
            SELF_CONSISTENCY,
            *primary,
            *(WEIGHTED + name for name in primary),
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
    """Paired differences: a verifier minus voting, a verifier minus another one, and a verifier at N minus itself at
    N = 16, which shows a fall with more candidates."""
    pairs = [(WEIGHTED + v, SELF_CONSISTENCY) for v in names] + [(v, SELF_CONSISTENCY) for v in names]
    for i, v in enumerate(names):
        pairs += [(v, w) for w in names[:i]] + [(WEIGHTED + v, WEIGHTED + w) for w in names[:i]]
    differences = {f"{a} - {b}": table[a] - table[b] for a, b in pairs}
    if 16 in ns:
        j = list(ns).index(16)
        differences |= {f"{v} - {v}@16": table[v] - table[v][:, j : j + 1] for v in names}
    return differences


def _intervals(bootstrap: Bootstrap, table: Mapping[str, Floats], ns: Sequence[int]) -> dict[str, dict[int, Interval]]:
    if not table:
        return {}
    columns = iter(bootstrap.mean(np.hstack(list(table.values()))))
    return {name: {n: next(columns) for n in ns} for name in table}


def _auc(
    pools: Sequence[CandidatePool], rules: Mapping[str, Method], bootstrap: Bootstrap
) -> tuple[dict[str, Auc], Pairs]:
    """Each verifier's AUC, and the paired differences of the AUCs within problems."""
    by_verifier, within = {}, {}
    for name, rule in rules.items():
        by_problem = []
        for pool in pools:
            scores = pool.scores(rule) if len(pool.candidates) else np.empty(0)
            usable = pool.gradable & (scores >= 0)
            by_problem.append((scores[usable], pool.correct[usable]))
        aucs = [stats.auc(scores, correct) for scores, correct in by_problem]
        defined = np.array([auc is not None for auc in aucs], dtype=float)
        within[name] = np.array([auc or 0.0 for auc in aucs]), defined
        overall = stats.auc(np.concatenate([s for s, _ in by_problem]), np.concatenate([c for _, c in by_problem]))
        by_verifier[name] = Auc(bootstrap.ratio(*within[name]) if defined.any() else None, overall)
    pairs = {}
    for (a, (auc_a, defined_a)), (b, (auc_b, defined_b)) in combinations(within.items(), 2):
        both = defined_a * defined_b
        if both.any():
            pairs[f"{b} - {a}"] = bootstrap.ratio((auc_b - auc_a) * both, both)
    return by_verifier, pairs


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
                f"labelled solution {labelled.key!r} belongs to none of the problems: pass its problem in "
                "`labelled_problems`."
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
    qualities = {n: stats.label_quality(*counts, n) for n in sizes if n}
    return {n: quality for n, quality in qualities.items() if quality is not None}


def _errors(
    pools: Sequence[CandidatePool],
    solutions: Mapping[str, Solution],
    rules: Mapping[str, Method],
    n: int,
    oracle: Oracle | None,
    kind_of: KindOf | None,
) -> tuple[dict[str, dict[str, Missed]], dict[str, dict[str, float]], dict[str, float]]:
    """Errors missed; errors among the choices from N candidates; the share of the correct choices that have a wrong
    step. All by verifier."""
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
                first_wrong = flags.index(False)
                for name in rules:
                    scores = c.scores[name]
                    if scores and (len(scores) == len(flags) or len(scores) == 1):
                        totals[name][kind] += 1
                        missed[name][kind] += scores[first_wrong if len(scores) == len(flags) else 0] > 0.5
            kinds.append(kind)
        for name, rule in rules.items():
            chances = stats.chances(pool.scores(rule), [min(n, len(kinds))])[0].tolist()
            for kind, right, allowed, share in zip(kinds, pool.correct, pool.allowed, chances, strict=True):
                if right:
                    (sound if kind is None else flawed)[name] += share
                elif share:
                    selected[name][(kind or "no wrong step") if allowed else "no answer"] += share / len(pools)
    return (
        {name: {k: Missed(missed[name][k], t) for k, t in sorted(totals[name].items())} for name in rules},
        {name: dict(sorted(shares.items())) for name, shares in selected.items()},
        {f"correct_by_wrong_steps:{v}": flawed[v] / (sound[v] + flawed[v]) for v in rules if sound[v] + flawed[v]},
    )


def _rates(
    pools: Sequence[CandidatePool], scored: Mapping[str, Sequence[Verification]], kept: Mapping[str, Solution]
) -> dict[str, float]:
    all_candidates = [c for pool in pools for c in pool.candidates]
    total = len(all_candidates)
    finished = [c for c in all_candidates if c.finished]
    ungradable = sum(int(p.allowed.sum() - p.gradable.sum()) for p in pools)
    rates = {
        "truncated": 1 - len(finished) / total,
        "no_answer": sum(c.answer is None for c in finished) / total,
        "ungradable": ungradable / total,
        "problems_without_candidates": sum(not p.candidates for p in pools) / len(pools),
    }
    for name, verified in scored.items():
        outcomes = Counter(v.outcome.value for v in verified if v.solution_id in kept)
        rates |= {f"{name}_{outcome}": count / total for outcome, count in outcomes.items() if outcome != "scored"}
    return rates


def _rollout_rates(labelled: Sequence[LabelledSolution]) -> dict[str, float]:
    """The shares of the labels' rollouts that were truncated, ungradable or failed."""
    outcomes = outcome_counts.of_labels(labelled)
    counts = {"truncated": outcomes.truncated, "ungradable": outcomes.ungradable, "failed": outcomes.failed}
    return {f"rollouts_{name}": count / outcomes.total for name, count in counts.items()} if outcomes.total else {}


def _ways(scored: Mapping[str, Sequence[Verification]], aggregates: Sequence[str]) -> dict[str, Method]:
    """Name in metrics.json -> method. A verifier with one score per solution has nothing to aggregate."""
    for name in scored:
        if name in (PASS_1, ORACLE, SELF_CONSISTENCY) or ":" in name or "+" in name or " - " in name:
            raise ConfigError(f"a verifier can't have the name {name!r}: rename it (no ':', '+' or ' - ').")
    ways = {name: Method.parse(name, aggregates[0]) for name in scored}
    for name, verified in scored.items():
        if any(len(v.scores) > 1 for v in verified):
            ways |= {f"{name}:{aggregate}": Method.parse(name, aggregate) for aggregate in aggregates[1:]}
    return ways


def _reachable(ns: Sequence[int], pools: Sequence[int], notes: list[str]) -> list[int]:
    """The Ns for which enough problems have N candidates, ascending. `pools` are the numbers of candidates. Raises
    ConfigError if there is no such N."""
    short = {n: sum(0 < m < n for m in pools) for n in sorted(set(ns))}
    nonempty = sum(m > 0 for m in pools)
    kept = [n for n in short if short[n] <= SHORT * nonempty]
    if not kept:
        raise ConfigError(
            f"N = {min(short)} is too large: the problems have at most {max(pools)} candidates. Give a smaller N, or "
            "sample more solutions."
        )
    if dropped := [n for n in short if n not in kept]:
        notes.append(f"N = {', '.join(map(str, dropped))} left out: too few problems have that many candidates.")
    if partly := short[kept[-1]]:
        notes.append(
            f"{partly} problems have fewer than {kept[-1]} candidates: for larger N they enter with all they have."
        )
    if nonempty < len(pools):
        notes.append(f"{len(pools) - nonempty} of {len(pools)} problems have no candidate: they count as wrong.")
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
    """Converts dataclasses, mappings and tuples to what JSON can hold: plain values, with strings as keys."""
    if dataclasses.is_dataclass(value):
        return {f.name.rstrip("_"): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return value

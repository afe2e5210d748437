"""Accuracy against cost: with fewer votes, with fewer candidates, and against the tokens per problem.

GenRM (arXiv 2408.15240, section 3.2) averages p(Yes) over K sampled rationales: `curves` gives the accuracy of
best-of-N with only K of the stored votes. "When To Solve, When To Verify" (arXiv 2504.01005, section 3) compares at
equal compute instead: S solutions with V verifications each cost S (1 + lambda V). `ways` gives the tokens per problem
and the accuracy of every selection method with N candidates and K votes; `summarise` gives the best at each budget, and
whether verification pays, for one run or for several runs of one recipe together.

Estimates. For K of V votes: put each solution's votes in a random order on a circle, and take the mean over all windows
of K neighbours, so that every vote counts equally often. The windows are disjoint if K divides V. There are as many
circles as needed for at least ENOUGH windows. Weighted votes use only the first WINDOWS windows and at most DRAWS
subsets of N.

Deviations. The paper counts generated tokens, with one lambda for all solutions. We count each solution's own tokens,
and for a verifier the tokens that it reads as well as those that it writes: Verification.tokens is the sum, with the
question and the solution once for all K rationales. The number of tokens read is not stored; we estimate it by the
share of the characters, and take the mean length of the stored rationales for all of them. K rationales cost their
share of the tokens written; if no rationale is stored, all tokens are taken to grow with K. The tokens that a generator
reads are not counted.

    stepmark plan --optimal runs/genrm_last_letter --tokens 500
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepmark.evaluation import stats
from stepmark.evaluation.candidates import CandidatePool
from stepmark.evaluation.rank import SELF_CONSISTENCY, Method
from stepmark.evaluation.stats import Bootstrap, Floats, Interval
from stepmark.types import Outcome, Progress, Solution, Verification

ONE_SAMPLE = "pass@1"
WEIGHTED = SELF_CONSISTENCY + "+"
JUDGE = "judge"  # a verifier whose name starts so was not trained, so it is not the run's main generative verifier
ENOUGH = 16  # windows for best-of-N
WINDOWS, DRAWS = 4, 100  # for weighted votes with K of the votes; they take far more time than best-of-N

Table = dict[tuple[str, int], Floats]  # (method, K or 0) -> [problems, len(ns)], the expected correctness of its choice
Scored = Mapping[str, Sequence[Verification]]
Show = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Point:
    """A selection method with its N and K, its tokens and its accuracy."""

    method: str  # as in best_of_n
    n: int  # candidates
    k: int  # rationales per candidate; 0 if the verifier writes none, or there is no verifier
    tokens: float  # per problem, mean over all: generated for N candidates, read and written to verify them
    accuracy: Interval
    front: bool = False  # whether no point with as many tokens or fewer is as accurate


@dataclass(frozen=True, slots=True)
class Way:
    """A selection method with its N and K, and its result on each problem. Runs can be combined from these."""

    method: str
    n: int
    k: int
    tokens: float  # as in Point
    correct: tuple[float, ...]  # by problem: the expected correctness of the choice


@dataclass(frozen=True, slots=True)
class Split:
    """The best points for budgets from `tokens` up to the `tokens` of the next split. Differences are paired by
    problem. The points were chosen on the same problems; the intervals do not account for that."""

    tokens: float  # per problem
    one: Point  # one sample
    voting: Point | None  # the best plain vote; None if the budget is too small for one
    verified: Point | None  # the best point with a verifier; None if the budget is too small for one
    voting_over_one: Interval | None
    verified_over_one: Interval | None
    verified_over_voting: Interval | None


@dataclass(frozen=True, slots=True)
class Compute:
    """Accuracy against tokens."""

    points: tuple[Point, ...]  # by rising tokens
    splits: tuple[Split, ...]  # by rising tokens, over all verifiers
    splits_by_verifier: Mapping[str, tuple[Split, ...]]  # the same, with only this verifier


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """All selection methods on one run's problems, with the bootstrap over these problems."""

    ways: Sequence[Way]  # at least one sample
    bootstrap: Bootstrap


def grids(scored: Scored, wanted: Sequence[int], notes: list[str]) -> dict[str, list[int]]:
    """The Ks for each verifier with votes: 1, 2, 4, ... and those in `wanted`, up to the number of votes stored, which
    is the last K."""
    ks_of = {}
    for name, verifications in scored.items():
        counts = [len(v.votes) for v in verifications if v.outcome is Outcome.SCORED]
        most = max(counts, default=0)
        if not most:
            continue
        powers = {2**i for i in range(most.bit_length())}
        ks_of[name] = sorted({k for k in powers | set(wanted) if k <= most} | {most})
        if short := sum(c < most for c in counts):
            notes.append(
                f"{name}: {short} of {len(counts)} solutions have fewer than {most} votes: there all they have count."
            )
    if ks_of and (too_large := [k for k in sorted(set(wanted)) if all(k > max(ks) for ks in ks_of.values())]):
        notes.append(f"K = {', '.join(map(str, too_large))} left out: no verifier has that many votes stored.")
    return ks_of


def main_verifier(ks: Mapping[str, Sequence[int]]) -> str | None:
    """The run's main generative verifier: the last of those with the most votes, without judges. A verifier with fewer
    votes has another purpose, for example to be a judge."""
    trained = {name: grid[-1] for name, grid in ks.items() if not name.startswith(JUDGE)}
    return max(reversed(trained), key=trained.__getitem__, default=None)


def with_votes(
    pools: Sequence[CandidatePool],
    scored: Scored,
    rules: Mapping[str, Method],
    ks: Mapping[str, Sequence[int]],
    table: Mapping[str, Floats],
    ns: Sequence[int],
    *,
    draws: int,
    seed: int,
    progress: Show | None = None,
) -> Table:
    """The expected correctness of each verifier with votes, for each of its Ks: of best-of-N and of weighted votes.
    `table` has the values with all votes, which are used for the largest K."""
    by_votes: Table = {}
    for name, grid in ks.items():
        for method in (name, WEIGHTED + name):
            by_votes |= {(method, k): np.zeros((len(pools), len(ns))) for k in grid}
            by_votes[method, grid[-1]] = table[method]
    by_id = {name: {v.solution_id: v for v in scored[name]} for name in ks}
    started = time.monotonic()
    for i, pool in enumerate(pools):
        for name, grid in ks.items():
            fewer = grid[:-1]
            if not pool.candidates or not fewer:
                continue
            sizes = [min(n, len(pool.candidates)) for n in ns]
            votes = [by_id[name][c.solution_id].votes for c in pool.candidates]
            windows = _windows(votes, pool.scores(rules[name]), fewer, grid[-1], pool.rng(seed, name))
            for k, scores in windows.items():
                by_votes[name, k][i] = stats.best_of(scores, pool.correct.astype(float), sizes).mean(axis=0)
            first = {k: scores[:WINDOWS] for k, scores in windows.items()}
            weights = np.maximum(np.concatenate(list(first.values())), 0)
            subsets = min(draws, DRAWS)
            values = stats.votes(pool.answers, weights, pool.right, sizes, draws=subsets, rng=pool.rng(seed)).value
            ends = np.cumsum([len(scores) for scores in first.values()])
            for k, part in zip(first, np.split(values, ends[:-1]), strict=True):
                by_votes[WEIGHTED + name, k][i] = part.mean(axis=0)
        if progress and ks:
            progress(Progress("evaluate votes", i + 1, len(pools), time.monotonic() - started))
    return by_votes


def curves(found: Table, ks: Mapping[str, Sequence[int]], bootstrap: Bootstrap) -> dict[str, dict[int, Interval]]:
    """Verifier -> K -> accuracy of best-of-N with the largest N. `found` is the table of `with_votes`."""
    return {
        name: dict(zip(grid, bootstrap.mean(np.stack([found[name, k][:, -1] for k in grid], axis=1)), strict=True))
        for name, grid in ks.items()
    }


def ways(
    pools: Sequence[CandidatePool],
    solutions: Mapping[str, Solution],
    scored: Scored,
    ks: Mapping[str, Sequence[int]],
    table: Mapping[str, Floats],
    found: Table,
    ns: Sequence[int],
    notes: list[str],
) -> tuple[Way, ...]:
    """Every selection method, with its tokens. `table` has the methods without votes, `found` those with votes; both
    are by problem.

    The result is empty if no solution has a token count. A solution without one gets the mean of its problem's other
    solutions; a problem without any token count is left out. `notes` gets a sentence for each of these cases."""
    uncounted = sum(not s.tokens for s in solutions.values())
    if uncounted == len(solutions):
        notes.append("Accuracy against tokens was not measured: solutions don't say how many tokens they took.")
        return ()
    known = np.array([not p.candidates or any(solutions[c.solution_id].tokens for c in p.candidates) for p in pools])
    if uncounted:
        note = (
            f"{uncounted} of {len(solutions)} solutions don't say how many tokens they took: in accuracy against "
            "tokens they are as long as their problem's others"
        )
        lost = int((~known).sum())
        notes.append(note + (f"; {lost} of {len(pools)} problems, where none does, it leaves out." if lost else "."))
        pools = [p for p, has_tokens in zip(pools, known, strict=True) if has_tokens]
    if free := [name for name, verifications in scored.items() if not any(v.tokens for v in verifications)]:
        notes.append(f"In accuracy against tokens, {', '.join(free)} counts as free: no tokens are stored for it.")
    sizes = np.array([[min(n, len(p.candidates)) for n in ns] for p in pools], dtype=float)
    sampled = np.array([_mean(filter(None, (solutions[c.solution_id].tokens for c in p.candidates))) for p in pools])
    all_ways: list[Way] = []

    def add(method: str, column: Floats, tokens: Floats, n: int, k: int) -> None:
        all_ways.append(Way(method, n, k, float(tokens.mean()), tuple(column[known].tolist())))

    add(ONE_SAMPLE, table[ONE_SAMPLE][:, 0], np.where(sizes[:, 0] > 0, sampled, 0.0), 1, 0)
    # With one candidate there is no choice: every method is the same as one sample, but takes more tokens.
    several = [(j, n) for j, n in enumerate(ns) if n > 1]
    for j, n in several:
        add(SELF_CONSISTENCY, table[SELF_CONSISTENCY][:, j], sizes[:, j] * sampled, n, 0)
    for name, verifications in scored.items():
        by_id = {v.solution_id: v for v in verifications}
        grid = ks.get(name, [0])
        for k in grid:
            verifying = np.array(
                [_mean(_cost(by_id[c.solution_id], p, solutions, k, grid[-1]) for c in p.candidates) for p in pools]
            )
            for j, n in several:
                for method in (name, WEIGHTED + name):
                    column = (found[method, k] if k else table[method])[:, j]
                    add(method, column, sizes[:, j] * (sampled + verifying), n, k)
    return tuple(all_ways)


def summarise(runs: Sequence[MeasuredRun]) -> Compute:
    """Accuracy against tokens of one run, or of several runs of one recipe together: the mean of every selection method
    that all runs have, and the best methods at each budget. Intervals are combined with stats.pooled; differences are
    paired by problem within each run."""
    common = set.intersection(*({(w.method, w.n, w.k) for w in r.ways} for r in runs))
    columns = [{(w.method, w.n, w.k): w for w in r.ways} for r in runs]
    keys = [key for key in columns[0] if key in common]
    # [problems, ways] of each run
    values = [np.array([by_key[key].correct for key in keys]).T for by_key in columns]
    tokens = [_mean(by_key[key].tokens for by_key in columns) for key in keys]
    intervals = _pooled(runs, values, 0.0)
    # By tokens, then by accuracy, the better first. If both are equal, the first in `keys`, which is the simpler one.
    order = sorted(range(len(keys)), key=lambda i: (tokens[i], -intervals[i].mean))
    best, ranked = -1.0, []
    for i in order:
        ranked.append(Point(*keys[i], tokens[i], intervals[i], intervals[i].mean > best + stats.TIE))
        best = max(best, intervals[i].mean)

    def gains(pairs: Sequence[tuple[int, int]]) -> list[Interval]:
        left, right = ([order[pair[side]] for pair in pairs] for side in (0, 1))
        return _pooled(runs, [v[:, left] - v[:, right] for v in values], -1.0) if pairs else []

    plain = {ONE_SAMPLE, SELF_CONSISTENCY}
    names = dict.fromkeys(m.removeprefix(WEIGHTED) for m, _, _ in keys if m not in plain)
    by_verifier = {name: _splits(ranked, gains, plain | {name, WEIGHTED + name}) for name in names}
    return Compute(tuple(ranked), _splits(ranked, gains), by_verifier)


def _pooled(runs: Sequence[MeasuredRun], values: Sequence[Floats], least: float) -> list[Interval]:
    """The mean of each column, pooled over the runs; `values` are [problems, X] of each run."""
    by_run = [r.bootstrap.mean(v) for r, v in zip(runs, values, strict=True)]
    return by_run[0] if len(by_run) == 1 else [stats.pooled(column, least) for column in zip(*by_run, strict=True)]


def _windows(
    votes: Sequence[Sequence[float]], scores: Floats, ks: Sequence[int], most: int, rng: np.random.Generator
) -> dict[int, Floats]:
    """K -> [windows, M] mean votes. A candidate without votes, or without a score, keeps its value in `scores` [M]."""
    by_count: dict[int, list[int]] = {}  # number of votes -> indices of the candidates with that many
    for j, candidate_votes in enumerate(votes):
        if candidate_votes and scores[j] >= 0:
            by_count.setdefault(len(candidate_votes), []).append(j)
    means = {}
    for k in ks:
        starts = np.arange(most // math.gcd(most, k)) * k
        circles = -(-ENOUGH // len(starts))
        rows = np.tile(scores, (circles, len(starts), 1))
        for size, indices in by_count.items():
            stored = np.array([votes[j] for j in indices])
            orders = rng.permuted(np.tile(stored, (circles, 1, 1)), axis=2)
            window = (starts[:, None] + np.arange(min(k, size))) % size
            rows[:, :, indices] = orders[:, :, window].mean(axis=3).transpose(0, 2, 1)
        means[k] = rows.reshape(-1, len(scores))
    return means


def _cost(v: Verification, pool: CandidatePool, solutions: Mapping[str, Solution], k: int, most: int) -> float:
    """Tokens of a verification with K rationales; all its tokens for K = 0. Without votes, `most` rationales are taken
    to have been drawn."""
    if not k:
        return v.tokens
    drawn = len(v.votes) or most  # `rationales` may hold fewer: only some are stored, for people to read
    written = drawn * _mean(map(len, v.rationales))
    read = len(pool.problem.question) + len(solutions[v.solution_id].text) if written else 0
    share = written / (written + read) if written else 1.0
    return v.tokens * (1 - share + share * min(1.0, k / drawn))


def _splits(
    points: Sequence[Point],
    gains: Callable[[Sequence[tuple[int, int]]], Sequence[Interval]],
    among: set[str] | None = None,
) -> tuple[Split, ...]:
    """The best point of each kind (one sample, voting, verified), at every budget where one of them changes. `points`
    are in order of rising tokens; `gains` gives the difference between the first and the second point of each pair."""
    best: dict[str, int] = {}
    states: list[tuple[int | None, ...]] = []
    budgets: list[float] = []
    for i, point in enumerate(points):
        if among is not None and point.method not in among:
            continue
        kind = {ONE_SAMPLE: "one", SELF_CONSISTENCY: "voting"}.get(point.method, "verified")
        if kind in best and point.accuracy.mean <= points[best[kind]].accuracy.mean + stats.TIE:
            continue
        best[kind] = i
        state = best.get("one"), best.get("voting"), best.get("verified")
        if budgets and budgets[-1] == point.tokens:
            states[-1] = state
        else:
            states.append(state)
            budgets.append(point.tokens)
    affordable = [(b, s) for b, s in zip(budgets, states, strict=True) if s[0] is not None]
    compared = [(s[a], s[b]) for _, s in affordable for a, b in ((1, 0), (2, 0), (2, 1))]
    pairs = list(dict.fromkeys((a, b) for a, b in compared if a is not None and b is not None))
    gain: dict[tuple[int | None, int | None], Interval] = dict(zip(pairs, gains(pairs), strict=True))

    def point_or_none(i: int | None) -> Point | None:
        return None if i is None else points[i]

    return tuple(
        Split(
            budget,
            points[one],
            point_or_none(voting),
            point_or_none(verified),
            gain.get((voting, one)),
            gain.get((verified, one)),
            gain.get((verified, voting)),
        )
        for budget, (one, voting, verified) in affordable
        if one is not None
    )


def _mean(values: Iterable[float]) -> float:
    items = list(values)
    return sum(items) / len(items) if items else 0.0

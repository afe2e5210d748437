"""What accuracy costs: fewer votes, fewer candidates, and the tokens that each way of choosing takes.

GenRM (arXiv 2408.15240, section 3.2) averages p(Yes) over K sampled rationales: `curves` says what best-of-N is worth
when only K of the stored votes count. "When To Solve, When To Verify" (arXiv 2504.01005, section 3) compares at equal
compute instead, S solutions and V verifications of each costing S (1 + lambda V): `ways` puts every way of choosing,
with N candidates and K votes, on one axis of tokens per problem; `summarise` says at each budget whether verification
pays, for one run or for several of one recipe together.

Estimates. K of V votes: the mean over windows of K neighbours in random circles of each solution's votes, all windows
of a circle, so that every vote counts equally often; they are disjoint where K divides V. There are circles for at
least ENOUGH windows. Weighted votes go through the first WINDOWS of them and at most DRAWS subsets of N.

Deviations. The paper counts generated tokens, a lambda for all; we count each solution's own, and what a verifier
reads as well as what it writes: Verification.tokens has both, the question and solution once for all K rationales. How
many of them were read is not stored: the share of the characters is taken for it, with all rationales as long as those
that are stored are on average. K rationales cost their share of the rest; where none is stored all is taken to grow
with K. What a generator reads is not counted.

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
JUDGE = "judge"  # a verifier of such a name was not trained: it is not the run's main generative one
ENOUGH = 16  # windows for choosing by score
WINDOWS, DRAWS = 4, 100  # for weighted votes with part of the votes; they cost far more than choosing by score

Table = dict[tuple[str, int], Floats]  # (method, K or 0) -> [problems, len(ns)], the expected correctness of its choice
Scored = Mapping[str, Sequence[Verification]]
Show = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Point:
    """A way of choosing, what it costs and what it is worth."""

    method: str  # as in best_of_n
    n: int  # candidates
    k: int  # rationales for each; 0 where the verifier writes none, or there is no verifier
    tokens: float  # for a problem, mean over all: generated for N candidates, read and written to verify them
    accuracy: Interval
    front: bool = False  # whether nothing that costs as much or less is as accurate


@dataclass(frozen=True, slots=True)
class Way:
    """A way of choosing, problem by problem: what is to be known to put several runs together."""

    method: str
    n: int
    k: int
    tokens: float  # as a point's
    correct: tuple[float, ...]  # by problem, the expected correctness of its choice


@dataclass(frozen=True, slots=True)
class Split:
    """The best ways to spend a budget, for budgets from `tokens` up to those of the next split. Differences are
    paired by problem; the points were chosen on these same problems, which the intervals don't know of."""

    tokens: float  # for a problem
    one: Point  # one sample
    voting: Point | None  # the best plain vote, if any can be paid
    verified: Point | None  # the best way with a verifier, if any can be paid
    voting_over_one: Interval | None
    verified_over_one: Interval | None
    verified_over_voting: Interval | None


@dataclass(frozen=True, slots=True)
class Compute:
    """Accuracy against tokens."""

    points: tuple[Point, ...]  # by rising tokens
    splits: tuple[Split, ...]  # by rising tokens, over all verifiers
    splits_by_verifier: Mapping[str, tuple[Split, ...]]  # the same with one verifier to choose from


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """Every way of choosing on one run's problems, and what it takes to resample them."""

    ways: Sequence[Way]  # at least the one of a single sample
    bootstrap: Bootstrap


def grids(scored: Scored, wanted: Sequence[int], notes: list[str]) -> dict[str, list[int]]:
    """The Ks for each verifier with votes: 1, 2, 4, ... and those wanted, up to the number stored, and that number."""
    found = {}
    for name, verifications in scored.items():
        counts = [len(v.votes) for v in verifications if v.outcome is Outcome.SCORED]
        most = max(counts, default=0)
        if not most:
            continue
        powers = {2**i for i in range(most.bit_length())}
        found[name] = sorted({k for k in powers | set(wanted) if k <= most} | {most})
        if short := sum(c < most for c in counts):
            notes.append(
                f"{name}: {short} of {len(counts)} solutions have fewer than {most} votes: there all they have count."
            )
    if found and (beyond := [k for k in sorted(set(wanted)) if all(k > max(ks) for ks in found.values())]):
        notes.append(f"K = {', '.join(map(str, beyond))} left out: no verifier has that many votes stored.")
    return found


def main_verifier(ks: Mapping[str, Sequence[int]]) -> str | None:
    """The run's main generative verifier: the last of those with the most votes, judges aside. One with fewer is there
    for something else, such as to be a judge."""
    own = {name: grid[-1] for name, grid in ks.items() if not name.startswith(JUDGE)}
    return max(reversed(own), key=own.__getitem__, default=None)


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
    """The table of each verifier with votes, alone and weighting votes, for each of its Ks. `table` has them for all
    of the votes, which is what is taken for the largest K."""
    found: Table = {}
    for name, grid in ks.items():
        for method in (name, WEIGHTED + name):
            found |= {(method, k): np.zeros((len(pools), len(ns))) for k in grid}
            found[method, grid[-1]] = table[method]
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
                found[name, k][i] = stats.best_of(scores, pool.correct.astype(float), sizes).mean(axis=0)
            few = {k: scores[:WINDOWS] for k, scores in windows.items()}
            weights = np.maximum(np.concatenate(list(few.values())), 0)
            least = min(draws, DRAWS)
            won = stats.votes(pool.answers, weights, pool.right, sizes, draws=least, rng=pool.rng(seed)).value
            ends = np.cumsum([len(scores) for scores in few.values()])
            for k, part in zip(few, np.split(won, ends[:-1]), strict=True):
                found[WEIGHTED + name, k][i] = part.mean(axis=0)
        if progress and ks:
            progress(Progress("evaluate votes", i + 1, len(pools), time.monotonic() - started))
    return found


def curves(found: Table, ks: Mapping[str, Sequence[int]], bootstrap: Bootstrap) -> dict[str, dict[int, Interval]]:
    """Verifier -> K -> accuracy of its best of the largest N."""
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
    """Every way of choosing with its tokens. `table` has those without votes, `found` those with; both by problem.
    Empty, with a note, where no solution says how many tokens it took. One that doesn't is taken to be as long as its
    problem's others are; a problem without any that does is left out. Both are noted."""
    untold = sum(not s.tokens for s in solutions.values())
    if untold == len(solutions):
        notes.append("Accuracy against tokens was not measured: solutions don't say how many tokens they took.")
        return ()
    known = np.array([not p.candidates or any(solutions[c.solution_id].tokens for c in p.candidates) for p in pools])
    if untold:
        note = (
            f"{untold} of {len(solutions)} solutions don't say how many tokens they took: in accuracy against tokens "
            "they are as long as their problem's others"
        )
        lost = int((~known).sum())
        notes.append(note + (f"; {lost} of {len(pools)} problems, where none does, it leaves out." if lost else "."))
        pools = [p for p, there in zip(pools, known, strict=True) if there]
    if free := [name for name, many in scored.items() if not any(v.tokens for v in many)]:
        notes.append(f"In accuracy against tokens, {', '.join(free)} counts as free: no tokens are stored for it.")
    sizes = np.array([[min(n, len(p.candidates)) for n in ns] for p in pools], dtype=float)
    drawn = np.array([_mean(filter(None, (solutions[c.solution_id].tokens for c in p.candidates))) for p in pools])
    every: list[Way] = []

    def add(method: str, column: Floats, tokens: Floats, n: int, k: int) -> None:
        every.append(Way(method, n, k, float(tokens.mean()), tuple(column[known].tolist())))

    add(ONE_SAMPLE, table[ONE_SAMPLE][:, 0], np.where(sizes[:, 0] > 0, drawn, 0.0), 1, 0)
    # One candidate leaves no choice: whatever chooses it is one sample, with tokens wasted.
    several = [(j, n) for j, n in enumerate(ns) if n > 1]
    for j, n in several:
        add(SELF_CONSISTENCY, table[SELF_CONSISTENCY][:, j], sizes[:, j] * drawn, n, 0)
    for name, many in scored.items():
        costs = {v.solution_id: v for v in many}
        grid = ks.get(name, [0])
        for k in grid:
            verified = np.array(
                [_mean(_cost(costs[c.solution_id], p, solutions, k, grid[-1]) for c in p.candidates) for p in pools]
            )
            for j, n in several:
                for method in (name, WEIGHTED + name):
                    column = (found[method, k] if k else table[method])[:, j]
                    add(method, column, sizes[:, j] * (drawn + verified), n, k)
    return tuple(every)


def summarise(runs: Sequence[MeasuredRun]) -> Compute:
    """Accuracy against tokens of one run, or of several of one recipe together: what every way of choosing that all of
    them have comes to on average, and which is best at each budget. Intervals are pooled as stats.pooled does it;
    differences are paired by problem within each run."""
    common = set.intersection(*({(w.method, w.n, w.k) for w in r.ways} for r in runs))
    columns = [{(w.method, w.n, w.k): w for w in r.ways} for r in runs]
    keys = [key for key in columns[0] if key in common]
    # [problems, ways] of each run
    values = [np.array([found[key].correct for key in keys]).T for found in columns]
    tokens = [_mean(found[key].tokens for found in columns) for key in keys]
    intervals = _together(runs, values, 0.0)
    # Of equal cost, the better first; of equal worth too, the one named first, which is the simpler.
    order = sorted(range(len(keys)), key=lambda i: (tokens[i], -intervals[i].mean))
    best, ranked = -1.0, []
    for i in order:
        ranked.append(Point(*keys[i], tokens[i], intervals[i], intervals[i].mean > best + stats.TIE))
        best = max(best, intervals[i].mean)

    def gains(pairs: Sequence[tuple[int, int]]) -> list[Interval]:
        left, right = ([order[pair[side]] for pair in pairs] for side in (0, 1))
        return _together(runs, [v[:, left] - v[:, right] for v in values], -1.0) if pairs else []

    plain = {ONE_SAMPLE, SELF_CONSISTENCY}
    names = dict.fromkeys(m.removeprefix(WEIGHTED) for m, _, _ in keys if m not in plain)
    by_verifier = {name: _splits(ranked, gains, plain | {name, WEIGHTED + name}) for name in names}
    return Compute(tuple(ranked), _splits(ranked, gains), by_verifier)


def _together(runs: Sequence[MeasuredRun], values: Sequence[Floats], least: float) -> list[Interval]:
    """The mean of each column; `values` are [problems, X] of each run."""
    found = [r.bootstrap.mean(v) for r, v in zip(runs, values, strict=True)]
    return found[0] if len(found) == 1 else [stats.pooled(each, least) for each in zip(*found, strict=True)]


def _windows(
    votes: Sequence[Sequence[float]], scores: Floats, ks: Sequence[int], most: int, rng: np.random.Generator
) -> dict[int, Floats]:
    """K -> [windows, M] mean votes; `scores` [M] stand where there are no votes, or no score."""
    alike: dict[int, list[int]] = {}  # how many votes -> which candidates have them
    for j, mine in enumerate(votes):
        if mine and scores[j] >= 0:
            alike.setdefault(len(mine), []).append(j)
    found = {}
    for k in ks:
        starts = np.arange(most // math.gcd(most, k)) * k
        circles = -(-ENOUGH // len(starts))
        rows = np.tile(scores, (circles, len(starts), 1))
        for size, which in alike.items():
            stored = np.array([votes[j] for j in which])
            orders = rng.permuted(np.tile(stored, (circles, 1, 1)), axis=2)
            taken = (starts[:, None] + np.arange(min(k, size))) % size
            rows[:, :, which] = orders[:, :, taken].mean(axis=3).transpose(0, 2, 1)
        found[k] = rows.reshape(-1, len(scores))
    return found


def _cost(v: Verification, pool: CandidatePool, solutions: Mapping[str, Solution], k: int, most: int) -> float:
    """Tokens for a verification with K rationales; as it is for K = 0. `most` are taken to have been drawn where no
    vote came of any."""
    if not k:
        return v.tokens
    drawn = len(v.votes) or most  # more than are stored, which are there to be looked at
    written = drawn * _mean(map(len, v.rationales))
    read = len(pool.problem.question) + len(solutions[v.solution_id].text) if written else 0
    share = written / (written + read) if written else 1.0
    return v.tokens * (1 - share + share * min(1.0, k / drawn))


def _splits(
    points: Sequence[Point],
    gains: Callable[[Sequence[tuple[int, int]]], Sequence[Interval]],
    among: set[str] | None = None,
) -> tuple[Split, ...]:
    """The best of each sort at every budget where one of them changes. `points` come by rising tokens; `gains` has
    the difference of the first and the second of a pair of them."""
    best: dict[str, int] = {}
    states: list[tuple[int | None, ...]] = []
    budgets: list[float] = []
    for i, point in enumerate(points):
        if among is not None and point.method not in among:
            continue
        sort = {ONE_SAMPLE: "one", SELF_CONSISTENCY: "voting"}.get(point.method, "verified")
        if sort in best and point.accuracy.mean <= points[best[sort]].accuracy.mean + stats.TIE:
            continue
        best[sort] = i
        state = best.get("one"), best.get("voting"), best.get("verified")
        if budgets and budgets[-1] == point.tokens:
            states[-1] = state
        else:
            states.append(state)
            budgets.append(point.tokens)
    paid = [(b, s) for b, s in zip(budgets, states, strict=True) if s[0] is not None]
    wanted = [(s[a], s[b]) for _, s in paid for a, b in ((1, 0), (2, 0), (2, 1))]
    pairs = list(dict.fromkeys((a, b) for a, b in wanted if a is not None and b is not None))
    gain: dict[tuple[int | None, int | None], Interval] = dict(zip(pairs, gains(pairs), strict=True))

    def at(i: int | None) -> Point | None:
        return None if i is None else points[i]

    return tuple(
        Split(
            budget,
            points[one],
            at(voting),
            at(verified),
            gain.get((voting, one)),
            gain.get((verified, one)),
            gain.get((verified, voting)),
        )
        for budget, (one, voting, verified) in paid
        if one is not None
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0

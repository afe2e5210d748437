"""Estimators: what a rule for choosing among N candidates is worth, how sure that is, how good labels and scores are.

All of them take one pool of M candidates per problem and ask for the mean over every subset of N <= M of them, which
has far less variance than "the first N". Exact, by counting subsets:

- pass@N: 1 - C(M-c, N) / C(M, N) with c correct among M (Chen et al. 2021, arXiv 2107.03374, equation 1). The same
  count gives P(y_HE = 1) after N rollouts, given c correct ones among M (Math-Shepherd, equation 2).
- best of N by a score: of the C(M, N) subsets, those within the r scores at or below a candidate's own (its own
  included) and not within the q below it, C(r, N) - C(q, N), have its score as their best; candidates of equal score
  share what falls to them, as a random choice would.

A vote has no closed form that is worth its cost: `votes` goes through all subsets where there are few (N = 1 and N = M
always) and through `draws` random ones otherwise, and returns the variance that this adds. With 300 problems and 400
draws its standard error is below 0.15 points, against about 2.5 for the choice of the problems.

Intervals resample problems, not candidates: percentile bootstrap, paired by construction, because
every column of a table is resampled with the same problems. Of several runs of one recipe, with problems and models
of their own, `pooled` makes one estimate.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

LEVEL = 0.95  # coverage of every interval
TIE = 1e-9  # sums of scores closer than this are equal: they were added in another order
# The 97.5% quantile of Student's t for 1, 2, ... degrees of freedom; beyond, an expansion from the normal one.
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95% interval, both in the estimate's unit."""

    mean: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n items, drawn without replacement, have at least one of the c marked ones among them.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k of {c} marked among {n} for k = {k}: it needs 0 <= c <= n and 1 <= k <= n.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def best_of(scores: Floats, correct: Floats, ns: Sequence[int]) -> Floats:
    """Expected correctness of the best-scored of N candidates, exactly, ties broken at random: [V, len(ns)].

    `scores` is [V, M] for V ways of scoring (-inf loses to all), `correct` [M] in [0, 1]. Raises as `chances` does."""
    found: Floats = _chances(scores, ns) @ correct
    return found


def chances(scores: Floats, ns: Sequence[int]) -> Floats:
    """How often each of M candidates is the best-scored one among N: [len(ns), M], rows summing to 1.
    Raises ValueError for an N outside 1..M or a score that is NaN."""
    found: Floats = _chances(scores[None], ns)[0]
    return found


def _chances(scores: Floats, ns: Sequence[int]) -> Floats:
    """The same for each row of `scores` [V, M]: [V, len(ns), M]."""
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; give -inf for a candidate that must lose.")
    m = scores.shape[1]
    below = (scores[:, :, None] > scores[:, None, :]).sum(axis=2)  # [V, M] candidates of a lower score
    upto = (scores[:, :, None] >= scores[:, None, :]).sum(axis=2)  # and those of the same, itself included
    within = np.stack([_subsets_within(m, n) for n in ns])
    found: Floats = ((within[:, upto] - within[:, below]) / (upto - below)).transpose(1, 0, 2)
    return found


@functools.lru_cache(maxsize=4096)
def _subsets_within(m: int, n: int) -> Floats:
    """Entry r of m + 1: the share of all size-n subsets of m that lie within the lowest r."""
    if not 1 <= n <= m:
        raise ValueError(f"best of {n} from a pool of {m}: N must be between 1 and {m}.")
    total = math.comb(m, n)
    return np.array([math.comb(r, n) / total for r in range(m + 1)])


@dataclass(frozen=True, slots=True)
class Votes:
    """What voting is worth on one problem."""

    value: Floats  # [V, len(ns)] expected correctness of the winning answer
    variance: Floats  # [V, len(ns)] of `value`, from looking at random subsets only; 0 where all were looked at


def votes(
    answers: Ints, weights: Floats, right: Floats, ns: Sequence[int], *, draws: int, rng: np.random.Generator
) -> Votes:
    """Expected correctness of the answer with the largest sum of weights among N candidates (Math-Shepherd, equation 6;
    all weights 1: plain voting). Ties are broken at random among the answers that tie.

    `answers` is [M], the number of each candidate's answer or -1 for one without a vote; `weights` [V, M], at least 0;
    `right` [K] says for each answer how correct it is. A subset without any vote counts as wrong."""
    ways, m = weights.shape
    k = len(right)
    shape = (ways, len(ns))
    value, variance = np.zeros(shape), np.zeros(shape)
    if not k:
        return Votes(value, variance)
    slot = np.where(answers < 0, k, answers)  # votes for nothing are counted apart, then dropped
    shuffled: Ints | None = None
    for i, n in enumerate(ns):
        if not 1 <= n <= m:
            raise ValueError(f"a vote of {n} from a pool of {m}: N must be between 1 and {m}.")
        exact = math.comb(m, n) <= draws
        if exact:
            subsets = np.array(list(itertools.combinations(range(m), n)))
        else:
            if shuffled is None:  # the same orders for every N: curves over N are smoother so
                shuffled = rng.permuted(np.tile(np.arange(m), (draws, 1)), axis=1)
            subsets = shuffled[:, :n]
        outcome = _winners(slot[subsets], weights[:, subsets], right)
        value[:, i] = outcome.mean(axis=1)
        if not exact:
            variance[:, i] = outcome.var(axis=1, ddof=1) / draws
    return Votes(value, variance)


def _winners(slot: Ints, weights: Floats, right: Floats) -> Floats:
    """[V, S]: correctness of the winner in each of S subsets; `slot` is [S, N], `weights` [V, S, N]."""
    ways, draws, _ = weights.shape
    k = len(right)
    row = slot + np.arange(draws)[:, None] * (k + 1)
    there = np.bincount(row.ravel(), minlength=draws * (k + 1)).reshape(draws, k + 1)[:, :k] > 0
    cell = row + np.arange(ways)[:, None, None] * (draws * (k + 1))
    size = ways * draws * (k + 1)
    sums = np.bincount(cell.ravel(), weights.ravel(), minlength=size).reshape(ways, draws, k + 1)[:, :, :k]
    sums = np.where(there, sums, -np.inf)
    first = there & (sums >= sums.max(axis=2, keepdims=True) - TIE)
    won: Floats = (first @ right) / np.maximum(first.sum(axis=2), 1)  # where nobody votes, 0 / 1
    return won


class Bootstrap:
    """Resampled problems, drawn once and used for every column, so that differences of columns are paired."""

    def __init__(self, problems: int, *, draws: int = 2000, seed: int = 0) -> None:
        if problems < 1:
            raise ValueError("no problem to resample.")
        rng = np.random.default_rng([seed, problems])
        # 8 bytes each, and how often a problem is drawn is small: 16 bits keep 2,000 x 10,000 at 40 MB.
        self.counts = np.stack([_resample(problems, rng) for _ in range(draws)])  # [draws, problems]

    def mean(self, values: Floats) -> list[Interval]:
        """The mean over problems of each column of `values` [problems, X], with its interval."""
        return self._intervals(values.mean(axis=0), self._sums(values) / len(values))

    def ratio(self, above: Floats, below: Floats) -> Interval:
        """sum(above) / sum(below) over problems, both [problems], with its interval. `below` has a positive sum;
        resamples where it has none are left out."""
        sums = self._sums(np.stack([above, below], axis=1))
        sums = sums[sums[:, 1] > 0]
        return self._intervals(above.sum(keepdims=True) / below.sum(), sums[:, :1] / sums[:, 1:])[0]

    def _sums(self, values: Floats) -> Floats:
        parts = [
            block.astype(float) @ values for block in np.array_split(self.counts, -(-self.counts.size // 2_000_000))
        ]
        return np.concatenate(parts)

    @staticmethod
    def _intervals(means: Floats, resampled: Floats) -> list[Interval]:
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return [Interval(float(m), float(a), float(b)) for m, a, b in zip(means, low, high, strict=True)]


def _resample(problems: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    return np.bincount(rng.integers(problems, size=problems), minlength=problems).astype(np.uint16)


def pooled(runs: Sequence[Interval], least: float = 0.0) -> Interval:
    """The mean of several runs' estimates. Its interval, within [least, 1], reaches on either side as far as the wider
    of two: Student's t over the estimates, and the runs' own intervals together (sqrt(sum of squares) / runs)."""
    each, count = [r.mean for r in runs], len(runs)
    middle = mean(each)
    between = student(count - 1) * stdev(each) / math.sqrt(count) if count > 1 else 0.0
    below = math.sqrt(sum((r.mean - r.low) ** 2 for r in runs)) / count
    above = math.sqrt(sum((r.high - r.mean) ** 2 for r in runs)) / count
    return Interval(middle, max(least, middle - max(between, below)), min(1.0, middle + max(between, above)))


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t; off by less than 0.001."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z, v = NORMAL, freedom
    second, third = 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * v) + second / (96 * v**2) + third / (384 * v**3)


def auc(scores: Floats, right: NDArray[np.bool_]) -> float | None:
    """The chance that a right item outscores a wrong one, ties counted half; both [M]. None without either kind."""
    positive = int(right.sum())
    negative = len(right) - positive
    if not positive or not negative:
        return None
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2  # of each score, from 1, ties at their middle
    return float((rank[group[right]].sum() - positive * (positive + 1) / 2) / (positive * negative))


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """How labels from N rollouts agree with the truth."""

    accuracy: float  # share of steps whose hard label is the truth
    false_positive_rate: float | None  # share of wrong steps that are labelled right; None without a wrong step
    false_negative_rate: float | None  # share of right steps that are labelled wrong; None without a right step
    soft_cross_entropy: float  # of the truth under the soft label, in nats per step
    steps: int  # steps that have at least N gradable rollouts: only these count


def label_quality(
    correct: Ints, gradable: Ints, truth: NDArray[np.bool_], n: int, *, clip: float = 0.01
) -> LabelQuality | None:
    """Quality of the labels that n of the stored rollouts would have given, in expectation over which n, exactly.

    `correct` and `gradable` are the counts of each step and `truth` the oracle's word on it, all [steps]. Soft labels
    are kept `clip` away from 0 and 1 (the paper leaves its choice unstated; without one a single 0 of 8 on a right
    step costs infinity). None if no step has n gradable rollouts. Rollouts must not have been stopped early."""
    kept = gradable >= n
    correct, gradable, truth = correct[kept], gradable[kept], truth[kept]
    if not len(truth):
        return None
    pairs, where = np.unique(np.stack([correct, gradable], axis=1), axis=0, return_inverse=True)
    where = where.reshape(-1)
    positive = np.array([pass_at_k(int(m), int(c), n) for c, m in pairs])[where]
    losses = np.array([_soft_losses(int(c), int(m), n, clip) for c, m in pairs])[where]
    wrong, right = positive[~truth], 1 - positive[truth]
    return LabelQuality(
        accuracy=float(np.where(truth, positive, 1 - positive).mean()),
        false_positive_rate=float(wrong.mean()) if len(wrong) else None,
        false_negative_rate=float(right.mean()) if len(right) else None,
        soft_cross_entropy=float(np.where(truth, losses[:, 1], losses[:, 0]).mean()),
        steps=len(truth),
    )


def _soft_losses(c: int, m: int, n: int, clip: float) -> tuple[float, float]:
    """Expected cross-entropy of the soft label from n of m rollouts, c of them correct: of a wrong step, of a right."""
    wrong = right = 0.0
    total = math.comb(m, n)
    for hits in range(max(0, n - (m - c)), min(c, n) + 1):
        chance = math.comb(c, hits) * math.comb(m - c, n - hits) / total
        soft = min(max(hits / n, clip), 1 - clip)
        wrong -= chance * math.log(1 - soft)
        right -= chance * math.log(soft)
    return wrong, right

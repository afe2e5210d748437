"""Estimators: the accuracy of a rule that chooses among N candidates, its interval, the quality of labels and scores.

Each estimator takes a pool of M candidates per problem and gives the mean over all subsets of N <= M candidates, which
has far less variance than "the first N". Exact, by counting subsets:

- pass@N: 1 - C(M-c, N) / C(M, N) with c correct among M (Chen et al. 2021, arXiv 2107.03374, equation 1). The same
  count gives P(y_HE = 1) after N rollouts, given c correct ones among M (Math-Shepherd, equation 2).
- best of N by a score: let r candidates have a score at or below a candidate's own (itself included), and q a lower
  one. Then its score is the best in C(r, N) - C(q, N) of the C(M, N) subsets. Candidates of equal score share these
  subsets equally, which is what a random choice among them gives.

Votes have no closed form that is cheap enough. `votes` uses all subsets if there are few (always for N = 1 and N = M),
and `draws` random subsets otherwise; it returns the variance that the random choice adds. With 300 problems and 400
draws, that standard error is below 0.15 points; the choice of the problems adds about 2.5 points.

Intervals are percentile bootstrap intervals over problems, not candidates. They are paired, because every column of a
table is resampled with the same problems. `pooled` combines the estimates of several runs of one recipe, each with its
own problems and models.
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
TIE = 1e-9  # sums of scores closer than this are equal: they were added in a different order
# The 97.5% quantile of Student's t for 1, 2, ... degrees of freedom; for more, an expansion of the normal quantile.
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95% interval, both in the estimate's unit."""

    mean: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n items, drawn without replacement, include at least one of c marked items. Raises
    ValueError unless 0 <= c <= n and 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k with c = {c}, n = {n}, k = {k}: it needs 0 <= c <= n and 1 <= k <= n.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def best_of(scores: Floats, correct: Floats, ns: Sequence[int]) -> Floats:
    """Expected correctness of the best-scored of N candidates, exact, with ties broken at random: [V, len(ns)].

    `scores` is [V, M] for V scorers (-inf loses to all); `correct` is [M], in [0, 1]. Raises as `chances` does."""
    expected: Floats = _chances(scores, ns) @ correct
    return expected


def chances(scores: Floats, ns: Sequence[int]) -> Floats:
    """The probability that each of M candidates is the best-scored among N: [len(ns), M], each row sums to 1.
    Raises ValueError for an N outside 1..M, or a score that is NaN."""
    probabilities: Floats = _chances(scores[None], ns)[0]
    return probabilities


def _chances(scores: Floats, ns: Sequence[int]) -> Floats:
    """`chances` for each row of `scores` [V, M]: [V, len(ns), M]."""
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; give -inf for a candidate that must lose.")
    m = scores.shape[1]
    lower = (scores[:, :, None] > scores[:, None, :]).sum(axis=2)  # [V, M] candidates with a lower score
    upto = (scores[:, :, None] >= scores[:, None, :]).sum(axis=2)  # and those with the same score, itself included
    within = np.stack([_subsets_within(m, n) for n in ns])
    probabilities: Floats = ((within[:, upto] - within[:, lower]) / (upto - lower)).transpose(1, 0, 2)
    return probabilities


@functools.lru_cache(maxsize=4096)
def _subsets_within(m: int, n: int) -> Floats:
    """[m + 1]: entry r is the share of the size-n subsets of m items that lie within the lowest r items."""
    if not 1 <= n <= m:
        raise ValueError(f"best of {n} from a pool of {m}: N must be between 1 and {m}.")
    total = math.comb(m, n)
    return np.array([math.comb(r, n) / total for r in range(m + 1)])


@dataclass(frozen=True, slots=True)
class Votes:
    """The expected result of voting on one problem."""

    value: Floats  # [V, len(ns)] expected correctness of the winning answer
    variance: Floats  # [V, len(ns)] of `value`, because only random subsets were used; 0 where all were used


def votes(
    answers: Ints, weights: Floats, right: Floats, ns: Sequence[int], *, draws: int, rng: np.random.Generator
) -> Votes:
    """Expected correctness of the answer with the largest sum of weights among N candidates (Math-Shepherd, equation 6;
    with all weights 1: plain voting). Ties are broken at random among the tied answers.

    `answers` [M] is the index of each candidate's answer, or -1 for a candidate without a vote. `weights` is [V, M], at
    least 0. `right` [K] is the correctness of each answer. A subset without votes counts as wrong."""
    rows, m = weights.shape
    k = len(right)
    shape = (rows, len(ns))
    value, variance = np.zeros(shape), np.zeros(shape)
    if not k:
        return Votes(value, variance)
    slot = np.where(answers < 0, k, answers)  # candidates without a vote get a slot of their own, dropped later
    shuffled: Ints | None = None
    for i, n in enumerate(ns):
        if not 1 <= n <= m:
            raise ValueError(f"a vote of {n} from a pool of {m}: N must be between 1 and {m}.")
        exact = math.comb(m, n) <= draws
        if exact:
            subsets = np.array(list(itertools.combinations(range(m), n)))
        else:
            if shuffled is None:  # the same orders for every N make curves over N smoother
                shuffled = rng.permuted(np.tile(np.arange(m), (draws, 1)), axis=1)
            subsets = shuffled[:, :n]
        outcome = _winners(slot[subsets], weights[:, subsets], right)
        value[:, i] = outcome.mean(axis=1)
        if not exact:
            variance[:, i] = outcome.var(axis=1, ddof=1) / draws
    return Votes(value, variance)


def _winners(slot: Ints, weights: Floats, right: Floats) -> Floats:
    """[V, S]: correctness of the winner in each of S subsets; `slot` is [S, N], `weights` [V, S, N]."""
    rows, draws, _ = weights.shape
    k = len(right)
    cell = slot + np.arange(draws)[:, None] * (k + 1)
    has_vote = np.bincount(cell.ravel(), minlength=draws * (k + 1)).reshape(draws, k + 1)[:, :k] > 0
    cell_by_row = cell + np.arange(rows)[:, None, None] * (draws * (k + 1))
    size = rows * draws * (k + 1)
    sums = np.bincount(cell_by_row.ravel(), weights.ravel(), minlength=size).reshape(rows, draws, k + 1)[:, :, :k]
    sums = np.where(has_vote, sums, -np.inf)
    winners = has_vote & (sums >= sums.max(axis=2, keepdims=True) - TIE)
    correct: Floats = (winners @ right) / np.maximum(winners.sum(axis=2), 1)  # 0 / 1 for a subset without votes
    return correct


class Bootstrap:
    """A bootstrap over problems. The resamples are drawn once and used for every column, so that differences between
    columns are paired."""

    def __init__(self, problems: int, *, draws: int = 2000, seed: int = 0) -> None:
        if problems < 1:
            raise ValueError("no problem to resample.")
        rng = np.random.default_rng([seed, problems])
        # A problem is drawn only a few times, so 16 bits are enough: 2,000 x 10,000 counts take 40 MB.
        self.counts = np.stack([_resample(problems, rng) for _ in range(draws)])  # [draws, problems]

    def mean(self, values: Floats) -> list[Interval]:
        """The mean over problems of each column of `values` [problems, X], with its interval."""
        return self._intervals(values.mean(axis=0), self._sums(values) / len(values))

    def ratio(self, above: Floats, below: Floats) -> Interval:
        """sum(above) / sum(below) over problems, both [problems], with its interval. The sum of `below` must be
        positive; resamples in which it is not are left out."""
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
    """The mean of several runs' estimates. On each side, its interval is as wide as the wider of two: Student's t over
    the estimates, and the runs' own intervals combined (sqrt(sum of squares) / runs). It is cut to [least, 1]."""
    means, count = [r.mean for r in runs], len(runs)
    middle = mean(means)
    between = student(count - 1) * stdev(means) / math.sqrt(count) if count > 1 else 0.0
    below = math.sqrt(sum((r.mean - r.low) ** 2 for r in runs)) / count
    above = math.sqrt(sum((r.high - r.mean) ** 2 for r in runs)) / count
    return Interval(middle, max(least, middle - max(between, below)), min(1.0, middle + max(between, above)))


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t with `freedom` degrees of freedom; the error is below 0.001."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z, v = NORMAL, freedom
    second, third = 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * v) + second / (96 * v**2) + third / (384 * v**3)


def auc(scores: Floats, right: NDArray[np.bool_]) -> float | None:
    """The probability that a right item has a higher score than a wrong one; ties count half. Both are [M]. None
    unless there are right items and wrong items."""
    positive = int(right.sum())
    negative = len(right) - positive
    if not positive or not negative:
        return None
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2  # of each score, from 1; tied scores get the mean of their ranks
    return float((rank[group[right]].sum() - positive * (positive + 1) / 2) / (positive * negative))


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """The agreement of labels from N rollouts with the truth."""

    accuracy: float  # share of steps whose hard label is the truth
    false_positive_rate: float | None  # share of wrong steps that are labelled right; None without a wrong step
    false_negative_rate: float | None  # share of right steps that are labelled wrong; None without a right step
    soft_cross_entropy: float  # of the truth under the soft label, in nats per step
    steps: int  # steps with at least N gradable rollouts; only these count


def label_quality(
    correct: Ints, gradable: Ints, truth: NDArray[np.bool_], n: int, *, clip: float = 0.01
) -> LabelQuality | None:
    """Expected quality of the labels that n of the stored rollouts would give, exact over all choices of n rollouts.

    `correct` and `gradable` are the counts of each step, `truth` is the oracle's verdict on it; all are [steps]. Soft
    labels are kept `clip` away from 0 and 1: the paper does not state its value, and without one a single 0 of 8 on a
    right step costs infinity. None if no step has n gradable rollouts. Rollouts must not have been stopped early."""
    kept = gradable >= n
    correct, gradable, truth = correct[kept], gradable[kept], truth[kept]
    if not len(truth):
        return None
    pairs, pair_of = np.unique(np.stack([correct, gradable], axis=1), axis=0, return_inverse=True)
    pair_of = pair_of.reshape(-1)
    positive = np.array([pass_at_k(int(m), int(c), n) for c, m in pairs])[pair_of]
    losses = np.array([_soft_losses(int(c), int(m), n, clip) for c, m in pairs])[pair_of]
    wrong, right = positive[~truth], 1 - positive[truth]
    return LabelQuality(
        accuracy=_mean(np.where(truth, positive, 1 - positive)),
        false_positive_rate=_mean(wrong) if len(wrong) else None,
        false_negative_rate=_mean(right) if len(right) else None,
        soft_cross_entropy=_mean(np.where(truth, losses[:, 1], losses[:, 0])),
        steps=len(truth),
    )


def _mean(values: Floats) -> float:
    """The mean, to the last digit the same in whatever order the values come."""
    return math.fsum(values.tolist()) / len(values)


def _soft_losses(c: int, m: int, n: int, clip: float) -> tuple[float, float]:
    """Expected cross-entropies of the soft label from n of m rollouts, c of which are correct: if the step is wrong,
    and if it is right."""
    wrong = right = 0.0
    total = math.comb(m, n)
    for hits in range(max(0, n - (m - c)), min(c, n) + 1):
        probability = math.comb(c, hits) * math.comb(m - c, n - hits) / total
        soft = min(max(hits / n, clip), 1 - clip)
        wrong -= probability * math.log(1 - soft)
        right -= probability * math.log(soft)
    return wrong, right

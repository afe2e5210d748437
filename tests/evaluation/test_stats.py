"""Estimators against brute force over all subsets, against scikit-learn, and against known answers."""

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from seeds import SEED
from stepmark.evaluation import stats
from stepmark.evaluation.stats import Bootstrap

SCORES = st.sampled_from([-math.inf, 0.0, 0.25, 0.5, 0.5000001, 1.0])  # few values, so that ties are common


@st.composite
def pools(draw):
    m = draw(st.integers(1, 7))
    listed = lambda values: draw(st.lists(values, min_size=m, max_size=m))  # noqa: E731
    return listed(SCORES), listed(st.booleans()), listed(st.integers(-1, 2)), draw(st.integers(1, m))


def test_pass_at_k_of_the_paper_that_defined_it():
    assert stats.pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert stats.pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert stats.pass_at_k(5, 2, 4) == 1.0
    assert stats.pass_at_k(256, 0, 256) == 0.0
    assert 0 < stats.pass_at_k(10_000, 1, 5_000) < 1


@settings(deadline=None)
@given(pools())
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(pool):
    _, correct, _, n = pool
    expected = fmean(any(s) for s in itertools.combinations(correct, n))
    assert stats.pass_at_k(len(correct), sum(correct), n) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_makes_no_sense(n, c, k):
    with pytest.raises(ValueError, match="needs"):
        stats.pass_at_k(n, c, k)


@settings(deadline=None)
@given(pools())
def test_best_of_n_is_the_mean_over_all_subsets_with_random_ties(pool):
    scores, correct, _, n = pool

    def chosen(subset):
        top = max(scores[i] for i in subset)
        return fmean(correct[i] for i in subset if scores[i] == top)

    expected = fmean(map(chosen, itertools.combinations(range(len(scores)), n)))
    values = stats.best_of(np.array([scores, scores[::-1]]), np.array(correct, float), [n, 1])
    assert values[0, 0] == pytest.approx(expected, abs=1e-12)
    assert values[:, 1] == pytest.approx(fmean(correct), abs=1e-12)


def test_best_of_n_known_answers():
    correct = np.array([1.0, 0, 0, 0])
    perfect, worst, blind = [1.0, 0, 0, 0], [0.0, 1, 1, 1], [0.5] * 4
    values = stats.best_of(np.array([perfect, worst, blind]), correct, [1, 2, 4])
    assert values.tolist() == [[0.25, 0.5, 1], [0.25, 0, 0], [0.25, 0.25, 0.25]]


def test_best_of_a_large_pool_stays_exact():
    correct = np.zeros(256)
    correct[0] = 1
    values = stats.best_of(np.arange(256.0, 0, -1)[None], correct, [1, 64, 256])
    assert values[0] == pytest.approx([1 / 256, 64 / 256, 1], rel=1e-12)


def test_best_of_n_refuses_a_bad_n_and_a_score_that_is_no_number():
    with pytest.raises(ValueError, match="between 1 and 2"):
        stats.best_of(np.zeros((1, 2)), np.zeros(2), [3])
    with pytest.raises(ValueError, match="NaN"):
        stats.best_of(np.full((1, 2), np.nan), np.zeros(2), [1])


@settings(deadline=None)
@given(pools(), st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3))
def test_a_vote_is_the_mean_over_all_subsets_where_they_are_few(pool, right):
    scores, _, answers, n = pool
    weights = [[1.0] * len(answers), [max(s, 0.0) for s in scores]]

    def chosen(subset, weight):
        answered = {answers[i] for i in subset} - {-1}
        sums = {a: math.fsum(weight[i] for i in subset if answers[i] == a) for a in answered}
        top = max(sums.values(), default=0)
        return fmean([right[a] for a, s in sums.items() if abs(s - top) < 1e-9] or [0])

    expected = [fmean(chosen(s, w) for s in itertools.combinations(range(len(answers)), n)) for w in weights]
    result = stats.votes(
        np.array(answers), np.array(weights), np.array(right), [n], draws=100, rng=np.random.default_rng(0)
    )
    assert result.value[:, 0] == pytest.approx(expected, abs=1e-12)
    assert not result.variance.any()


@pytest.mark.robust
def test_a_vote_over_random_subsets_is_near_the_exact_one_and_knows_how_near():
    rng = np.random.default_rng(SEED + 1)
    answers, weights = rng.integers(-1, 4, 14), np.stack([np.ones(14), rng.random(14)])
    right = np.array([0, 1, 0, 0.5])
    exact = stats.votes(answers, weights, right, [3, 7, 14], draws=10_000, rng=rng)
    near = stats.votes(answers, weights, right, [3, 7, 14], draws=300, rng=rng)
    assert not exact.variance.any()
    assert (near.variance[:, :2] > 0).all()
    assert not near.variance[:, 2].any()
    assert np.abs(near.value - exact.value).max() < 5 * np.sqrt(near.variance.max())
    assert (np.abs(near.value - exact.value) <= 5 * np.sqrt(near.variance)).all()


def test_votes_of_equal_sums_tie_whatever_the_order_of_adding():
    answers = np.array([0, 1, 0, 1, 0, 1])
    weights = np.array([[0.1, 0.3, 0.2, 0.2, 0.3, 0.1]])
    result = stats.votes(answers, weights, np.array([1.0, 0]), [6], draws=10, rng=np.random.default_rng(0))
    assert result.value.tolist() == [[0.5]]


def test_a_vote_without_answers_is_lost():
    result = stats.votes(
        np.array([-1, -1]), np.ones((1, 2)), np.array([]), [1, 2], draws=10, rng=np.random.default_rng(0)
    )
    assert result.value.tolist() == [[0, 0]]


@pytest.mark.robust
def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng, inside = np.random.default_rng(SEED), 0
    for seed in range(600 * SEED, 600 * SEED + 600):
        sample = (rng.random((150, 1)) < 0.3).astype(float)
        (interval,) = Bootstrap(150, draws=300, seed=seed).mean(sample)
        assert interval.mean == pytest.approx(sample.mean())
        inside += interval.low <= 0.3 <= interval.high
    assert 0.9 <= inside / 600 <= 0.99


@pytest.mark.robust
def test_bootstrap_half_width_is_that_of_the_normal_approximation():
    sample = (np.arange(400) % 2).astype(float)[:, None]
    (interval,) = Bootstrap(400, draws=4000, seed=SEED + 3).mean(sample)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.1)


@pytest.mark.robust
def test_differences_are_paired():
    rng = np.random.default_rng(SEED)
    a = rng.random(200)
    boot = Bootstrap(200, draws=500)
    shifted, noisy = boot.mean(np.stack([a + 0.1 - a, a - rng.permutation(a)], axis=1))
    assert shifted.low == pytest.approx(0.1)
    assert shifted.high == pytest.approx(0.1)
    assert noisy.low < 0 < noisy.high
    assert boot.mean(a[:, None]) == Bootstrap(200, draws=500).mean(a[:, None])
    assert boot.mean(a[:, None]) != Bootstrap(200, draws=500, seed=1).mean(a[:, None])


def test_bootstrap_of_a_ratio_and_of_nothing():
    counted = np.array([1.0, 0, 1, 1])
    ratio = Bootstrap(4, draws=500).ratio(np.array([0.5, 0, 1, 0]), counted)
    assert ratio.mean == pytest.approx(0.5)
    assert 0 <= ratio.low <= ratio.mean <= ratio.high <= 1
    with pytest.raises(ValueError, match="no problem"):
        Bootstrap(0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans()), min_size=1, max_size=20))
def test_auc_is_that_of_scikit_learn(items):
    scores, right = np.array([s for s, _ in items]), np.array([r for _, r in items])
    if right.all() or not right.any():
        assert stats.auc(scores, right) is None
    else:
        assert stats.auc(scores, right) == pytest.approx(roc_auc_score(right, scores))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 6),
)
def test_label_quality_is_the_mean_over_all_subsets_of_rollouts(steps, n):
    steps = [(c, c + w, t) for c, w, t in steps]
    result = stats.label_quality(*map(np.array, zip(*steps, strict=True)), n)
    kept = [(c, m, t) for c, m, t in steps if m >= n]
    if not kept:
        assert result is None
        return
    hard, loss = [], []
    for c, m, truth in kept:
        drawn = [sum(s) for s in itertools.combinations([1] * c + [0] * (m - c), n)]
        hard.append(fmean(d > 0 for d in drawn))
        loss.append(fmean(-math.log(min(max(d / n if truth else 1 - d / n, 0.01), 0.99)) for d in drawn))
    truths = [t for *_, t in kept]
    assert result is not None
    assert result.steps == len(kept)
    assert result.accuracy == pytest.approx(fmean(h if t else 1 - h for h, t in zip(hard, truths, strict=True)))
    assert result.soft_cross_entropy == pytest.approx(fmean(loss))
    wrong = [h for h, t in zip(hard, truths, strict=True) if not t]
    right = [1 - h for h, t in zip(hard, truths, strict=True) if t]
    assert result.false_positive_rate == (pytest.approx(fmean(wrong)) if wrong else None)
    assert result.false_negative_rate == (pytest.approx(fmean(right)) if right else None)


def test_label_quality_is_to_the_last_digit_the_same_in_any_order():
    """Several workers write labels in the order in which they end."""
    rng = np.random.default_rng(3)
    gradable = rng.integers(4, 17, 400)
    correct, truth = rng.integers(0, gradable + 1), rng.random(400) < 0.6
    expected = stats.label_quality(correct, gradable, truth, 4)
    for _ in range(20):
        order = rng.permutation(400)
        assert stats.label_quality(correct[order], gradable[order], truth[order], 4) == expected


def test_label_quality_at_all_rollouts_is_that_of_the_labels_themselves():
    correct, truth = np.array([0, 8, 2, 0, 5, 8]), np.array([False, True, False, True, True, True])
    result = stats.label_quality(correct, np.full(6, 8), truth, 8)
    assert result is not None
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.false_positive_rate == pytest.approx(1 / 2)
    assert result.false_negative_rate == pytest.approx(1 / 4)
    assert result.soft_cross_entropy == pytest.approx(log_loss(truth, np.clip(correct / 8, 0.01, 0.99)))


@pytest.mark.robust
def test_more_rollouts_mean_more_false_positives_and_fewer_false_negatives():
    rng = np.random.default_rng(SEED)
    truth = rng.random(500) < 0.5
    correct = rng.binomial(16, np.where(truth, 0.4, 0.05))
    curve = [stats.label_quality(correct, np.full(500, 16), truth, n) for n in (1, 2, 4, 8, 16)]
    positives = [q.false_positive_rate for q in curve if q]
    negatives = [q.false_negative_rate for q in curve if q]
    assert positives == sorted(positives)
    assert negatives == sorted(negatives, reverse=True)
    assert positives[0] < positives[-1]
    assert negatives[0] > negatives[-1]

"""Token rewards and advantages: examples by hand, and comparisons with other implementations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.rl.advantages import gae, group_relative, penalised, token_rewards, whitened
from stepmark.types import Reward

FLOATS = st.floats(-5, 5, width=32)


@st.composite
def attempts(draw):
    """A reward with step rewards, the ends of the steps, and the attempt's length."""
    length = draw(st.integers(1, 30))
    ends = sorted(draw(st.lists(st.integers(0, length - 1), max_size=6, unique=True)))
    steps = tuple(draw(st.lists(FLOATS, min_size=len(ends), max_size=len(ends))))
    return Reward("p#0", steps, draw(FLOATS)), ends, length


class TestTokenRewards:
    def test_by_hand(self):
        rewards = token_rewards(Reward("p#0", (0.5, 0.25), 1.0), [2, 4], 6)
        assert rewards.tolist() == [0, 0, 0.5, 0, 0.25, 1.0]

    def test_a_step_that_ends_the_attempt_and_the_end_add_up(self):
        assert token_rewards(Reward("p#0", (0.5,), 1.0), [1], 2).tolist() == [0, 1.5]

    @given(attempts())
    def test_nothing_is_lost_and_nothing_falls_elsewhere(self, attempt):
        reward, ends, length = attempt
        rewards = token_rewards(reward, ends, length)
        assert rewards.sum() == pytest.approx(reward.total, abs=1e-4)
        assert set(np.flatnonzero(rewards)) <= {*ends, length - 1}

    @pytest.mark.parametrize("ends", [[6], [-1], []])
    def test_after_the_last_token_there_is_nothing_to_reward(self, ends):
        with pytest.raises(ValueError, match="p#0"):
            token_rewards(Reward("p#0", (1.0,)), ends, 6)


class TestGae:
    def test_by_hand(self):
        # delta_2 = 1 - 0.2 = 0.8; delta_1 = 0.5 * 0.2 - 0.4 = -0.3; delta_0 = 0.5 * 0.4 - 0.1 = 0.1
        # A_2 = 0.8; A_1 = -0.3 + 0.5 * 0.8 * 0.8 = 0.02; A_0 = 0.1 + 0.4 * 0.02 = 0.108
        advantages, returns = gae(np.array([0, 0, 1], np.float32), np.array([0.1, 0.4, 0.2], np.float32), 0.5, 0.8)
        assert advantages == pytest.approx([0.108, 0.02, 0.8], abs=1e-6)
        assert returns == pytest.approx([0.208, 0.42, 1.0], abs=1e-6)

    @given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
    def test_it_is_the_weighted_mean_of_all_looks_ahead(self, pairs, gamma, lam):
        """Equation 14 of Schulman et al. 2016: (1 - lambda) * sum over n of lambda^(n-1) times the n-step advantage;
        after the end all n-step advantages are equal."""
        r, v = (np.array(x, np.float64) for x in zip(*pairs, strict=True))
        length = len(r)
        after = np.append(v, 0.0)
        expected = []
        for t in range(length):
            looks = [
                sum(gamma**k * r[t + k] for k in range(n)) + gamma**n * after[min(t + n, length)] - v[t]
                for n in range(1, length - t + 1)
            ]
            last = looks[-1]
            expected.append(
                (1 - lam) * sum(lam**n * x for n, x in enumerate(looks[:-1])) + lam ** (len(looks) - 1) * last
            )
        advantages, returns = gae(r.astype(np.float32), v.astype(np.float32), gamma, lam)
        assert advantages == pytest.approx(expected, abs=1e-3)
        assert returns == pytest.approx(np.array(expected) + v, abs=1e-3)


class TestGroups:
    def test_outcomes_by_hand(self):
        rewards = [Reward(f"p#{i}", (0.0, 0.0), x) for i, x in enumerate((1.0, 0.0, 0.0, 1.0))]
        advantages = group_relative(rewards, [[0, 1]] * 4, [2, 3, 2, 2], by_step=False)
        assert [a.tolist() for a in advantages] == [
            pytest.approx([x] * n, abs=1e-4) for x, n in ((1, 2), (-1, 3), (-1, 2), (1, 2))
        ]

    def test_steps_by_hand(self):
        """Rewards 1, 0 and 0, 0 and 1, 1: mean 1/2, standard deviation 1/2. A token's advantage is the sum of its own
        step's and all later steps' normalised rewards."""
        rewards = [Reward("p#0", (1.0, 0.0)), Reward("p#1", (0.0, 0.0)), Reward("p#2", (1.0, 1.0))]
        advantages = group_relative(rewards, [[1, 3], [0, 1], [0, 2]], [5, 3, 3], by_step=True)
        assert advantages[0] == pytest.approx([0, 0, -1, -1, 0], abs=1e-4)
        assert advantages[1] == pytest.approx([-2, -1, 0], abs=1e-4)
        assert advantages[2] == pytest.approx([2, 1, 1], abs=1e-4)

    def test_attempts_that_earn_the_same_teach_nothing(self):
        rewards = [Reward("p#0", (0.7,), 0.0), Reward("p#1", (0.7,), 0.0)]
        for by_step in (True, False):
            assert all(not a.any() for a in group_relative(rewards, [[0], [1]], [1, 2], by_step))

    def test_an_outcome_beside_steps_is_compared_with_outcomes(self):
        """All step rewards are equal and two of four attempts are correct, so only the outcomes differ."""
        rewards = [Reward(f"p#{i}", (0.9, 0.9), right) for i, right in enumerate((0.5, 0.0, 0.5, 0.0))]
        advantages = group_relative(rewards, [[0, 2]] * 4, [4] * 4, by_step=True)
        assert [a.tolist() for a in advantages] == [pytest.approx([x] * 4, abs=1e-4) for x in (1, -1, 1, -1)]

    def test_a_minimum_of_many_steps_is_worth_one_of_few(self):
        """Shares of a minimum are normalised by attempt: only the minimum counts, not the number of steps."""
        rewards = [Reward("p#0", (0.0, 0.5)), Reward("p#1", (0.0, 0.0, 0.0, 0.5)), Reward("p#2", (0.3, 0.0))]
        advantages = group_relative(rewards, [[0, 1], [0, 1, 2, 3], [0, 1]], [2, 4, 2], by_step=False)
        assert advantages[0][0] == pytest.approx(advantages[1][0])
        assert advantages[0][0] > 0 > advantages[2][0]

    def test_an_attempt_without_steps_has_its_end(self):
        rewards = [Reward("p#0", (1.0,), 1.0), Reward("p#1", (), 0.0)]
        advantages = group_relative(rewards, [[0], []], [2, 1], by_step=True)
        assert advantages[0] == pytest.approx([1, 1], abs=1e-4)  # the one step there is is like all steps
        assert advantages[1] == pytest.approx([-1], abs=1e-4)

    @given(st.lists(attempts(), min_size=2, max_size=6))
    def test_against_another_way_to_add_up(self, group):
        rewards, ends, lengths = zip(*group, strict=True)

        def normal(x, pool):
            pool = np.array(pool, dtype=np.float64)
            return (x - pool.mean()) / (pool.std() + 1e-6) if pool.std() > 1e-6 else 0.0

        steps, lasts = [x for r in rewards for x in r.steps], [r.end for r in rewards]
        advantages = group_relative(rewards, ends, lengths, by_step=True)
        for a, r, at, length in zip(advantages, rewards, ends, lengths, strict=True):
            expected = [
                sum(normal(x, steps) for x, t in zip(r.steps, at, strict=True) if t >= token) + normal(r.end, lasts)
                for token in range(length)
            ]
            assert a == pytest.approx(expected, abs=1e-3)


def test_the_divergence_is_charged_token_by_token():
    rewards, new, reference = (np.array(x, np.float32) for x in ([0, 1], [-1.0, -2.0], [-1.5, -1.0]))
    assert penalised(rewards, new, reference, 0.1).tolist() == pytest.approx([-0.05, 1.1])
    assert penalised(rewards, new, new, 5.0).tolist() == [0, 1]


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=8), min_size=1, max_size=5))
def test_whitening_keeps_the_order_and_the_lengths(parts):
    normalised = whitened([np.array(p, np.float32) for p in parts])
    assert [len(p) for p in normalised] == [len(p) for p in parts]
    after, before = np.concatenate(normalised), np.concatenate([np.array(p) for p in parts])
    assert abs(after.mean()) < 1e-3
    if before.std() > 1e-2:
        assert after.std() == pytest.approx(1, abs=1e-2)
        assert (np.diff(after[np.argsort(before)]) >= -1e-5).all()

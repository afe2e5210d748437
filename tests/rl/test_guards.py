"""The test for a fall of the held-out accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.rl.guards import Held, best_of, fall


def held(update, right, wrong, reward):
    return Held(update, (True,) * right + (False,) * wrong, (reward,) * (right + wrong))


def test_reward_up_and_accuracy_down_is_over_optimisation():
    message = fall(held(0, 60, 40, 0.5), held(10, 40, 60, 0.7))
    assert message == (
        "over-optimised: accuracy on 100 held-out problems fell from 60.0% (update 0) to 40.0% (update 10); their "
        "reward went from 0.500 to 0.700"
    )


def test_both_down_is_a_collapse():
    assert fall(held(0, 60, 40, 0.5), held(10, 40, 60, 0.4)).startswith("collapsed: ")


def test_a_fall_within_noise_is_none():
    assert fall(held(0, 60, 40, 0.5), held(10, 59, 41, 0.7)) == ""
    assert fall(held(0, 60, 40, 0.5), held(10, 61, 39, 0.7)) == ""
    assert fall(held(0, 0, 0, 0.5), held(1, 0, 0, 0.7)) == ""


def test_lost_rewards_are_left_out():
    now = Held(1, (False,) * 10, (None,) * 9 + (0.5,))
    assert now.reward == 0.5
    assert Held(1, (), ()).reward == 0.0


@pytest.mark.parametrize("looks", [5, 10, 20])
def test_a_policy_that_is_as_good_as_ever_is_rarely_stopped(looks):
    """As in the loop: each look is compared with the best so far, and two looks in a row must show a fall."""
    rng = np.random.default_rng(looks)
    runs, stopped = 400, 0
    for _ in range(runs):
        seen, worse = [], 0
        for update in range(looks + 1):
            seen.append(Held(update, tuple((rng.random(200) < 0.5).tolist()), (0.0,) * 200))
            worse = worse + 1 if update and fall(best_of(seen), seen[-1], looks) else 0
            if worse == 2:
                stopped += 1
                break
    assert stopped / runs < 0.1  # answers drawn anew at each look: far noisier than one policy's greedy ones


def test_a_real_fall_is_found_however_many_looks():
    rng = np.random.default_rng(0)
    before = rng.random(200) < 0.5
    after = before & (rng.random(200) < 0.8)
    looks = [Held(i, tuple(x.tolist()), (0.0,) * 200) for i, x in enumerate((before, after))]
    assert fall(*looks, 20).startswith("over-optimised")


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_best_is_the_first_of_the_most_accurate(rows):
    looks = [Held(i, tuple(row), (0.0,) * 5) for i, row in enumerate(rows)]
    counts = [sum(row) for row in rows]
    assert best_of(looks).update == counts.index(max(counts))

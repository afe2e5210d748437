"""When a fall is a fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.rl.guards import Held, best_of, fall


def held(update, right, wrong, reward):
    return Held(update, (True,) * right + (False,) * wrong, (reward,) * (right + wrong))


def test_reward_up_and_accuracy_down_is_over_optimisation():
    found = fall(held(0, 60, 40, 0.5), held(10, 40, 60, 0.7))
    assert found == (
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


def test_false_alarms_are_as_rare_as_said():
    """Two policies equally good, answers independent: one look in twenty calls it a fall."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        a, b = rng.random((2, 200)) < 0.5
        alarms += bool(fall(Held(0, tuple(a.tolist()), (0.0,) * 200), Held(1, tuple(b.tolist()), (0.0,) * 200)))
    assert alarms == pytest.approx(50, abs=25)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_best_is_the_first_of_the_most_accurate(rows):
    looks = [Held(i, tuple(row), (0.0,) * 5) for i, row in enumerate(rows)]
    counts = [sum(row) for row in rows]
    assert best_of(looks).update == counts.index(max(counts))

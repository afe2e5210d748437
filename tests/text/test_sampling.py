"""The probabilities of choices among themselves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.text import sampling


def test_known_chances():
    assert sampling.among([math.log(0.3), math.log(0.1)]) == pytest.approx((0.75, 0.25))
    assert sampling.among([-5000.0, -5000.0 + math.log(3)]) == pytest.approx((0.25, 0.75))  # exp alone would give 0 / 0
    assert sampling.among([-2000.0, 0.0]) == (0.0, 1.0)


@given(st.lists(st.floats(-2000, 0), min_size=1, max_size=6), st.floats(-500, 500))
def test_they_sum_to_one_keep_their_order_and_do_not_depend_on_what_all_share(logs, shared):
    shares = sampling.among(logs)
    assert math.fsum(shares) == pytest.approx(1)
    assert all(
        a <= b for (x, a) in zip(logs, shares, strict=True) for (y, b) in zip(logs, shares, strict=True) if x <= y
    )
    assert sampling.among([x + shared for x in logs]) == pytest.approx(shares, abs=1e-9)

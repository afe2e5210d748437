"""Step scores to solution scores."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.errors import UnknownName
from stepmark.evaluation.aggregate import AGGREGATES, aggregate

STEPS = (0.5, 0.25, 1.0)
scores = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("how", "value"), [("min", 0.25), ("prod", 0.125), ("mean", 7 / 12), ("last", 1.0), (max, 1.0)]
)
def test_known_values(how, value):
    assert aggregate(STEPS, how) == pytest.approx(value)


def test_the_paper_takes_the_minimum():
    assert aggregate(STEPS) == 0.25


@pytest.mark.parametrize("how", [*AGGREGATES, max])
def test_nothing_scores_lowest(how):
    assert aggregate((), how) == 0.0


@settings(deadline=None)
@given(scores, st.sampled_from(sorted(AGGREGATES)))
def test_a_score_stays_in_the_unit_interval_and_is_its_own_when_it_is_alone(steps, how):
    assert 0 <= aggregate(steps, how) <= 1
    assert aggregate(steps[:1], how) == steps[0]


@settings(deadline=None)
@given(scores)
def test_product_is_below_minimum_is_below_mean(steps):
    assert aggregate(steps, "prod") <= aggregate(steps, "min") <= aggregate(steps, "mean") + 1e-12


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(UnknownName, match="mean 'prod'"):
        aggregate(STEPS, "produ")

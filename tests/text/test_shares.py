from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from stepmark.text import shares
from stepmark.types import Verdict


@given(st.decimals(0, 1000, places=3).filter(bool))
def test_a_percentage_is_its_share_and_its_number(value: Decimal) -> None:
    for sign in ("%", r"\%", " percent"):
        assert shares.compare(f"{value}{sign}", f"{value / 100}", "What share?") is Verdict.CORRECT
        assert shares.compare(f"{value / 100}", f"{value}{sign}", "What share?") is Verdict.CORRECT
        assert shares.compare(f"{value}{sign}", f"{value}", "What percentage?") is Verdict.CORRECT
        assert shares.compare(f"{value}{sign}", f"{value / 10}", "What share?") is None


def test_where_the_question_speaks_of_percentages_a_small_number_may_be_one() -> None:
    assert shares.compare("25%", "0.25", "What percent is it?") is Verdict.UNGRADABLE
    assert shares.compare("25%", "0.25", "Of 80% of them, how many?") is Verdict.UNGRADABLE


def test_two_percentages_or_none_are_left_to_the_grader() -> None:
    assert shares.compare("25%", "25%", "?") is None
    assert shares.compare("25", "0.25", "?") is None
    assert shares.compare(r"\pi%", "0.25", "?") is None

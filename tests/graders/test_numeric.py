from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.graders.numeric import Numeric
from stepmark.types import Problem, Verdict


def problem(answer: str) -> Problem:
    return Problem("p", "?", answer, "gsm8k")


def verdict(text: str, reference: str, grader: Numeric | None = None) -> Verdict:
    return (grader or Numeric()).grade(text, problem(reference)).verdict


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The answer is 72.0.", "72", Verdict.CORRECT),
        ("The answer is $1,000", "1000", Verdict.CORRECT),
        ("The answer is 1000", "1,000", Verdict.CORRECT),
        (r"\boxed{\frac{1}{2}}", "0.5", Verdict.CORRECT),
        ("steps\n#### 18", "text\n#### 18", Verdict.CORRECT),
        ("steps\nA: 18", "text\nA: 18", Verdict.CORRECT),
        ("The answer is 12.", "1", Verdict.INCORRECT),
        ("The answer is 1.", "12", Verdict.INCORRECT),
        ("The answer is 25/4.", "25", Verdict.INCORRECT),
        ("The answer is 14.5", "14", Verdict.INCORRECT),
        ("The answer is -20.", "20", Verdict.INCORRECT),
        ("I saw 20 of them. The answer is unknown.", "20", Verdict.INCORRECT),
        ("no idea", "20", Verdict.INCORRECT),
        ("", "20", Verdict.INCORRECT),
        ("The answer is 5.", "five apples or so", Verdict.UNGRADABLE),
        ("The answer is 5.", "", Verdict.UNGRADABLE),
        ("The answer is " + "9" * 2000, "9", Verdict.UNGRADABLE),
        ("The answer is 1e99999999999.", "9", Verdict.UNGRADABLE),
    ],
)
def test_values_are_compared(text: str, reference: str, expected: Verdict) -> None:
    assert verdict(text, reference) is expected


def test_the_answer_read_is_reported_in_one_form() -> None:
    assert Numeric().grade("The answer is $1,200.50.", problem("3")).answer == "1200.5"
    assert Numeric().grade("The answer is unknown.", problem("3")).answer == "unknown"
    assert Numeric().grade("", problem("3")).answer is None


SHAPES = [
    "The answer is {}.",
    r"\boxed{{{}}}",
    "#### {}",
    "A: {}",
    "Answer: ${}",
    "it is {}",
    "The answer is 1 + 1 = {} kg.",
]


@given(
    st.decimals(-(10**9), 10**9, places=2), st.sampled_from(SHAPES), st.sampled_from(["{}", "{:,}", "{}00", "{:.4f}"])
)
def test_formatting_does_not_matter(value: Decimal, shape: str, number: str) -> None:
    assert verdict(shape.format(number.format(value)), str(value)) is Verdict.CORRECT


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.sampled_from(SHAPES))
def test_only_equal_numbers_are_equal(a: int, b: int, shape: str) -> None:
    assert verdict(shape.format(a), str(b)) is (Verdict.CORRECT if a == b else Verdict.INCORRECT)


def test_tolerance_is_relative_to_the_reference() -> None:
    assert verdict("The answer is 0.333.", "1/3") is Verdict.INCORRECT
    assert verdict("The answer is 0.333.", "1/3", Numeric(tolerance=0.01)) is Verdict.CORRECT
    assert verdict("The answer is 102.", "100", Numeric(tolerance=0.01)) is Verdict.INCORRECT


def test_percent_can_divide_by_a_hundred() -> None:
    assert verdict("The answer is 50%.", "50") is Verdict.CORRECT
    assert verdict("The answer is 50%.", "0.5", Numeric(percent=True)) is Verdict.CORRECT
    assert verdict("The answer is 50%.", "50", Numeric(percent=True)) is Verdict.INCORRECT


def test_the_token_reading_is_that_of_few_shot_scripts() -> None:
    assert verdict("The answer is 25/4.", "25", Numeric(reading="token")) is Verdict.CORRECT
    assert verdict("The answer is 3. The answer is 4.", "3", Numeric(reading="token")) is Verdict.CORRECT
    assert verdict("The answer is 3. The answer is 4.", "4") is Verdict.CORRECT


def test_every_bad_setting_is_named() -> None:
    with pytest.raises(ConfigError) as e:
        Numeric(tolerance=-1, reading="loose")
    assert len(e.value.faults) == 2 and "stated" in str(e.value)

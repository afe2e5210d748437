from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.text import answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}.", "7"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}} done", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and a broken \boxed{4", "3"),
        (r"\boxed 9$", "9"),
        (r"\boxed{7}. The answer is not 8.", "7"),
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### 5\nThe answer is: 6", "5"),
        ("#### Conclusion\nThe answer is 6.", "6"),
        ("a b\n#### b a", "b a"),
        ("The answer is 12.", "12"),
        ("The answer is 3. No wait. The answer is 4.", "4"),
        ("The answer is 3.5", "3.5"),
        ("the final answer is: **$1,200**.", "$1,200"),
        ("Answer: abc", "abc"),
        ("**Answer:** 5", "5"),
        ("**Final Answer**\n\n$5$", "5"),
        ("**Final answer**: -3 degrees.", "-3 degrees"),
        ("The answer is\n\\[\nx = 5\n\\]", "x = 5"),
        (r"The answer is $\frac{1}{2}$.", r"\frac{1}{2}"),
        ("some steps\nA: 18", "18"),
        ("The answer to the question is 9!", "9"),
        ("We get 3 and then 4 apples.", "4"),
        ("It fell to -4.", "-4"),
        ("10 - 4", "4"),
        ("10 -4", "4"),
        ("each gets 3/4 of it", "3/4"),
        ("nothing to see", None),
        ("", None),
        ("the answer is", None),
        (r"\boxed{}", None),
    ],
)
def test_extract(text: str, answer: str | None) -> None:
    assert answers.extract(text) == answer


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("14 kg (60 - 46)", 14),
        ("25/4", Fraction(25, 4)),
        ("2 and 2/3", Fraction(8, 3)),
        ("2 7/11 hours", Fraction(29, 11)),
        ("8 + 31 = **39** fruits", 39),
        ("4 poodles (4 * 2 = 8 hours) and more", 4),
        ("-$20", -20),
        ("$-20", -20),
        ("\u221220", -20),
        ("seven", 7),
        ("325 000", 325000),
        ("$115, $115, $115", 115),
        ("1 or 2", 1),
        ("about 3", 3),
        ("1e3", 1000),
        (".5", Fraction(1, 2)),
        ("unknown", None),
        ("5/0", None),
        ("", None),
    ],
)
def test_read_number(answer: str, value: int | Fraction | None) -> None:
    assert answers.read_number(answer) == value


@pytest.mark.parametrize(
    "same",
    [
        ["5", "5.0", "5.00", "$5", " 5 ", "+5", "5 apples", "5.", r"\frac{10}{2}", "x = 5", r"\text{5}", "five", "5%"],
        ["1000", "1,000", "$1,000.00", "1 000", r"1,\!000", "1e3", "1000 square feet"],
        ["0.5", ".5", "1/2", r"\frac12", r"\dfrac{1}{2}", "2/4"],
        ["-1.5", "-3/2", r"-\frac{3}{2}", "\u22121.5", "-$1.50"],
        ["1.8", r"1\frac{4}{5}", "1 4/5"],
        ["90", r"90^\circ", "90 degrees", r"90^{\circ}"],
        [r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", r"(3,\dfrac{\pi}{2})"],
        [r"\text{East}", "east", "East."],
        ["C", "(C)", r"\text{(C)}"],
    ],
)
def test_equal_answers_share_a_key(same: list[str]) -> None:
    assert {answers.normalise(a) for a in same} == {answers.normalise(same[0])}


def test_different_answers_keep_different_keys() -> None:
    different = [
        "1",
        "12",
        "2",
        "-1",
        "0.1",
        "1/3",
        "0.333",
        "2xy",
        "2",
        "12\\sqrt{2}",
        "2 pi",
        "x",
        "X",
        "1, 2",
        "5 million",
    ]
    different += ["5", "52_8", "52", "(1,2)", "[1,2]", "b a", "a b"]
    assert len({answers.normalise(a) for a in different}) == len(set(different))


@given(st.fractions(max_denominator=10**6))
def test_canonical_reads_back(value: Fraction) -> None:
    assert answers.parse_number(answers.canonical(value)) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_formatting_does_not_change_the_key(value: object) -> None:
    key = answers.normalise(f"{value}")
    assert key == answers.normalise(f"{value:,}") == answers.normalise(f"{value}00") == answers.normalise(f" ${value} ")
    assert answers.normalise(answers.extract(f"So it goes. The answer is {value:,}.") or "") == key


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    for t in (text, f"The answer is {text}", rf"\boxed{{{text}", f"#### {text}", f"A: {text}"):
        answer = answers.extract(t)
        assert answer is None or (answer and answer in t)
        if answer is not None:
            answers.normalise(answer)
            answers.token_after_cue(t)
            try:
                answers.read_number(answer)
            except OverflowError:
                assert len(answer) > answers.MAX_DIGITS or "e" in answer.lower()


@pytest.mark.parametrize(
    "unit", ["1", "a", " ", "1 ", "1,", r"\boxed{", "answer is ", "####", "A:", "{", "5 aa", "\x00", "\ud800"]
)
def test_a_megabyte_is_read_in_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    for t in (text, f"The answer is {text}!", rf"\boxed{{{text}}}"):
        answer = answers.extract(t)
        if answer is not None:
            assert isinstance(answers.normalise(answer), str)


def test_a_long_unit_does_not_blow_up() -> None:
    assert answers.parse_number("5 " + "a" * 4000 + "!") is None


def test_huge_numbers_are_refused() -> None:
    with pytest.raises(OverflowError, match="more than"):
        answers.read_number("9" * 2000)
    with pytest.raises(OverflowError):
        answers.read_number("1e999999999")
    assert answers.parse_number("9" * 2000) is None


def test_the_few_shot_reading_takes_the_first_digits() -> None:
    assert answers.token_after_cue("The answer is 25/4. The answer is 7.") == "25"
    assert answers.token_after_cue("So the answer is 80 + 500 = 580.") == "580"
    assert answers.token_after_cue("The answer is unknown. I saw 5.") is None
    assert answers.token_after_cue("In total 60 days.") == "60"


def test_percent_can_divide_by_a_hundred() -> None:
    assert answers.read_number("50%") == 50
    assert answers.read_number("50%", percent=True) == Fraction(1, 2)
    assert answers.read_number("0.5 (half)", percent=True) == Fraction(1, 2)

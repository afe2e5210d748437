from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.text import expressions
from stepmark.text.expressions import Node, Unreadable

MARKS = [*string.digits, *"xyeiABn+-*/^_!%=<>(){}[]|,;:. ", r"\frac", r"\sqrt", r"\pi", r"\pm", r"\text{ or }", r"\cup"]
MARKS += [
    r"\{",
    r"\}",
    r"\sin",
    r"\log",
    r"\le",
    r"\infty",
    r"\mathrm{e}",
    "½",
    "²",
    "₈",
    "√",
    "±",
    "∪",
    r"\begin{pmatrix}",
]


@given(st.lists(st.sampled_from(MARKS), max_size=25).map("".join) | st.text(max_size=40))
def test_any_text_is_read_whole_or_refused(text: str) -> None:
    try:
        assert isinstance(expressions.parse(text), Node)
    except Unreadable as e:
        assert str(e)


@given(
    st.sampled_from(["1+x", r"\frac{1}{2}", "(1,2)", "x<3", "3:4"]), st.sampled_from(["@", "#", r"\foo", "&", "?", ")"])
)
def test_nothing_is_skipped(text: str, unknown: str) -> None:
    for spoiled in (text + unknown, unknown + text, text.replace("1", "1" + unknown).replace("3", "3" + unknown)):
        with pytest.raises(Unreadable):
            expressions.parse(spoiled)


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_numbers_keep_all_their_digits(a: int, b: int) -> None:
    assert expressions.parse(f"{a:,}") == Node("number", text=str(a))
    assert expressions.parse(rf"\frac{{{a}}}{{{b}}}") == expressions.parse(f"{a}/{b}")
    assert expressions.parse(rf"\dfrac{{{a}}}{{{b}}}").parts == (
        Node("number", text=str(a)),
        Node("number", text=str(b)),
    )


@pytest.mark.parametrize(
    "text", ["(" * 900 + "1", "{" * 900, "-" * 900, r"\sqrt" * 150 + "2", r"\sin" * 200 + " x", "x^" * 400]
)
def test_deep_nesting_is_refused_or_read(text: str) -> None:
    try:
        expressions.parse(text)
    except Unreadable as e:
        assert str(e)


def test_long_expressions_are_refused() -> None:
    with pytest.raises(Unreadable, match="more than 1000"):
        expressions.parse("x+" * 600 + "x")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.text import choices
from stepmark.types import Verdict

SHAPES = ["({}) {}", r"\textbf{{({})}}\ {}", "{}. {}", "{}) {}", "{}: {}", r"\text{{({})}} {}"]


@given(st.sampled_from("ABCDE"), st.integers(0, 999), st.sampled_from(SHAPES))
def test_a_letter_and_its_content_are_split(letter: str, number: int, shape: str) -> None:
    assert choices.split(shape.format(letter, number)) == (letter, str(number))


@pytest.mark.parametrize("text", ["7", "x(x+1)", "(A)(B)", "(A)+5", "Cat", "(x) 7", "CD", "(A)^2", ""])
def test_other_answers_have_no_letter(text: str) -> None:
    assert choices.split(text) is None


@given(st.text())
def test_any_text_can_be_split(text: str) -> None:
    found = choices.split(text)
    assert found is None or len(found[0]) == 1


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.sampled_from(SHAPES))
def test_letters_decide(ours: str, theirs: str, shape: str) -> None:
    verdict = choices.compare(shape.format(ours, 7), theirs).verdict
    assert verdict is (Verdict.CORRECT if ours == theirs else Verdict.INCORRECT)

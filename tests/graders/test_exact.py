from __future__ import annotations

import pytest

from stepmark.graders.exact import Exact
from stepmark.types import Problem, Verdict


def problem(answer: str) -> Problem:
    return Problem("p", "?", answer, "last_letter")


@pytest.mark.parametrize(
    ("text", "reference", "verdict"),
    [
        ("The answer is nth.", "nth", Verdict.CORRECT),
        ('The answer is "NTH".', "nth", Verdict.CORRECT),
        ("The answer is apple  banana.", "apple banana", Verdict.CORRECT),
        ("The answer is banana apple.", "apple banana", Verdict.INCORRECT),
        ("The answer is nthx.", "nth", Verdict.INCORRECT),
        ("nth", "nth", Verdict.INCORRECT),
        ("", "nth", Verdict.INCORRECT),
        ("The answer is 5.0", "5", Verdict.INCORRECT),
        ("The answer is nth.", " ", Verdict.UNGRADABLE),
    ],
)
def test_whole_strings_are_compared(text: str, reference: str, verdict: Verdict) -> None:
    assert Exact().grade(text, problem(reference)).verdict is verdict


def test_case_can_matter() -> None:
    assert not Exact(ignore_case=False).grade("The answer is NTH.", problem("nth")).correct

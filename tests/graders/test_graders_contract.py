"""The contract of every plug-in in graders/. The plug-ins are found in the folder."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from stepmark.plugins import registry
from stepmark.protocols import Grader
from stepmark.types import Grade, Problem, Verdict

PROBLEM = Problem("p", "What is 2 + 3?", "5", "arithmetic")
NASTY = ["", " \n", "\x00", "\ud800", "5\x00", "\\boxed{", "\\" * 500, "{" * 500, "#" * 500, "answer is " * 200]
NASTY += ["The answer is " + "9" * 1_000_000, "(" * 1_000_000, "\\boxed{" + "x" * 1_000_000 + "}", "1," * 500_000]


@pytest.fixture(params=registry.names("grader"))
def grader(request: pytest.FixtureRequest) -> Any:
    return registry.load("grader", request.param)


def test_it_is_a_frozen_grader_that_travels(grader: Any) -> None:
    assert isinstance(grader, Grader)
    assert dataclasses.is_dataclass(grader)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(grader, dataclasses.fields(grader)[0].name, None)
    assert pickle.loads(pickle.dumps(grader)) == grader  # noqa: S301  our own bytes
    grader.grade("The answer is 5.", PROBLEM)
    used = pickle.loads(pickle.dumps(grader))  # noqa: S301
    assert used.grade("The answer is 5.", PROBLEM).correct


def test_right_wrong_and_missing(grader: Any) -> None:
    assert grader.grade("2 + 3 = 5\nThe answer is 5.", PROBLEM) == Grade(Verdict.CORRECT, "equal to the reference", "5")
    for text in ("The answer is 15.", "The answer is 51.", "The answer is -5.", "The answer is none.", "no idea", ""):
        wrong = grader.grade(text, PROBLEM)
        assert wrong.verdict is Verdict.INCORRECT and wrong.reason, text
    assert grader.grade("no idea", PROBLEM).answer is None


def test_without_a_reference_nothing_is_graded(grader: Any) -> None:
    for answer in ("", "  "):
        grade = grader.grade("The answer is 5.", dataclasses.replace(PROBLEM, answer=answer))
        assert grade.verdict is Verdict.UNGRADABLE and grade.reason


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_bad_text_is_graded_not_raised(grader: Any, text: str) -> None:
    for problem in (PROBLEM, dataclasses.replace(PROBLEM, answer=text)):
        grade = grader.grade(text, problem)
        assert isinstance(grade, Grade)
        assert "\n" not in grade.reason and len(grade.reason) < 400
    assert grader.grade(text, PROBLEM).verdict is not Verdict.CORRECT or "5" in text

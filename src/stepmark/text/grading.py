"""The grade of a whole solution, by one rule for all callers.

A solution that ran out of tokens is UNGRADABLE, whatever numbers it contains. Its answer is not known, and a number
from the middle of the text must not win a vote. Of a reasoning trace only the part after the thought is graded, and one
whose thought is not closed ran out of tokens, too (text/thoughts.py).
"""

from __future__ import annotations

from stepmark.protocols import Grader
from stepmark.text import thoughts
from stepmark.text.answers import extract, normalise
from stepmark.types import Finish, Grade, Problem, Solution, Verdict

TRUNCATED = Grade(Verdict.UNGRADABLE, "the solution ran out of tokens before it ended")


def grade_solution(solution: Solution, problem: Problem, grader: Grader) -> Grade:
    """The grader's grade, or TRUNCATED if the solution ran out of tokens."""
    return TRUNCATED if solution.finish is Finish.LENGTH else grade_text(solution.text, problem, grader)


def grade_text(text: str, problem: Problem, grader: Grader) -> Grade:
    """The grader's grade of a whole text that ended, or TRUNCATED if it ended inside a thought."""
    answer = thoughts.answer_of(text)
    return TRUNCATED if answer is None else grader.grade(answer, problem)


def flagged(text: str, correct: bool) -> Grade:
    """The grade of a solution whose correctness a file states. The answer is extracted from the text, for votes."""
    answer = extract(thoughts.answer_of(text) or "")
    verdict = Verdict.CORRECT if correct else Verdict.INCORRECT
    return Grade(verdict, "the flag in the file", None if answer is None else normalise(answer))

"""A grader that compares strings: correct if the stated answer equals the reference.

For answers that are words, names or lists of words. White space, surrounding quotes, a full stop and (by default)
letter case are ignored; any other difference counts. Whole strings are compared, so "1" does not match "12". One
exception: if the reference is the letter of a choice ("C"), the letter with its content ("(C) 7") is the same answer.

A text that states no answer is INCORRECT, because the check worked and the solution lacks its answer. UNGRADABLE means
that the check could not be made, here because the problem has no reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepmark.text import answers, choices
from stepmark.types import Grade, Problem, Verdict


@dataclass(frozen=True, slots=True)
class Exact:
    """Grades by string equality."""

    ignore_case: bool = True  # whether "Paris" and "paris" are the same answer

    def grade(self, text: str, problem: Problem) -> Grade:
        reference = self._key(problem.answer)
        if not reference:
            return Grade(Verdict.UNGRADABLE, "the problem has no reference answer")
        stated = answers.extract(text)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no answer found")
        answer = self._key(stated)
        letters = choices.compare(stated, problem.answer) if len(reference.strip("()")) == 1 else None
        if answer == reference or (letters and letters.verdict is Verdict.CORRECT):
            return Grade(Verdict.CORRECT, "equal to the reference", answer)
        return Grade(Verdict.INCORRECT, f"{answers.excerpt(answer)} is not {answers.excerpt(reference)}", answer)

    def _key(self, answer: str) -> str:
        key = " ".join(answer.split()).strip(" .\"'`*")
        return key.casefold() if self.ignore_case else key

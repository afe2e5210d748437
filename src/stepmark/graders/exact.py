"""Right if the stated answer is the reference, word for word.

For answers that are words, names or lists of words. White space, surrounding quotes, a full stop and (by default)
letter case don't count; everything else does. "1" is not in "12" here: whole strings are compared.

A text that states no answer is INCORRECT: the solution lacks what was asked for, and the check worked. UNGRADABLE
is for a check that could not be made, here a problem without a reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepmark.text import answers
from stepmark.types import Grade, Problem, Verdict


@dataclass(frozen=True, slots=True)
class Exact:
    """Grades by equal strings."""

    ignore_case: bool = True  # whether "Paris" and "paris" are the same answer

    def grade(self, text: str, problem: Problem) -> Grade:
        reference = self._key(problem.answer)
        if not reference:
            return Grade(Verdict.UNGRADABLE, "the problem has no reference answer")
        stated = answers.extract(text)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no answer found")
        answer = self._key(stated)
        if answer == reference:
            return Grade(Verdict.CORRECT, "equal to the reference", answer)
        return Grade(Verdict.INCORRECT, f"{answers.excerpt(answer)} is not {answers.excerpt(reference)}", answer)

    def _key(self, answer: str) -> str:
        key = " ".join(answer.split()).strip(" .\"'`*")
        return key.casefold() if self.ignore_case else key

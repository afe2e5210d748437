r"""A grader that compares numbers: correct if the stated answer has the value of the reference.

Values are exact fractions: "72", "72.0", "$72" and "144/2" are the same answer, 0.33 equals 1/3 only with a tolerance,
and "25/4" is not 25. The tolerance is relative to the reference; there is no absolute one. "25%" is 25, and also 0.25
unless the question speaks of percentages, in which case 0.25 may mean 0.25%. text/answers.py finds the stated answer in
a text.

A text that states no answer, or an answer that is not a number ("unknown"), is INCORRECT, because the check worked and
the solution lacks its answer. UNGRADABLE means that the check could not be made: the reference is not a number, a
number has too many digits to compare, it is part of a larger value ("52_8", "3:4", "2\sqrt{3}", "x > 3", "3 or 4"), or
the two sides have different units.

    python bench/grader_agreement.py --gsm8k data/gsm8k --genrm data/genrm_gsm8k/solutions.jsonl.gz
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from stepmark.errors import ConfigError
from stepmark.text import answers, shares
from stepmark.types import Grade, Problem, Verdict

READINGS = ("stated", "token")


@dataclass(frozen=True, slots=True)
class Numeric:
    """Grades by numeric equality. Raises ConfigError for a tolerance out of range or an unknown reading."""

    tolerance: float = 0.0  # largest difference that counts as equal, relative to the reference; 0 is exact
    percent: bool = False  # whether "%" divides by 100; if not, "50%" is the number 50
    reading: str = (
        "stated"  # "stated": the answer that the text states; "token": the digits after the first "answer is"
    )

    def __post_init__(self) -> None:
        faults = []
        if not 0 <= self.tolerance < 1:
            faults.append(f"tolerance must be a share of the reference, from 0 to below 1, got {self.tolerance}.")
        if self.reading not in READINGS:
            faults.append(f"reading must be one of {', '.join(READINGS)}, got {self.reading!r}.")
        if faults:
            raise ConfigError(faults)

    def grade(self, text: str, problem: Problem) -> Grade:
        reference = _reference(problem.answer, self.percent)
        if reference is None:
            return Grade(Verdict.UNGRADABLE, f"the reference {answers.excerpt(problem.answer)} is not a number")
        stated = answers.extract(text) if self.reading == "stated" else answers.token_after_cue(text)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no answer found")
        try:
            value = answers.read_number(stated, self.percent)
        except OverflowError as e:
            return Grade(Verdict.UNGRADABLE, f"the answer {answers.excerpt(stated)} is {e}")
        if value is None:
            reason = f"the answer {answers.excerpt(stated)} is not a number"
            return Grade(Verdict.INCORRECT, reason, answers.normalise(stated))
        answer = answers.canonical(value)
        if self.reading == "stated" and answers.part_of_more(stated):
            return Grade(Verdict.UNGRADABLE, f"the answer {answers.excerpt(stated)} is more than one number", answer)
        both = f"{answers.excerpt(answer)} is not {answers.excerpt(problem.answer)}"
        verdict = Verdict.INCORRECT
        if value == reference or abs(value - reference) <= Fraction(self.tolerance) * abs(reference):
            verdict = Verdict.CORRECT
            if (units := answers.units(stated)) and answers.units(problem.answer) not in (frozenset(), units):
                verdict, both = Verdict.UNGRADABLE, f"{answers.excerpt(stated)} has other units than the reference"
        elif not self.percent and (by_share := shares.compare(stated, problem.answer, problem.question)):
            verdict, both = by_share, f"the question leaves open whether {answers.excerpt(stated)} is a share"
        return Grade(verdict, "equal to the reference" if verdict is Verdict.CORRECT else both, answer)


@lru_cache(maxsize=4096)
def _reference(answer: str, percent: bool) -> Fraction | None:
    """The value of the reference. If the reference is a worked solution ("... #### 18", "... A: 18"), the value of its
    stated answer. None if it is not a number."""
    stated = answer if answers.part_of_more(answer) else answers.extract(answer) or answer
    try:
        return None if answers.part_of_more(stated) else answers.read_number(stated, percent)
    except OverflowError:
        return None

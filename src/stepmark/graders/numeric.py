r"""Right if the stated answer has the reference's value.

Values are exact fractions: "72", "72.0", "$72" and "144/2" are one answer, 0.33 is not 1/3 unless a tolerance says
so, and "25/4" is not 25. How the words that state an answer are found and read is in text/answers.py.

Verdicts: a text that states no answer, or states one that is no number ("unknown"), is INCORRECT: the solution
lacks what was asked for, and the check worked. UNGRADABLE is for a check that could not be made: the reference is
no number, or a number has more digits than can be compared.

    python bench/grader_agreement.py --gsm8k data/gsm8k --genrm data/genrm_gsm8k/solutions.jsonl.gz
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from stepmark.errors import ConfigError
from stepmark.text import answers
from stepmark.types import Grade, Problem, Verdict

READINGS = ("stated", "token")


@dataclass(frozen=True, slots=True)
class Numeric:
    """Grades by equal numbers. Raises ConfigError for a negative tolerance or an unknown reading."""

    tolerance: float = 0.0  # largest difference that still counts as equal, relative to the reference; 0 is exact
    percent: bool = False  # whether "%" divides by a hundred; otherwise "50%" is the number 50
    reading: str = "stated"  # "stated": what the text means; "token": the digits after the first "answer is"

    def __post_init__(self) -> None:
        faults = []
        if not 0 <= self.tolerance < 1:
            faults.append(f"tolerance is {self.tolerance}; it is a share of the reference, at least 0 and below 1.")
        if self.reading not in READINGS:
            faults.append(f"reading is {self.reading!r}; it is one of {', '.join(READINGS)}.")
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
        if value == reference or abs(value - reference) <= Fraction(self.tolerance) * abs(reference):
            return Grade(Verdict.CORRECT, "equal to the reference", answer)
        return Grade(Verdict.INCORRECT, f"{answers.excerpt(answer)} is not {answers.excerpt(problem.answer)}", answer)


@lru_cache(maxsize=4096)
def _reference(answer: str, percent: bool) -> Fraction | None:
    """The reference's value; of a worked solution ("... #### 18", "... A: 18"), that of the answer it states."""
    try:
        return answers.read_number(answers.extract(answer) or answer, percent)
    except OverflowError:
        return None

"""Rationales for GSM8K solutions, as the authors of GenRM (Zhang et al., arXiv 2408.15240) released them.

One row per rationale:

    {"question_id": 0, "sample_id": 3, "question": "...", "solution": "...", "correct": true, "target": "88",
     "reference_solution": "...", "rationale": "..."}

The model that wrote the rationales saw the reference solution, and most rationales mention it. So each rationale is
checked (text/rationales.py). It is kept if its verdict equals the flag `correct`. The option `leak` is the rule for a
rationale that relies on the reference ("drop", "rewrite", "keep"). Lost rationales stay, with the reason. A solution
may have several rationales. The flag is the grade, and `target` is the problem's answer. Nearly every row has another
reference solution; the first one is the problem's.

The rows of a question can be anywhere in the file. The file is read twice. The first pass finds the last row of each
question, so that the second pass holds only unfinished questions (in the release up to 600 of 1,400).

    python bench/rationales.py data/genrm_gsm8k
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from stepmark.data import rows
from stepmark.text.grading import flagged
from stepmark.text.rationales import judged
from stepmark.text.steps import split
from stepmark.text.verdicts import Reader
from stepmark.types import (
    Grade,
    GradedSolution,
    Imported,
    LabelledSolution,
    Place,
    Problem,
    Quarantined,
    Rationale,
    Solution,
    StepLabel,
)

FIELDS = (
    rows.Field("question_id", rows.ID_LIMIT, number=True),
    rows.Field("sample_id", rows.ID_LIMIT, number=True),
    rows.Field("question"),
    rows.Field("solution"),
    rows.Field("rationale"),
    rows.Field("target", 10_000, required=False, number=True),
    rows.Field("reference_solution", required=False),
)
SOURCE = "reference"  # they were written by a model that saw the reference solution


@dataclass
class _Solution:
    """A solution with its grade and the rationales read so far."""

    solution: Solution
    grade: Grade
    line: int  # of its first row
    rationales: list[Rationale] = field(default_factory=list)


@dataclass
class _Question:
    """A question that is not complete yet."""

    problem: Problem
    line: int  # of its first row
    solutions: dict[int, _Solution] = field(default_factory=dict)  # by sample

    def imported(self) -> Imported:
        solutions = [self.solutions[sample] for sample in sorted(self.solutions)]
        return Imported(
            self.problem,
            tuple(x.solution for x in solutions),
            tuple(GradedSolution(x.solution.id, self.problem.id, x.grade) for x in solutions),
            tuple(
                LabelledSolution(
                    x.solution,
                    x.grade,
                    (StepLabel(0, 0, source="none"),) * len(x.solution.spans),
                    tuple(x.rationales),
                )
                for x in solutions
            ),
        )


@dataclass(frozen=True, slots=True)
class GenRMRationales:
    """Reads the format."""

    steps: str = "sentence"  # how solutions split into steps; most solutions are one paragraph
    leak: Literal["drop", "rewrite", "keep"] = "rewrite"  # the rule for a rationale that relies on the reference
    strict: bool = False  # read verdicts by the plain rule only (verdicts.Reader)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each question, at its last row, with its solutions and their rationales."""
        last = {row.text["question_id"]: row.line for row in rows.read(path, FIELDS) if isinstance(row, rows.Row)}
        open_: dict[str, _Question] = {}
        reader = Reader(strict=self.strict)
        for row in rows.read(path, FIELDS):
            if isinstance(row, Quarantined):
                yield row
                continue
            fault = self._add(row, open_, reader)
            if fault is not None:
                yield Quarantined(row.file, row.line, fault)
            id = row.text["question_id"]
            if last[id] == row.line and id in open_:
                yield open_.pop(id).imported()

    def _add(self, row: rows.Row, open_: dict[str, _Question], reader: Reader) -> str | None:
        """Adds the row to its question. Returns None, or the reason why it can't be added."""
        t, correct = row.text, row.values.get("correct")
        if not isinstance(correct, bool):
            return f"field 'correct': true or false is needed, got {correct!r}"
        if not (t["sample_id"].isascii() and t["sample_id"].isdigit()):
            return f"field 'sample_id': a whole number from 0 is needed, got {t['sample_id']!r}"
        sample = int(t["sample_id"])
        id = t["question_id"]
        problem = Problem(f"q{id}", t["question"], t["target"], "genrm_rationales", t["reference_solution"])
        question = open_.get(id) or _Question(problem, row.line)
        if (question.problem.question, question.problem.answer) != (problem.question, problem.answer):
            return f"question {id} has another text or target than on line {question.line}"
        name = f"{problem.id}#{sample}"
        known = question.solutions.get(sample)
        if known is None:
            solution = Solution(name, problem.id, sample, t["solution"], split(t["solution"], self.steps))
            known = _Solution(solution, flagged(t["solution"], correct), row.line)
        elif (known.solution.text, known.grade.correct) != (t["solution"], correct):
            return f"solution {name} has another text or flag than on line {known.line}"
        known.rationales.append(judged(t["rationale"], correct, SOURCE, leak=self.leak, reader=reader))
        question.solutions[sample] = known
        open_[id] = question
        return None

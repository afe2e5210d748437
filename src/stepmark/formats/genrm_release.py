"""Solutions of GSM8K with correctness flags, as the authors of GenRM (Zhang et al., arXiv 2408.15240) released them.

One row per question:

    {"question_id": 0, "question": "...", "solutions": [{"sample_id": 0, "solution": "...", "correct": true}, ...]}

The file has no reference answers, so a problem's `answer` is "", and the flag is the grade. The answers for voting are
read from the texts.

    stepmark run recipes/gsm8k_orm.yaml sample.train.file=solutions.jsonl.gz sample.test.file=solutions.jsonl.gz
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stepmark.data import rows
from stepmark.text.grading import flagged
from stepmark.text.steps import split
from stepmark.types import (
    GradedSolution,
    Imported,
    Place,
    Problem,
    Quarantined,
    Solution,
)


@dataclass(frozen=True, slots=True)
class GenRMRelease:
    """Reads the format."""

    steps: str = "sentence"  # how solutions split into steps; most solutions are one paragraph

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """The questions with their solutions. A row with a bad solution is quarantined as a whole, with the reason."""
        question = rows.Field("question")
        for row in rows.read(path, (question,), id_field="question_id"):
            yield row if isinstance(row, Quarantined) else self._problem(row)

    def _problem(self, row: rows.Row) -> Imported | Quarantined:
        entries = row.values.get("solutions")
        if not isinstance(entries, list) or not entries:
            return Quarantined(row.file, row.line, "field 'solutions': a list with at least one solution is needed")
        problem = Problem(f"q{row.id}", row.text["question"], "", "genrm_release")
        by_sample: dict[int, tuple[Solution, GradedSolution]] = {}
        for i, entry in enumerate(entries, 1):
            match entry:
                case {"sample_id": int(sample), "solution": str(text), "correct": bool(correct)} if (
                    text.strip() and sample >= 0 and sample not in by_sample
                ):
                    id = f"{problem.id}#{sample}"
                    solution = Solution(id, problem.id, sample, text, split(text, self.steps))
                    by_sample[sample] = solution, GradedSolution(id, problem.id, flagged(text, correct))
                case _:
                    need = "a new sample_id, a solution that is not empty, and correct: true or false"
                    return Quarantined(row.file, row.line, f"solution {i} of {len(entries)} needs {need}")
        solutions, grades = zip(*(by_sample[sample] for sample in sorted(by_sample)), strict=True)
        return Imported(problem, solutions, grades)

"""Solutions of GSM8K with correctness flags, as the authors of GenRM (Zhang et al., arXiv 2408.15240) released them.

One row per question:

    {"question_id": 0, "question": "...", "solutions": [{"sample_id": 0, "solution": "...", "correct": true}, ...]}

The file has no reference answers, so a problem's `answer` is "", and the flag is the grade. The answers for voting are
read from the texts. Rows with the same id and question are one problem.

    stepmark run recipes/gsm8k_orm.yaml sample.train.file=solutions.jsonl.gz sample.test.file=solutions.jsonl.gz
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from stepmark.data import exchange, rows
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

FIELDS = (rows.Field("question"), rows.Field("question_id", rows.ID_LIMIT, required=False, number=True))


@dataclass(frozen=True, slots=True)
class GenRMRelease:
    """Reads and writes the format."""

    steps: str = "sentence"  # how solutions split into steps; most solutions are one paragraph

    holds: ClassVar[frozenset[str]] = frozenset({exchange.GRADES, exchange.IDS})
    groups: ClassVar[bool] = True  # solutions of one problem belong together

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        listed = row.get("solutions")
        return isinstance(listed, list) and bool(listed) and isinstance(listed[0], Mapping) and "sample_id" in listed[0]

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """The questions with their solutions. A row with a bad solution is quarantined as a whole, with the reason."""
        return exchange.each(path, FIELDS, self._problem)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row with the solutions that are right or wrong."""
        solutions = [
            {"sample_id": s.sample, "solution": s.text, "correct": good} for s, good in exchange.graded(imported, lost)
        ]
        if solutions:
            id = imported.problem.id
            number = int(id[1:]) if re.fullmatch(r"q(0|[1-9][0-9]*)", id) else id
            yield {"question_id": number, "question": imported.problem.question, "solutions": solutions}

    def _problem(self, row: rows.Row) -> exchange.Made:
        entries = row.values.get("solutions")
        if not isinstance(entries, list) or not entries:
            return "field 'solutions': a list with at least one solution is needed"
        id = row.text["question_id"] or str(row.line)
        if not id.isprintable():
            return "field 'question_id': an id may not hold control characters"
        name = f"q{id}" if id.isdecimal() else id
        problem = Problem(name, row.text["question"], "", "genrm_release")
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
                    return f"solution {i} of {len(entries)} needs {need}"
        solutions, grades = zip(*(by_sample[sample] for sample in sorted(by_sample)), strict=True)
        return Imported(problem, solutions, grades, extra=exchange.extra(row, "question_id", "question", "solutions"))

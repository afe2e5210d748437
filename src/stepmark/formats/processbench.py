"""Format `processbench`: rows that name the first wrong step (Zheng et al., arXiv 2412.06559).

    {"id": "gsm8k-0", "generator": "...", "problem": "...", "steps": ["..."], "final_answer_correct": true, "label": -1}

`label` is the index of the first wrong step, from 0, and -1 if there is none. Nobody looked at the steps after it, so
they have no label; with `after=wrong` they count as wrong, as the labeler `first_error` has it.

    stepmark convert gsm8k.json --to stepwise rows.jsonl --option after=wrong
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from stepmark.data import exchange, rows
from stepmark.types import Imported, Place, Quarantined, StepLabel

FIELDS = (rows.Field("problem"), rows.Field("id", rows.ID_LIMIT, required=False, number=True))
AFTER = "labels of steps after the first wrong one"
INFERRED = StepLabel(0, 1, source="inferred:first_error")


@dataclass(frozen=True)
class ProcessBench:
    """Reads and writes the format."""

    after: Literal["none", "wrong"] = "none"  # what the steps after the first wrong one are: without a label, or wrong
    separator: str = "\n"  # what stands between two steps of a solution's text
    split: str = "gsm8k"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS, exchange.GRADES, exchange.IDS})
    also: ClassVar[tuple[str, ...]] = ("generator",)
    alone: ClassVar[bool] = True  # each row is read by itself, so that parts of a file can be

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"problem", "steps", "label"} <= set(row) and exchange.listed(row["steps"]) is not None

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, one solution, its grade and its step labels."""
        return exchange.each(path, FIELDS, self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        steps, wrong = exchange.listed(row.values.get("steps")), row.values.get("label")
        if isinstance(wrong, str) and wrong.lstrip("-").isdigit():  # of a table
            wrong = int(wrong)
        if steps is None:
            return "field 'steps': a list is needed"
        if fault := exchange.fault_of_steps(steps):
            return f"field 'steps': {fault}"
        if not isinstance(wrong, int) or isinstance(wrong, bool) or not -1 <= wrong < len(steps):
            return f"field 'label': a number from -1 to {len(steps) - 1} is needed, got {wrong!r:.40}"
        texts = [str(step) for step in steps]
        grade = exchange.grade_of(texts[-1], row.values.get("final_answer_correct"))
        if isinstance(grade, str):
            return f"field 'final_answer_correct': {grade}"
        labels = [exchange.RIGHT] * len(steps)
        if wrong >= 0:
            rest = exchange.NONE if self.after == "none" else INFERRED
            labels[wrong:] = [exchange.WRONG, *[rest] * (len(steps) - wrong - 1)]
        return exchange.imported(
            row,
            row.text["problem"],
            texts,
            tuple(labels),
            separator=self.separator,
            grade=grade,
            id=row.text["id"],
            more=exchange.extra(row, "id", "problem", "steps", "label", "final_answer_correct"),
        )

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution whose steps have labels up to the first wrong one."""
        lost[exchange.UNLABELLED] += len(imported.solutions) - len(imported.labels)
        grades = {g.solution_id: g.grade.correct for g in imported.grades}
        for x in imported.labels:
            wrong = next((i for i, label in enumerate(x.labels) if label.known and not label.correct), -1)
            rest = x.labels[wrong + 1 :] if wrong >= 0 else ()
            if not x.labels or not all(label.known for label in x.labels[: len(x.labels) - len(rest)]):
                lost[exchange.UNLABELLED] += 1
                continue
            lost[AFTER] += sum(label.known and label is not INFERRED for label in rest)
            yield {
                "id": imported.problem.id,
                "generator": imported.extra.get("generator"),
                "problem": imported.problem.question,
                "steps": exchange.pieces(x.solution, self.separator, lost),
                "final_answer_correct": grades.get(x.solution.id),
                "label": wrong,
            }

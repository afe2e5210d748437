r"""Format `math`: rows of MATH and MATH500 (Hendrycks et al., arXiv 2103.03874), problems with a worked solution.

    {"problem": "...", "solution": "... \\boxed{4}.", "answer": "4", "subject": "Algebra", "level": 1, "unique_id": ""}

MATH itself has no `answer`; it is then the content of the solution's last \boxed{}. The worked solution is a right one.

    stepmark convert test.jsonl --to trl_prompt_completion rows.jsonl --option label=false
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.text.answers import extract
from stepmark.types import Grade, Imported, Place, Problem, Quarantined, Verdict

FIELDS = (
    rows.Field("problem"),
    rows.Field("solution"),
    rows.Field("answer", 10_000, required=False, number=True),
    rows.Field("unique_id", rows.ID_LIMIT, required=False, number=True),
)


@dataclass(frozen=True)
class MATH:
    """Reads and writes the format."""

    steps: str = "sentence"  # how solutions divide into steps
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.ANSWERS, exchange.REFERENCES, exchange.GRADES, exchange.IDS})
    also: ClassVar[tuple[str, ...]] = ("subject", "level", "type")
    groups: ClassVar[bool] = True  # solutions of one problem belong together

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return all(isinstance(row.get(name), str) for name in ("problem", "solution")) and "level" in row

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem with its answer and its worked solution."""
        return exchange.each(path, FIELDS, self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        text, answer = row.text["solution"], row.text["answer"]
        if not answer:
            if "\\boxed" not in text:
                return "no field 'answer', and no \\boxed{} in the field 'solution'"
            answer = extract(text) or ""
        question = row.text["problem"]
        problem = Problem(row.text["unique_id"] or exchange.question_id(question), question, answer, "", text)
        solution = exchange.Text(text, Grade(Verdict.CORRECT, "the data's own solution", answer))
        more = exchange.extra(row, "problem", "solution", "answer", "unique_id")
        return exchange.several(problem, [solution], [row.line], self.steps, more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row, with the problem's worked solution, or else its first right one."""
        p = imported.problem
        text = exchange.worked(imported, lost)
        if not text or not p.answer:
            lost[exchange.UNWORKED] += 1
            return
        extra = {name: imported.extra.get(name) for name in self.also}
        yield {"problem": p.question, "solution": text, "answer": p.answer, **extra, "unique_id": p.id}

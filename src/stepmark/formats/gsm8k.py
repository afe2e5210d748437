"""Format `gsm8k`: rows of `question` and `answer`, a worked solution that ends in "#### number" (arXiv 2110.14168).

A row is a problem, and its worked solution a right one. The calculator's notes `<<48/2=24>>` stay in the text. The task
`gsm8k` samples from such files; the format is for data that has no other solutions.

    stepmark convert train.jsonl --to trl_prompt_completion rows.jsonl --option label=false
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.types import Grade, Imported, Place, Problem, Quarantined, Verdict

FIELDS = (rows.Field("question"), rows.Field("answer"))
MARK = "\n#### "


@dataclass(frozen=True)
class GSM8K:
    """Reads and writes the format."""

    steps: str = "line"  # how solutions divide into steps
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.ANSWERS, exchange.REFERENCES, exchange.GRADES})
    groups: ClassVar[bool] = True  # solutions of one problem belong together

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        answer = row.get("answer")
        return isinstance(row.get("question"), str) and isinstance(answer, str) and "####" in answer

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem with its answer and its worked solution."""
        return exchange.each(path, FIELDS, self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        text, mark, answer = row.text["answer"].replace("\r\n", "\n").rpartition(MARK)
        answer = answer.strip()
        if not mark or not answer or "\n" in answer or not text.strip():
            return "field 'answer': it must be a worked solution and end in a line '#### N' with the answer N"
        problem = Problem(exchange.question_id(row.text["question"]), row.text["question"], answer, "", text)
        solution = exchange.Text(text, Grade(Verdict.CORRECT, "the data's own solution", answer))
        more = exchange.extra(row, "question", "answer")
        return exchange.several(problem, [solution], [row.line], self.steps, more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row, with the problem's worked solution, or else its first right one."""
        p = imported.problem
        text = exchange.worked(imported, lost)
        if text and p.answer and "\n" not in p.answer:
            yield {"question": p.question, "answer": f"{text}{MARK}{p.answer}"}
        else:
            lost[exchange.UNWORKED] += 1

"""Format `trl_prompt_completion`: rows of `prompt`, `completion` and maybe `label`, for TRL's SFT and KTO trainers.

Each text may be a list with one message. `label` says whether the solution is right (TRL calls these rows unpaired
preferences). With `label=false` only right solutions are written, without it, for supervised fine-tuning.

    stepmark convert solutions.jsonl --to trl_prompt_completion rows.jsonl --option label=false
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.data.messages import asked, has_system, said
from stepmark.types import Imported, Place, Problem, Quarantined


@dataclass(frozen=True)
class TRLPromptCompletion:
    """Reads and writes the format."""

    steps: str = "line"  # how solutions divide into steps
    label: bool = True  # whether right and wrong solutions are written with `label`; false: right ones alone
    chat: bool = False  # whether messages are written in place of texts
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.GRADES})

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"prompt", "completion"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem and one solution, with its grade where the row has one."""
        return exchange.each(path, (), self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        prompt, completion = row.values.get("prompt"), row.values.get("completion")
        prompt, completion = exchange.listed(prompt) or prompt, exchange.listed(completion) or completion
        question, text = asked(prompt), said(completion, "assistant")
        if question is None or text is None:
            return "'prompt' and 'completion' must be texts, or lists with one message of user and assistant"
        if fault := exchange.fault_of_steps([question, text]):
            return f"'prompt' and 'completion': {fault}"
        grade = exchange.grade_of(text, row.values.get("label"))
        if isinstance(grade, str):
            return f"field 'label': {grade}"
        problem = Problem(exchange.question_id(question), question, "", "")
        more = exchange.extra(row, "prompt", "completion", "label")
        more |= {"system message": True} if has_system(prompt) else {}
        return exchange.several(problem, [exchange.Text(text, grade)], [row.line], self.steps, more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution that is right or wrong."""
        for s, good in exchange.graded(imported, lost):
            texts = {"prompt": imported.problem.question, "completion": s.text}
            row: Mapping[str, object] = exchange.as_messages(texts) if self.chat else texts
            if self.label:
                yield {**row, "label": good}
            elif good:
                yield row
            else:
                lost["solutions left out: they are wrong"] += 1

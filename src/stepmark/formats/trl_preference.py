"""Format `trl_preference`: rows of `prompt`, `chosen` and `rejected`, TRL's preference data for DPO and reward models.

Each may be a text or a list of messages; without `prompt`, both lists begin with the question. The chosen solution
counts as right and the rejected one as wrong. Written are pairs of a right and a wrong solution of one problem.

    stepmark convert solutions.jsonl --to trl_preference pairs.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar, Literal

from stepmark.data import exchange, rows
from stepmark.data.messages import asked, has_system, said
from stepmark.types import Grade, Imported, Place, Problem, Quarantined, Verdict

CHOSEN, REJECTED = Grade(Verdict.CORRECT, "chosen in the file"), Grade(Verdict.INCORRECT, "rejected in the file")


@dataclass(frozen=True)
class TRLPreference:
    """Reads and writes the format."""

    steps: str = "line"  # how solutions divide into steps
    pairs: Literal["each", "all"] = (
        "each"  # each: a solution is in one pair at most; all: every right one with every wrong one
    )
    chat: bool = False  # whether messages are written in place of texts
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.GRADES})
    groups: ClassVar[bool] = True  # solutions of one problem belong together

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"chosen", "rejected"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, a right solution and a wrong one."""
        return exchange.each(path, (), partial(self._make, numbers=exchange.Numbering()), split=self.split)

    def _make(self, row: rows.Row, numbers: exchange.Numbering) -> exchange.Made:
        prompt, *answers = (row.values.get(name) for name in ("prompt", "chosen", "rejected"))
        answers = [exchange.listed(x) or x for x in answers]
        prompt = exchange.listed(prompt) or prompt
        if not prompt and all(isinstance(x, list) and len(x) > 1 for x in answers):
            first, second = answers
            assert isinstance(first, list) and isinstance(second, list)
            if first[:-1] != second[:-1]:
                return "without 'prompt', 'chosen' and 'rejected' must be equal up to their last message"
            prompt, answers = first[:-1], [first[-1:], second[-1:]]
        question, texts = asked(prompt), [said(x, "assistant") for x in answers]
        if question is None or None in texts:
            return "'prompt', 'chosen' and 'rejected' must be texts, or lists with one message of user and assistant"
        if fault := exchange.fault_of_steps([question, *texts]):
            return f"'prompt', 'chosen' and 'rejected': {fault}"
        problem = Problem(exchange.question_id(question), question, "", "")
        found = [exchange.Text(str(x), grade) for x, grade in zip(texts, (CHOSEN, REJECTED), strict=True)]
        more = exchange.extra(row, "prompt", "chosen", "rejected")
        more |= {"system message": True} if has_system(prompt) else {}
        return exchange.several(problem, found, numbers.take(problem.id, 2), self.steps, more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each pair."""
        graded = list(exchange.graded(imported, lost))
        right, wrong = ([s.text for s, good in graded if good is flag] for flag in (True, False))
        pairs = product(right, wrong) if self.pairs == "all" else zip(right, wrong, strict=False)
        alone = abs(len(right) - len(wrong)) if self.pairs == "each" or not (right and wrong) else 0
        lost["solutions left out: there is no other one for a pair"] += alone
        for chosen, rejected in pairs:
            row = {"prompt": imported.problem.question, "chosen": chosen, "rejected": rejected}
            yield exchange.as_messages(row) if self.chat else row

"""Format `rlhflow`: rows of `conversations`, turns in which the user writes a step and the assistant answers + or -.

The first turn of the user is the question, a space, and step 1; it is divided at "Step 1:". Rows for outcome verifiers
have one turn, with the whole solution; `orm=true` reads these. Test sets have other rows, `prompt`, `answers` and
`label`: solutions that are right (1) or wrong (0).

    stepmark convert stepwise.jsonl --to rlhflow rows.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.data.messages import asked, text_of
from stepmark.text import tagged
from stepmark.types import Imported, Place, Problem, Quarantined


@dataclass(frozen=True)
class RLHFlow:
    """Reads and writes the format."""

    mark: str = "Step 1:"  # how the solution begins
    gap: str = " "  # between the question and step 1, where rows are written; some releases have two new lines
    orm: bool = False  # a row of one turn is a whole solution, which is right or wrong, and not a solution of one step
    steps: str = "line"  # how whole solutions divide into steps
    separator: str = "\n"  # what stands between two steps of a solution's text
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS})

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        test = {"prompt", "answers", "label"} <= set(row)
        turns = exchange.listed(row.get("conversations"))
        return test or (turns is not None and all(isinstance(t, Mapping) and "content" in t for t in turns))

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, one solution and its step labels; of a test set, a problem and its solutions."""
        make = partial(self._make, numbers=exchange.Numbering())
        return exchange.each(path, (), make, split=self.split)

    def _make(self, row: rows.Row, numbers: exchange.Numbering) -> exchange.Made:
        if "answers" in row.values:
            return self._tested(row, numbers)
        turns = exchange.listed(row.values.get("conversations"))
        if not turns or len(turns) % 2:
            return "field 'conversations': a list with an even number of turns is needed"
        steps, signs = list[str](), list[object]()
        for i, turn in enumerate(turns, 1):
            role = ("assistant", "user")[i % 2]
            text = text_of(turn.get("content")) if isinstance(turn, Mapping) and turn.get("role") == role else None
            if text is None:
                return f"turn {i} of {len(turns)}: a text of the {role} is needed"
            (signs if role == "assistant" else steps).append(text)
        start = tagged.boundary(steps[0], self.mark)
        if start < 0:
            return f"turn 1: no {self.mark!r}, where the solution would begin"
        question, steps[0] = steps[0][:start].strip(), steps[0][start:]
        if not question:
            return f"turn 1: no question before {self.mark!r}"
        if fault := exchange.fault_of_steps([question, *steps]):
            return f"question and steps: {fault}"
        labels = exchange.labels_of(signs, len(steps))
        if isinstance(labels, str):
            return labels
        more = exchange.extra(row, "conversations")
        if self.orm and len(steps) == 1:
            grade = exchange.grade_of(steps[0], labels[0].correct if labels[0].known else None)
            assert not isinstance(grade, str)
            problem = Problem(exchange.question_id(question), question, "", "")
            return exchange.several(problem, [exchange.Text(steps[0], grade)], [row.line], self.steps, more)
        return exchange.imported(row, question, steps, labels, separator=self.separator, more=more)

    def _tested(self, row: rows.Row, numbers: exchange.Numbering) -> exchange.Made:
        question, answers = asked(row.values.get("prompt")), exchange.listed(row.values.get("answers"))
        flags = exchange.listed(row.values.get("label"))
        if not question or answers is None or flags is None or len(answers) != len(flags):
            return "'prompt', a text, and 'answers' and 'label', lists of the same length, are needed"
        if fault := exchange.fault_of_steps([question, *answers]):
            return f"'prompt' and 'answers': {fault}"
        texts = []
        for i, (text, flag) in enumerate(zip(answers, flags, strict=True)):
            grade = exchange.grade_of(str(text), flag)
            if isinstance(grade, str):
                return f"field 'label', item {i + 1}: {grade}"
            texts.append(exchange.Text(str(text), grade))
        problem = Problem(exchange.question_id(question), question, "", "")
        more = exchange.extra(row, "prompt", "answers", "label")
        return exchange.several(problem, texts, numbers.take(problem.id, len(texts)), self.steps, more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution with a label for every step."""
        for x in exchange.whole(imported, lost):
            steps = exchange.pieces(x.solution, self.separator, lost)
            exchange.lose_boundary(imported.problem.question, steps, self.mark, lost)
            texts = [imported.problem.question + self.gap + steps[0], *steps[1:]]
            turns: list[dict[str, str]] = []
            for text, label in zip(texts, x.labels, strict=True):
                turns.append({"role": "user", "content": text})
                turns.append({"role": "assistant", "content": "+" if label.correct else "-"})
            yield {"conversations": turns}

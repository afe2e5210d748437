"""Format `math_shepherd`: the data of Math-Shepherd (Wang et al., arXiv 2312.08935), rows of `input`, `label`, `task`.

`input` is the problem and its steps, each followed by ` ки`. `label` is the same text with `+` or `-` where `ки` stood.
The text has no boundary between problem and solution: it is at "Step 1:". A row that breaks a rule is set aside, with
the place: another number of tags, texts that differ, another sign at a tag.

    stepmark convert math-shepherd.jsonl --to stepwise rows.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.text import tagged
from stepmark.types import Imported, Place, Quarantined

FIELDS = (rows.Field("input", 1_000_000), rows.Field("label", 1_000_000))
SIGNS = {"+": True, "-": False}


@dataclass(frozen=True)
class MathShepherd:
    """Reads and writes the format."""

    tag: str = "ки"  # what follows each step in `input`
    mark: str = "Step 1:"  # how the solution begins
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS})
    also: ClassVar[tuple[str, ...]] = ("task",)
    alone: ClassVar[bool] = True  # each row is read by itself, so that parts of a file can be

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return isinstance(row.get("input"), str) and isinstance(row.get("label"), str) and "question" not in row

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, one solution and its step labels."""
        return exchange.each(path, FIELDS, self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        text, labels = row.text["input"], row.text["label"]
        found = tagged.taken_apart(text, self.tag, self.mark)
        if isinstance(found, str):
            return f"field 'input': {found}"
        signs = tagged.differ(text, labels, found.places, self.tag, SIGNS)
        if isinstance(signs, str):
            return f"field 'label': {signs}"
        evidence = tuple([exchange.RIGHT if sign else exchange.WRONG for sign in signs])
        return exchange.imported(row, found.question, found.steps, evidence, more=exchange.of_tagged(row, found))

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution with a label for every step."""
        extra = {name: imported.extra.get(name) for name in self.also}
        for question, steps, x in exchange.for_tags(imported, self.tag, self.mark, lost):
            signs = ["+" if label.correct else "-" for label in x.labels]
            tags = [self.tag] * len(steps)
            text, labels = tagged.write(question, steps, tags), tagged.write(question, steps, signs)
            yield {"input": text, "label": labels, **extra}

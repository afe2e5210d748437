"""Format `openrlhf`: process rewards for OpenRLHF, rows of `input`, a text with tags, and `value`, one for each tag.

A value is "+" or "-", or a share from 0 to 1. ER-PRM's data has `text` in place of `input`. As in Math-Shepherd's data,
the solution begins at "Step 1:".

    stepmark convert math-shepherd.jsonl --to openrlhf rows.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from stepmark.data import exchange, rows
from stepmark.text import tagged
from stepmark.types import Imported, Place, Quarantined

FIELDS = (rows.Field("input", 1_000_000, required=False), rows.Field("text", 1_000_000, required=False))


@dataclass(frozen=True)
class OpenRLHF:
    """Reads and writes the format."""

    tag: str = "ки"  # what follows each step
    mark: str = "Step 1:"  # how the solution begins
    text: Literal["input", "text"] = "input"  # name of the field with the text, where rows are written
    estimate: exchange.Estimate = "auto"  # signs (hard), shares (soft), or as the evidence is
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS, exchange.SOFT})
    alone: ClassVar[bool] = True  # each row is read by itself, so that parts of a file can be

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        texts = [name for name in ("input", "text") if isinstance(row.get(name), str)]
        return len(texts) == 1 and exchange.listed(row.get("value")) is not None

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, one solution and its step labels."""
        return exchange.each(path, FIELDS, self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        texts = [name for name in ("input", "text") if row.text[name]]
        if len(texts) != 1:
            return f"needs one of the fields 'input' and 'text', got {' and '.join(texts) or 'none'}"
        found = tagged.taken_apart(row.text[texts[0]], self.tag, self.mark)
        if isinstance(found, str):
            return f"field {texts[0]!r}: {found}"
        given = exchange.listed(row.values.get("value"))
        labels = "a list is needed" if given is None else exchange.labels_of(given, len(found.steps))
        if isinstance(labels, str):
            return f"field 'value': {labels}"
        return exchange.imported(row, found.question, found.steps, labels, more=exchange.of_tagged(row, found, "text"))

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution with a label for every step."""
        for question, steps, x in exchange.for_tags(imported, self.tag, self.mark, lost):
            values = exchange.values(x.labels, self.estimate)
            signs = [("+" if v else "-") if isinstance(v, bool) else v for v in values]
            yield {self.text: tagged.write(question, steps, [self.tag] * len(steps)), "value": signs}

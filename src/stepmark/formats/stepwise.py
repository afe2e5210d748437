"""Format `stepwise`: rows of `prompt`, `completions` and `labels`, the format of TRL's step-wise data sets.

`completions` are the steps, without the white space between them. `labels` has one value per step: true or false for
hard estimates, a share from 0 to 1 for soft ones. docs/howto/stepwise.md is its specification.

    stepmark convert math-shepherd.jsonl --to stepwise rows.jsonl
    stepmark export --labels labels.jsonl --format stepwise --out rows.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.types import Imported, Place, Quarantined

FIELDS = (rows.Field("prompt"),)


@dataclass(frozen=True)
class Stepwise:
    """Reads and writes the format."""

    separator: str = "\n"  # what stands between two steps of a solution's text
    estimate: exchange.Estimate = "auto"  # true and false (hard), shares (soft), or as the evidence is
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS, exchange.SOFT})
    alone: ClassVar[bool] = True  # each row is read by itself, so that parts of a file can be

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        lists = (exchange.listed(row.get(name)) for name in ("completions", "labels"))
        return isinstance(row.get("prompt"), str) and all(x is not None for x in lists)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, one solution and its step labels."""
        return exchange.each(path, FIELDS, self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        steps, given = (exchange.listed(row.values.get(name)) for name in ("completions", "labels"))
        if steps is None or given is None:
            return f"field {'completions' if steps is None else 'labels'!r}: a list is needed"
        if fault := exchange.fault_of_steps(steps):
            return f"field 'completions': {fault}"
        labels = exchange.labels_of(given, len(steps))
        if isinstance(labels, str):
            return f"field 'labels': {labels}"
        more = exchange.extra(row, "prompt", "completions", "labels")
        return exchange.imported(row, row.text["prompt"], steps, labels, separator=self.separator, more=more)  # type: ignore[arg-type]

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution with a label for every step."""
        for x in exchange.whole(imported, lost):
            yield {
                "prompt": imported.problem.question,
                "completions": exchange.pieces(x.solution, self.separator, lost),
                "labels": exchange.values(x.labels, self.estimate),
            }

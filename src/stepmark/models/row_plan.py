"""Which sequences share a row, which rows make an update, and which of its rows go through the model together.

A row is a list of indices into the training's sequences. Everything follows from their lengths and the seed, so a
training that resumes has the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepmark.models import packing

Row = list[int]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one training."""

    lengths: Sequence[int]  # tokens of each sequence
    row_tokens: int  # a longer sequence has a row of its own
    seed: int

    def updates(self, epochs: float, per_update: int) -> list[list[Row]]:
        """The rows of all updates. Each epoch packs differently, so epochs may differ in their number of updates."""
        full_epochs = int(epochs)
        plan = [update for epoch in range(full_epochs) for update in self._epoch(epoch, per_update)]
        if fraction := epochs - full_epochs:
            last = self._epoch(full_epochs, per_update)
            plan += last[: math.ceil(fraction * len(last))]
        return plan

    def _epoch(self, epoch: int, per_update: int) -> list[list[Row]]:
        import numpy as np

        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        rows = packing.pack(self.lengths, order.tolist(), self.row_tokens)
        # Packing emits full rows first. Without a shuffle, the epoch would end with the short leftover rows.
        row_order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(rows))
        return [[rows[r] for r in row_order[i : i + per_update]] for i in range(0, len(rows), per_update)]

    def width(self, row: Row) -> int:
        """Tokens of a row."""
        return sum(self.lengths[i] for i in row)

    def passes(self, rows: list[Row], most: int) -> Iterator[list[Row]]:
        """The rows in passes of at most `most` tokens (0: no limit). Rows of near-equal length go together, since
        padding counts."""
        if not most or len(rows) * max(map(self.width, rows)) <= most:
            yield rows
            return
        part: list[Row] = []
        for row in sorted(rows, key=self.width, reverse=True):
            if part and self.width(part[0]) * (len(part) + 1) > most:
                yield part
                part = []
            part.append(row)
        yield part


def split(rows: list[Row], parts: int) -> list[list[Row]]:
    """The rows in at most `parts` equal parts."""
    size = -(-len(rows) // parts)
    return [rows[i : i + size] for i in range(0, len(rows), size)]

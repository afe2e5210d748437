"""Which sequences share a row, which rows make an update, and which of its rows go through the model together.

A row is a list of indices into the training's sequences. Everything follows from their lengths and the seed, so a
training that resumes has the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepmark.models import packing

Row = list[int]
PASS = 512  # what a pass costs besides its tokens, in tokens: for large models less on a CPU, and more on a GPU


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one training."""

    lengths: Sequence[int]  # tokens of each sequence
    row_tokens: int  # a longer sequence has a row of its own
    seed: int

    def updates(self, epochs: float, tokens: int) -> list[list[Row]]:
        """The rows of all updates, of about `tokens` each: a row counts as full, a longer one as long as it is. Each
        epoch packs differently, so epochs may differ in their number of updates."""
        full_epochs = int(epochs)
        plan = [update for epoch in range(full_epochs) for update in self._epoch(epoch, tokens)]
        if fraction := epochs - full_epochs:
            last = self._epoch(full_epochs, tokens)
            plan += last[: math.ceil(fraction * len(last))]
        return plan

    def _epoch(self, epoch: int, tokens: int) -> list[list[Row]]:
        import numpy as np

        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        rows = packing.pack(self.lengths, order.tolist(), self.row_tokens)
        # Packing emits full rows first. Without a shuffle, the epoch would end with the short leftover rows.
        updates: list[list[Row]] = []
        room = 0
        for row in (rows[r] for r in np.random.default_rng([self.seed, epoch, 1]).permutation(len(rows))):
            size = max(self.row_tokens, self.width(row))
            if size > room:
                updates.append([])
                room = tokens
            updates[-1].append(row)
            room -= size
        return updates

    def width(self, row: Row) -> int:
        """Tokens of a row."""
        return sum(self.lengths[i] for i in row)

    def passes(self, rows: list[Row], most: int) -> list[list[Row]]:
        """The rows in passes of at most `most` tokens (0: no limit), padding included; a longer row goes alone.

        The passes cost least, each its tokens and PASS besides: rows of near-equal length go together, in passes of
        their own where that saves more padding than the passes cost."""
        import numpy as np

        ordered = sorted(rows, key=self.width, reverse=True)
        widths = np.array([self.width(row) for row in ordered])
        cost = np.zeros(len(rows) + 1)  # of the first n rows
        first = [0] * (len(rows) + 1)  # where the last pass of the first n rows begins
        for n in range(1, len(rows) + 1):
            sizes = widths[:n] * np.arange(n, 0, -1)  # of a last pass that begins at each row
            costs = cost[:n] + sizes + PASS
            if most:
                costs[:-1][sizes[:-1] > most] = np.inf
            first[n] = int(costs.argmin())
            cost[n] = costs[first[n]]
        parts, end = list[list[Row]](), len(rows)
        while end:
            parts.append(ordered[first[end] : end])
            end = first[end]
        return parts[::-1] if len(parts) > 1 else [rows]


def split(rows: list[Row], parts: int) -> list[list[Row]]:
    """The rows in at most `parts` equal parts."""
    size = -(-len(rows) // parts)
    return [rows[i : i + size] for i in range(0, len(rows), size)]

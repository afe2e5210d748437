"""The progress of a training, from its first second on: what is being done, then loss, speed and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from stepmark.types import Progress

EVERY = 5.0  # seconds between two reports of progress within an update, or within the encoding

Item = TypeVar("Item")


@dataclass(slots=True)
class Reporter:
    """Tells `show` how far a training is; where that is None, nobody."""

    stage: str
    show: Callable[[Progress], None] | None
    updates: int = 0  # of the training; 0 while not known
    tokens: int = 0  # of the training, all its updates together
    note: str = ""  # how it is computed
    _began: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def say(self, what: str) -> None:
        """Reports what is done before the first update."""
        self._show(Progress(self.stage, 0, self.updates, time.monotonic() - self._began, what))

    def encoding(self, examples: Iterable[Item], count: int) -> Iterator[Item]:
        """The examples, with a report from time to time."""
        for i, example in enumerate(examples):
            if self._due():
                self.say(f"encoding the examples, {i:,} of {count:,}")
            yield example

    def within(self, update: int, tokens: int, seconds: float, loss: float | None) -> None:
        """Reports progress within an update, where it takes long: `tokens` were read so far, in `seconds`."""
        if self._due():
            self.at(update, tokens, seconds, *([f"loss {loss:.4f}"] if loss is not None else ()), self.note)

    def at(self, update: int, tokens: int, seconds: float, *notes: str) -> None:
        """Reports that `update` updates are done, and `tokens` were read, in `seconds`."""
        rate = tokens / seconds if tokens and seconds > 1 else None
        left = None if rate is None else max(0, self.tokens - tokens) / rate
        note = ", ".join(filter(None, notes))
        self._show(Progress(self.stage, update, self.updates, seconds, note, tokens_per_second=rate, seconds_left=left))

    def _due(self) -> bool:
        return self.show is not None and time.monotonic() - max(self._last, self._began) >= EVERY

    def _show(self, progress: Progress) -> None:
        if self.show is not None:
            self._last = time.monotonic()
            self.show(progress)

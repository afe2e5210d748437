"""Hands items on together, at the latest a second after they came: many at once where they come fast, and each soon
where they come slowly.

A file gets one write for a thousand quick results, and a slow result does not wait in memory for the next one.

    with TimedBatch(lambda rows: records.append(rows)) as batch:
        for row in rows:
            batch.add(row)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

SECONDS = 1.0  # that an item waits at most


class TimedBatch(Generic[Item]):
    """Collects items and calls `write` with those that came since the last call: every `seconds` from a thread of its
    own, in between when there are `most`, and at the end of the `with` block. Every second also means: with an empty
    list where none came. `write` never runs twice at once. What it raises in the thread, the next call here raises."""

    def __init__(self, write: Callable[[list[Item]], None], most: int = 512, seconds: float = SECONDS) -> None:
        self.write, self.most, self.seconds = write, most, seconds
        self._items: list[Item] = []
        self._writing = threading.Lock()
        self._error: BaseException | None = None

    def add(self, item: Item) -> None:
        """Takes an item."""
        self._items.append(item)  # atomic: the other thread takes the list away as a whole
        if self._error is not None or len(self._items) >= self.most:
            self.flush()

    def flush(self) -> None:
        """Hands on what has come, now."""
        with self._writing:
            error, self._error = self._error, None
            if error is not None:
                raise error
            self._take()

    def _take(self) -> None:
        count = len(self._items)
        items = self._items[:count]
        del self._items[:count]  # before they are written: an interrupted write is not done twice
        self.write(items)

    def _tick(self) -> None:
        with self._writing:
            if self._error is None:
                try:
                    self._take()
                except BaseException as e:
                    self._error = e

    def __enter__(self) -> TimedBatch[Item]:
        self._ticking = every(self.seconds, self._tick)
        self._ticking.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticking.__exit__(None, None, None)
        self.flush()


@contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` every few seconds, in a thread of its own, until the block ends."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

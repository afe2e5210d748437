"""Joins the calls of many threads into batches.

Trainers ask for one reward at a time, from many threads; a model is faster with a batch. A call that comes while no
other is running runs at once. Calls that come meanwhile wait, and then run together as one batch. There is no timer.

    verify = ThreadBatcher(lambda items: [score(item) for item in items])
    verify([item])      # from any thread
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Call(Generic[Item, Result]):
    items: Sequence[Item]
    results: list[Result] = field(default_factory=list)
    error: Exception | None = None
    done: bool = False


class ThreadBatcher(Generic[Item, Result]):
    """`work` returns one result per item, in order; it is never run twice at once. Where it raises on the items of
    several calls, it is run again for each call alone, so that each caller gets its own results or its own error."""

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self.work = work
        self._waiting: list[_Call[Item, Result]] = []
        self._queue, self._working = threading.Lock(), threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.work,)  # locks can't be pickled; another process makes its own

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        call = _Call[Item, Result](items)
        with self._queue:
            self._waiting.append(call)
        with self._working:
            if not call.done:
                with self._queue:
                    calls, self._waiting = self._waiting, []
                # The thread that took this call from the queue may have been interrupted before it ran.
                self._run(calls if call in calls else [*calls, call])
        if call.error is not None:
            raise call.error
        return call.results

    def _run(self, calls: Sequence[_Call[Item, Result]]) -> None:
        try:
            items = [item for call in calls for item in call.items]
            results = list(self.work(items))
            if len(results) != len(items):
                raise ValueError(f"{len(results)} results for {len(items)} items; there must be one for each item.")
            for call in calls:
                call.results, results = results[: len(call.items)], results[len(call.items) :]
                call.done = True
        except Exception as e:
            if len(calls) == 1:
                calls[0].error, calls[0].done = e, True
                return
            for call in calls:
                self._run([call])

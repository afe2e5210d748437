"""Runs concurrent requests behind a plain generator: an event loop in its own thread.

The loop keeps running while the reader of the generator is busy, so the reader causes no time-outs. Each producer waits
until its item is taken, so a kill loses at most one item per producer. When the generator is closed in any way, running
requests are cancelled, and the thread has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Put = Callable[[T], Awaitable[None]]


def stream(produce: Callable[[Put[T]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """The items that `produce` puts. An exception of `produce` is raised after all items put before it."""
    loop = asyncio.new_event_loop()
    items: SimpleQueue[tuple[T, asyncio.Event] | None] = SimpleQueue()

    async def put(item: T) -> None:
        taken = asyncio.Event()
        items.put((item, taken))
        await taken.wait()

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
            items.put(None)

    task = loop.create_task(produce(put))
    thread = threading.Thread(target=run, name="stepmark-requests", daemon=True)
    thread.start()
    try:
        while (entry := items.get()) is not None:
            yield entry[0]
            with contextlib.suppress(RuntimeError):  # the loop ended with an error, which is raised below
                loop.call_soon_threadsafe(entry[1].set)
        thread.join()
        if error := task.exception():
            raise error
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        thread.join()

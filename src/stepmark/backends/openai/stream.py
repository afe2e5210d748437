"""Many requests at a time behind one plain generator: an event loop in a thread of its own.

The loop goes on while whoever reads the generator is busy, so no request runs into its time-out because of that; but
each producer waits until what it made was taken, so that a kill loses no more than there were producers. When the
generator is closed, however that comes, what is under way is cancelled and the thread has ended.
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
    """What `produce` puts, as it comes. An exception of `produce` comes after all that was put before it."""
    loop = asyncio.new_event_loop()
    made: SimpleQueue[tuple[T, asyncio.Event] | None] = SimpleQueue()

    async def put(item: T) -> None:
        taken = asyncio.Event()
        made.put((item, taken))
        await taken.wait()

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
            made.put(None)

    task = loop.create_task(produce(put))
    thread = threading.Thread(target=run, name="stepmark-requests", daemon=True)
    thread.start()
    try:
        while (got := made.get()) is not None:
            yield got[0]
            with contextlib.suppress(RuntimeError):  # the loop has ended with an error, which is next
                loop.call_soon_threadsafe(got[1].set)
        thread.join()
        if error := task.exception():
            raise error
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        thread.join()

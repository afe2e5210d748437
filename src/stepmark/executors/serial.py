"""Executor `serial`: one unit after another, in this process. For tests, debugging, and a single GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SerialExecutor:
    """Runs units in this process."""

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
        """Results in the order of `units`. Each is computed when it is requested."""
        return map(work, units)

    def stream(self, work: Callable[[Unit], Iterable[Result]], units: Iterable[Unit]) -> Iterator[Result]:
        """The results of one unit after another, each when `work` yields it."""
        for unit in units:
            yield from work(unit)

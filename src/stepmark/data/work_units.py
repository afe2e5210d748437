"""Work in units: split it, hand it to an executor, keep each result as it comes, go on past what fails.

Every stage is this with another function inside. Results are appended here, in the parent, one write per unit;
so a kill loses the units under way and nothing else, and the next call asks only for what is missing.

A unit that raises is done again item by item, so that one bad item costs itself alone. What is wrong for every
item alike (a setting, a checkpoint, a backend as a whole) ends the stage at once instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from stepmark.data.store import Records, StoredRecord
from stepmark.errors import BackendError, BudgetReached, CheckpointError, ConfigError, DataError, StageError
from stepmark.protocols import Executor
from stepmark.types import Problem, Progress, Solution

Item = TypeVar("Item")
Record = TypeVar("Record", bound=StoredRecord)

FATAL = (ConfigError, CheckpointError, BackendError, BudgetReached)
PATIENCE = 20  # failures from which on a stage stops when it fails more often than it succeeds


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that could not be worked on. Nothing of it is stored, so the same command tries it again."""

    item: str  # what it was, by its id
    reason: str  # the error, in one line

    @property
    def key(self) -> str:
        return self.item


@dataclass(frozen=True, slots=True)
class Done:
    """What a unit came to, as a worker sends it back."""

    records: tuple[StoredRecord, ...]
    failed: tuple[Failed, ...]
    weight: int  # of the unit's items, failed ones included


def pair(problems: Sequence[Problem], solutions: Iterable[Solution]) -> list[tuple[Problem, Solution]]:
    """Each solution with its problem, in the order of the problems and then of the samples: the same list
    whatever order a parallel run wrote them in. Raises DataError for a solution of no known problem."""
    place = {p.id: i for i, p in enumerate(problems)}
    found = list(solutions)
    for s in found:
        if s.problem_id not in place:
            raise DataError(
                f"solution {s.id!r} is of the problem {s.problem_id!r}, which is none of the {len(place)} given. "
                "Load the task, split and options that the solutions were made with."
            )
    found.sort(key=lambda s: (place[s.problem_id], s.sample))
    return [(problems[place[s.problem_id]], s) for s in found]


def split(items: Iterable[Item], weigh: Callable[[Item], int], size: int) -> Iterator[tuple[Item, ...]]:
    """Runs of items whose weights add up to about `size`; an item that weighs more is alone."""
    unit: list[Item] = []
    weight = 0
    for item in items:
        if unit and weight + weigh(item) > size:
            yield tuple(unit)
            unit, weight = [], 0
        unit.append(item)
        weight += weigh(item)
    if unit:
        yield tuple(unit)


def run(
    stage: str,
    work: Callable[[tuple[Item, ...]], Iterable[Record | Failed]],
    items: Sequence[Item],
    out: Records[Record],
    *,
    name: Callable[[Item], str],
    weigh: Callable[[Item], int],
    size: int,
    already: int,
    executor: Executor,
    progress: Callable[[Progress], None] | None,
    watch: Callable[[Sequence[Record], int], str | None] | None = None,
) -> tuple[Failed, ...]:
    """Appends what `work` makes of `items` to `out` and returns the items that failed.

    `watch` sees each unit's records once they are kept, and how many of its items failed; it ends the stage by giving
    a reason. `work`, `name` and
    `weigh` must be picklable. `weigh` counts the records that an item should give, `size` is how many of them make a
    unit, `already` how many were there before. Raises StageError when nearly all fails, or `watch` says so."""
    began = time.monotonic()
    done, total = already, already + sum(map(weigh, items))
    made, failed = 0, list[Failed]()
    report = progress or (lambda _: None)
    if total > done:
        report(Progress(stage, done, total, 0.0))
    todo = split(items, weigh, size)
    try:
        for result in executor.map(partial(_guarded, work=work, name=name, weigh=weigh), todo):
            out.append(result.records)  # type: ignore[arg-type]
            failed += result.failed
            made += len(result.records)
            done += result.weight
            note = f"{len(failed)} failed" if failed else ""
            report(Progress(stage, done, total, time.monotonic() - began, note))
            if len(failed) >= PATIENCE and len(failed) > made:
                break
            why = watch(result.records, len(result.failed)) if watch is not None else None  # type: ignore[arg-type]
            if why is not None:
                raise StageError(f"{stage} stopped: {why}\n{_kept(out)}")
    except BackendError as e:
        raise StageError(f"{stage} stopped: {e}\n{_kept(out)}") from e
    if failed and (not made or (len(failed) >= PATIENCE and len(failed) > made)):
        raise StageError(
            f"{stage} stopped: {len(failed)} of {len(failed) + made} items failed, the first one, "
            f"{failed[0].item}, with {failed[0].reason}\n{_kept(out)}"
        )
    return tuple(failed)


def _kept(out: Records[Record]) -> str:
    return f"{len(out)} records are kept in {out.path}; mend the cause, and the same command goes on from there."


def _guarded(
    unit: tuple[Item, ...],
    *,
    work: Callable[[tuple[Item, ...]], Iterable[Record | Failed]],
    name: Callable[[Item], str],
    weigh: Callable[[Item], int],
) -> Done:
    weight = sum(map(weigh, unit))
    try:
        made = tuple(work(unit))
        failed = tuple(r for r in made if isinstance(r, Failed))
        return Done(tuple(r for r in made if not isinstance(r, Failed)), failed, weight)
    except FATAL:
        raise
    except Exception as e:
        if len(unit) == 1:
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:500]
            return Done((), (Failed(name(unit[0]), reason),), weight)
    parts = [_guarded((item,), work=work, name=name, weigh=weigh) for item in unit]
    return Done(tuple(r for p in parts for r in p.records), tuple(f for p in parts for f in p.failed), weight)

"""Runs a stage's work in units: splits the items, maps a function over the units, stores results, survives failures.

Every stage calls `run` with a function of its own. The parent process appends the results, one write per unit.
So a kill loses only the units that were in progress, and the next call does only what is missing.

A unit that raises is done again item by item, so that one bad item loses nothing but itself. An error that is the same
for every item (a setting, a checkpoint, a backend that is down) ends the stage at once.
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
PATIENCE = 20  # with at least this many failures, a stage stops if failures outnumber successes


@dataclass(frozen=True, slots=True)
class Failed:
    """An item whose work raised an error. Nothing of it is stored, so the same command tries it again."""

    item: str  # the item's id
    reason: str  # the error, in one line

    @property
    def key(self) -> str:
        return self.item


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a unit, as a worker sends it back."""

    records: tuple[StoredRecord, ...]
    failed: tuple[Failed, ...]
    weight: int  # of all the unit's items, including the failed ones


def pair(problems: Sequence[Problem], solutions: Iterable[Solution]) -> list[tuple[Problem, Solution]]:
    """Pairs each solution with its problem, ordered by problem and then by sample. The order in which a parallel run
    wrote the solutions does not matter. Raises DataError for a solution whose problem is not in `problems`."""
    order = {p.id: i for i, p in enumerate(problems)}
    ordered = list(solutions)
    for s in ordered:
        if s.problem_id not in order:
            raise DataError(
                f"solution {s.id!r} belongs to problem {s.problem_id!r}, which is not among the {len(order)} problems "
                "loaded. Load the task, split and options that the solutions were sampled with."
            )
    ordered.sort(key=lambda s: (order[s.problem_id], s.sample))
    return [(problems[order[s.problem_id]], s) for s in ordered]


def split(items: Iterable[Item], weigh: Callable[[Item], int], size: int) -> Iterator[tuple[Item, ...]]:
    """Splits items into units of consecutive items whose weights add up to at most `size`. An item that weighs more
    is a unit of its own."""
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
    """Applies `work` to `items`, appends the results to `out`, and returns the items that failed.

    `weigh` gives the number of records expected from an item, `size` the number of records per unit, and `already` the
    number of records that `out` had before. `watch` gets each unit's records after they are stored, and the number of
    its items that failed; it ends the stage by returning a reason. `work`, `name` and `weigh` must be picklable.
    Raises StageError when most items fail, when the backend breaks, or when `watch` returns a reason."""
    started = time.monotonic()
    done, total = already, already + sum(map(weigh, items))
    stored, failed = 0, list[Failed]()
    report = progress or (lambda _: None)
    if total > done:
        report(Progress(stage, done, total, 0.0))
    units = split(items, weigh, size)
    try:
        for result in executor.map(partial(_guarded, work=work, name=name, weigh=weigh), units):
            out.append(result.records)  # type: ignore[arg-type]
            failed += result.failed
            stored += len(result.records)
            done += result.weight
            note = f"{len(failed)} failed" if failed else ""
            report(Progress(stage, done, total, time.monotonic() - started, note))
            if len(failed) >= PATIENCE and len(failed) > stored:
                break
            reason = watch(result.records, len(result.failed)) if watch is not None else None  # type: ignore[arg-type]
            if reason is not None:
                raise StageError(f"{stage} stopped: {reason}\n{_resume_hint(out)}")
    except BackendError as e:
        raise StageError(f"{stage} stopped: {e}\n{_resume_hint(out)}") from e
    if failed and (not stored or (len(failed) >= PATIENCE and len(failed) > stored)):
        raise StageError(
            f"{stage} stopped: {len(failed)} of {len(failed) + stored} items failed. The first was "
            f"{failed[0].item}: {failed[0].reason}\n{_resume_hint(out)}"
        )
    return tuple(failed)


def _resume_hint(out: Records[Record]) -> str:
    if not out.path.is_file():
        return "Nothing is kept in a file. Fix the cause; then the same command starts anew."
    return f"{len(out)} records are kept in {out.path}. Fix the cause; then the same command goes on from there."


def _guarded(
    unit: tuple[Item, ...],
    *,
    work: Callable[[tuple[Item, ...]], Iterable[Record | Failed]],
    name: Callable[[Item], str],
    weigh: Callable[[Item], int],
) -> Done:
    weight = sum(map(weigh, unit))
    try:
        results = tuple(work(unit))
        failed = tuple(r for r in results if isinstance(r, Failed))
        return Done(tuple(r for r in results if not isinstance(r, Failed)), failed, weight)
    except FATAL:
        raise
    except Exception as e:
        if len(unit) == 1:
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:500]
            return Done((), (Failed(name(unit[0]), reason),), weight)
    parts = [_guarded((item,), work=work, name=name, weigh=weigh) for item in unit]
    return Done(tuple(r for p in parts for r in p.records), tuple(f for p in parts for f in p.failed), weight)

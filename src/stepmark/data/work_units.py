"""Runs a stage's work in units: splits the items, maps a function over the units, stores results, survives failures.

Every stage calls `run` with a function of its own. What it yields is in the file within two seconds: a second in the
worker, and one in the parent process, which alone writes. So a kill loses what is being computed and hardly more, and
the next call does only what is missing. How long a result takes is the stage's affair:

- Sampling and labelling by rollouts yield each record as its last rollout ends. Their units are large, since an engine
  is fast only with many rollouts at once. Rollouts of labels still unfinished are in a ledger (data/ledger.py).
- Grading and scoring return a whole unit's records at once, as a verifier scores many solutions in one call. Their
  units have a size `BySpeed`: the first has 8 records, and the next ones are doubled or halved so that a unit takes 10
  to 20 seconds. On a fast machine, where they only grow, the sizes are the same in every run.

A unit that raises is done again item by item, without the records that came before, so that one bad item loses nothing
but itself. An error that is the same for every item (a setting, a checkpoint, a backend that is down) ends the stage at
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from stepmark.data.store import Records, StoredRecord
from stepmark.data.timed_batch import TimedBatch
from stepmark.data.token_meter import Pace
from stepmark.errors import BackendError, BudgetReached, CheckpointError, ConfigError, DataError, StageError
from stepmark.protocols import Executor
from stepmark.types import Problem, Progress, Solution

Item = TypeVar("Item")
Record = TypeVar("Record", bound=StoredRecord)
Work = Callable[[tuple[Item, ...]], Iterable[Any]]  # a unit -> its records and Failed

FATAL = (ConfigError, CheckpointError, BackendError, BudgetReached)
PATIENCE = 20  # with at least this many failures, a stage stops if failures outnumber successes
FIRST = 8  # records of the first unit, where units are sized by speed
SHORT, LONG = 10.0, 20.0  # seconds: a unit should take no less and no more
SHOW = 0.1  # seconds between two reports of progress, at least


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
    """Results of a unit, as a worker sends them back. A unit's last Done has no results, but its time."""

    records: tuple[StoredRecord, ...] = ()
    failed: tuple[Failed, ...] = ()
    weight: int = 0  # of these results; in the last Done, of the items without a result
    unit: int = 0  # in the last Done: the weight of all items of the unit
    seconds: float | None = None  # in the last Done: the time that the unit took


@dataclass(slots=True)
class BySpeed:
    """A size of units that follows from how fast they are done."""

    most: int  # weight of the largest units
    least: int = 1  # weight of the smallest units
    now: int = field(init=False)  # weight of the next unit

    def __post_init__(self) -> None:
        self.now = min(max(FIRST, self.least), self.most)

    def learn(self, weight: int, seconds: float) -> None:
        """Takes note of a finished unit. Sizes are powers of two, so that they are the same in every run where the
        times are nearly the same."""
        expected = seconds * self.now / max(1, weight)  # of a full unit: the last one of a stage may be smaller
        if expected < SHORT:
            self.now = min(self.most, 2 * self.now)
        elif expected > LONG:
            while self.now > self.least and expected > SHORT:
                self.now, expected = max(self.least, self.now // 2), expected / 2


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


def split(
    items: Iterable[Item],
    weigh: Callable[[Item], int],
    size: int | Callable[[], int],
    cut: Callable[[Item, int], tuple[Item, ...]] | None = None,
) -> Iterator[tuple[Item, ...]]:
    """Splits items into units of consecutive items whose weights add up to at most `size`, which may change from unit
    to unit. An item that weighs more is a unit of its own; with `cut` (item, size -> parts), its first part is."""
    todo = list(items)[::-1]
    while todo:
        limit = size() if callable(size) else size
        if cut is not None and weigh(todo[-1]) > limit:
            todo += cut(todo.pop(), limit)[::-1]
        unit = [todo.pop()]
        weight = weigh(unit[0])
        while todo and weight + weigh(todo[-1]) <= limit:
            unit.append(todo.pop())
            weight += weigh(unit[-1])
        yield tuple(unit)


def run(
    stage: str,
    work: Work[Item],
    items: Sequence[Item],
    out: Records[Record],
    *,
    name: Callable[[Item], str],
    weigh: Callable[[Item], int],
    size: int | BySpeed,
    already: int,
    executor: Executor,
    progress: Callable[[Progress], None] | None,
    keys: Callable[[Item], Sequence[str]] | None = None,
    cut: Callable[[Item, int], tuple[Item, ...]] | None = None,
    watch: Callable[[Sequence[Record], int], str | None] | None = None,
    used: Callable[[], tuple[int, int]] | None = None,
    most_tokens: int | None = None,
) -> tuple[Failed, ...]:
    """Applies `work` to `items`, appends the results to `out` as they come, and returns the items that failed.

    `weigh` gives the number of records expected from an item, and `keys` their keys; without it the item's name is the
    key of its only record. `size` is the number of records per unit, and `already` the number that `out` had before.
    `cut` divides an item that is larger than a unit. `work`, `name`, `weigh` and `keys` must be picklable.
    `watch` gets the records that were stored since it was last called, and the number of items that failed, whenever a
    unit ends (while it runs, the quick ones have come and the others not); it ends the stage by returning a reason.
    `progress` is called from another thread too, never twice at once. `used` gives the rollouts and tokens of this call
    so far; by default the records' own tokens are counted. `most_tokens` is how many the call can need at most.
    Raises StageError when most items fail, when the backend breaks, or when `watch` returns a reason."""
    output = _Output(stage, out, already, already + sum(map(weigh, items)), progress, used, most_tokens)
    guarded = partial(_guarded, work=work, name=name, weigh=weigh, keys=keys or partial(_only_key, name=name))
    units = split(items, weigh, size if isinstance(size, int) else lambda: size.now, cut)
    try:
        with TimedBatch(output.store) as batch:
            for done in _results(executor, guarded, units):
                batch.add(done)
                if done.seconds is None:
                    continue
                batch.flush()
                if isinstance(size, BySpeed):
                    size.learn(done.unit, done.seconds)
                if output.mostly_failed:
                    break
                records, failures = output.unwatched()
                reason = watch(records, failures) if watch is not None else None
                if reason is not None:
                    raise StageError(f"{stage} stopped: {reason}\n{_resume_hint(out)}")
    except BackendError as e:
        raise StageError(f"{stage} stopped: {e}\n{_resume_hint(out)}") from e
    failed = output.failed
    if failed and (not output.stored or output.mostly_failed):
        raise StageError(
            f"{stage} stopped: {len(failed)} of {len(failed) + output.stored} items failed. The first was "
            f"{failed[0].item}: {failed[0].reason}\n{_resume_hint(out)}"
        )
    return tuple(failed)


class _Output(Generic[Record]):
    """Stores results and reports the progress."""

    def __init__(
        self,
        stage: str,
        out: Records[Record],
        already: int,
        total: int,
        progress: Callable[[Progress], None] | None,
        used: Callable[[], tuple[int, int]] | None,
        most_tokens: int | None,
    ) -> None:
        self.stage, self.out, self.already, self.total = stage, out, already, total
        self.progress, self.used, self.pace = progress, used, Pace(total - already, most_tokens)
        self.started, self.shown = time.monotonic(), 0.0
        self.done, self.stored, self.tokens = already, 0, 0
        self.failed: list[Failed] = []
        self._unwatched: list[Record] = []
        self._failed_watched = 0
        if total > already:
            self._report()

    def store(self, results: Sequence[Done]) -> None:
        """Appends records with one write, and reports the progress, also where nothing came."""
        records: list[Any] = [record for done in results for record in done.records]
        self.out.append(records)
        self.stored += len(records)
        self._unwatched += records
        for done in results:
            self.failed += done.failed
            self.done += done.weight
        self.tokens += sum(map(_tokens, records))
        if time.monotonic() - self.shown >= SHOW or (results and self.done == self.total):
            self._report()

    def unwatched(self) -> tuple[list[Record], int]:
        """The records, and the number of failed items, since the last call."""
        records, self._unwatched = self._unwatched, []
        failed, self._failed_watched = len(self.failed) - self._failed_watched, len(self.failed)
        return records, failed

    @property
    def mostly_failed(self) -> bool:
        return len(self.failed) >= PATIENCE and len(self.failed) > self.stored

    def _report(self) -> None:
        if self.progress is None:
            return
        self.shown = now = time.monotonic()
        rollouts, tokens = self.used() if self.used is not None else (0, self.tokens)
        speed, left = self.pace.at(now, self.done - self.already, tokens)
        notes = [f"{rollouts:,} rollouts"] * bool(rollouts) + [f"{len(self.failed)} failed"] * bool(self.failed)
        tokens = max(tokens, self.pace.written) or None  # type: ignore[assignment]
        seconds = now - self.started
        self.progress(Progress(self.stage, self.done, self.total, seconds, ", ".join(notes), tokens, speed, left))


def _tokens(record: Any) -> int:
    """The tokens that models read or wrote for a record, as far as it says."""
    verifications = getattr(record, "verifications", None)
    return sum(map(_tokens, verifications)) if verifications is not None else int(getattr(record, "tokens", 0))


def _resume_hint(out: Records[Record]) -> str:
    if not out.path.is_file():
        return "Nothing is kept in a file. Fix the cause; then the same command starts anew."
    return f"{len(out)} records are kept in {out.path}. Fix the cause; then the same command goes on from there."


# ---- in the worker ----


def _results(
    executor: Executor, guarded: Callable[[tuple[Item, ...]], Iterator[Done]], units: Iterable[tuple[Item, ...]]
) -> Iterator[Done]:
    stream = getattr(executor, "stream", None)  # protocols.Streamer; an executor of a user's own may have only `map`
    if stream is not None:
        yield from stream(guarded, units)
        return
    for done in executor.map(partial(_collected, guarded=guarded), units):
        yield from done


def _collected(unit: tuple[Item, ...], *, guarded: Callable[[tuple[Item, ...]], Iterator[Done]]) -> tuple[Done, ...]:
    return tuple(guarded(unit))


def _guarded(
    unit: tuple[Item, ...],
    *,
    work: Work[Item],
    name: Callable[[Item], str],
    weigh: Callable[[Item], int],
    keys: Callable[[Item], Sequence[str]],
) -> Iterator[Done]:
    """The results of a unit as they come, and at last its time."""
    started = time.monotonic()
    weights = {key: weigh(item) // len(of_item) for item in unit if (of_item := keys(item)) for key in of_item}
    left = sum(map(weigh, unit))
    for results in _attempts(unit, work, name, keys):
        weight = sum(weights.pop(r.key, 0) for r in results)
        left -= weight
        failed = tuple(r for r in results if isinstance(r, Failed))
        yield Done(tuple(r for r in results if not isinstance(r, Failed)), failed, weight)
    yield Done(weight=left, unit=sum(map(weigh, unit)), seconds=time.monotonic() - started)


def _attempts(
    unit: tuple[Item, ...], work: Work[Item], name: Callable[[Item], str], keys: Callable[[Item], Sequence[str]]
) -> Iterator[Sequence[Any]]:
    """What `work` makes of the unit, in lists of what comes together; where it raises, of the items one by one."""
    came = set[str]()
    try:
        results = work(unit)
        for together in [results] if isinstance(results, list) else ([r] for r in results):
            came.update(r.key for r in together)
            yield together
        return
    except FATAL:
        raise
    except Exception as e:
        if len(unit) == 1:
            yield [Failed(name(unit[0]), " ".join(f"{type(e).__name__}: {e}".split())[:500])]
            return
    for item in unit:
        if not came.issuperset(keys(item)):
            for results in _attempts((item,), work, name, keys):
                if fresh := [r for r in results if r.key not in came]:
                    yield fresh


def _only_key(item: Item, *, name: Callable[[Item], str]) -> tuple[str, ...]:
    return (name(item),)

"""The output of commands: results on standard output, progress and errors on standard error.

On a terminal, progress is shown as bars; in a file, as a line from time to time.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from stepmark.data.store import Records, StoredRecord, encode
from stepmark.types import Progress, Quarantined

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SET_ASIDE = 3  # exit status of a finished command with rows that were set aside or items that failed
Record = TypeVar("Record", bound=StoredRecord)
EVERY = 10.0  # seconds between two lines about one stage


class Show:
    """Shows Progress. Use it as a context manager; with `quiet` it shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed_at: dict[str, float] = {}

    def __enter__(self) -> Show:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        if self.quiet:
            return
        if self._bars is None:
            self._line(progress)
            return
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(progress.stage, total=progress.total or None, note="")
        task = self._tasks[progress.stage]
        self._bars.update(task, completed=progress.done, total=progress.total or None, note=progress.note)

    def _line(self, p: Progress) -> None:
        now = time.monotonic()
        last = self._printed_at.get(p.stage)
        if last is not None and now - last < EVERY and (p.done < p.total or not p.total):
            return
        self._printed_at[p.stage] = now
        note = f"  {p.note}" if p.note else ""
        print(f"{p.stage:<18} {p.done:>7}/{p.total or '?'}  {p.seconds:6.1f} s{note}", file=sys.stderr, flush=True)


class Printed(Records[Record]):
    """Records of a command without --out: they are printed as they come, and no file keeps them."""

    def __init__(self, kind: type[Record]) -> None:
        super().__init__("standard output", kind)
        self._printed: list[Record] = []

    def append(self, records: Iterable[Record]) -> int:
        batch = list(records)
        for record in batch:
            print(encode(record).decode(), end="", flush=True)
        self._printed += batch
        return len(batch)

    def keys(self) -> set[str]:
        return {record.key for record in self._printed}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._printed)

    def __len__(self) -> int:
        return len(self._printed)


def end(summary: Any, as_json: bool, bad: Sequence[Quarantined], silent: bool = False) -> None:
    """Prints the summary of a command, unless it is `silent` because standard output has its results.

    Exits with status 3 if rows were set aside or items failed."""
    plain = dataclasses.asdict(summary) if dataclasses.is_dataclass(summary) else dict(summary)  # type: ignore[arg-type]
    failed = plain.pop("failed", ())
    plain |= {"quarantined": len(bad), "failed": len(failed)}
    if as_json and not silent:
        print_json(plain)
    elif not silent:
        for key, value in plain.items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{count} {name}" for name, count in value.items())
            print(f"{key.replace('_', ' '):<12} {value}")
    for row in list(bad)[:20]:
        typer.echo(f"stepmark: set aside: {row.file}, line {row.line}: {row.reason}", err=True)
    if len(bad) > 20:
        typer.echo(f"stepmark: ... and {len(bad) - 20} more rows", err=True)
    say_failed(failed)
    if bad or failed:
        raise typer.Exit(SET_ASIDE)


def say_failed(failed: Iterable[Mapping[str, Any]]) -> None:
    listed = list(failed)
    for item in listed[:20]:
        typer.echo(f"stepmark: failed: {item['item']}: {item['reason']}", err=True)
    if listed:
        typer.echo(f"stepmark: {len(listed)} failed; the same command tries them again", err=True)


def print_json(value: Any) -> None:
    def plain(x: Any) -> Any:
        return dataclasses.asdict(x) if dataclasses.is_dataclass(x) and not isinstance(x, type) else str(x)

    print(json.dumps(value, default=plain, ensure_ascii=False))

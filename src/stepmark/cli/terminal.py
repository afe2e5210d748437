"""The output of commands: results on standard output, progress and errors on standard error.

On a terminal, progress is shown as bars; in a file, as a line from time to time. Both say how many tokens a second
models write and how much time is left, as far as that is known.
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
SLOW = 600.0  # seconds left from which on a stage with a local model gets advice


class Show:
    """Shows Progress. Use it as a context manager; with `quiet` it shows nothing. With `local` a model runs in this
    process or its workers: where it is slow, one line says once what to do. `dtype`: as set for the model."""

    def __init__(self, quiet: bool = False, local: bool = False, dtype: str = "auto") -> None:
        self.quiet, self._advise, self._dtype = quiet, local, dtype
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
        if self._advise and _slow(progress):
            self._advise = False
            text = _advice(progress, self._dtype)
            if self._bars is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._bars.console.print(text, markup=False, highlight=False)
        if self._bars is None:
            self._line(progress)
            return
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(progress.stage, total=progress.total or None, note="")
        task = self._tasks[progress.stage]
        self._bars.update(task, completed=progress.done, total=progress.total or None, note=_note(progress))

    def _line(self, p: Progress) -> None:
        now = time.monotonic()
        last = self._printed_at.get(p.stage)
        if last is not None and now - last < EVERY and (p.done < p.total or not p.total):
            return
        self._printed_at[p.stage] = now
        note = f"  {text}" if (text := _note(p)) else ""
        print(f"{p.stage:<18} {p.done:>7}/{p.total or '?'}  {p.seconds:6.1f} s{note}", file=sys.stderr, flush=True)


def _note(p: Progress) -> str:
    """The note, the speed and the time left: "2 failed, 61 tokens/s, 8 min left"."""
    parts = [p.note] if p.note else []
    if (speed := p.tokens_per_second) is not None:
        parts.append(f"{speed:.1f} tokens/s" if speed < 10 else f"{speed:,.0f} tokens/s")
    if p.seconds_left is not None and p.done < p.total:
        parts.append(f"{_duration(p.seconds_left)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _slow(p: Progress) -> bool:
    """Whether a model is at work that will need long."""
    return p.tokens is not None and p.seconds >= 10 and (p.seconds_left or 0) >= SLOW


def _advice(p: Progress, dtype: str) -> str:
    from stepmark import machine

    narrower = dtype == "float32" and machine.computes_bfloat16()  # by itself, dtype=auto has chosen it already
    half = "dtype: auto for the backend, since this processor computes bfloat16 fast; " if narrower else ""
    return (
        f"stepmark: {p.stage} may need {_duration(p.seconds_left or 0)} more: the model is large for this machine. "
        f"Quicker are fewer samples or rollouts; a smaller max_tokens; a smaller model; {half}or a server with a GPU "
        "(backend: openai). What is done is kept: stop at any time, and the same command goes on."
    )


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
        for key, value in ((k, v) for k, v in plain.items() if v is not None):
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

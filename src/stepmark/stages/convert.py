"""Stage: a file in one format -> a file in another, row by row.

What the target has no place for is counted, and rows that break the source's rules are set aside, each with its place:
nothing is changed without a word. Memory holds one problem at a time, and what a format itself must keep. With an
executor, parts of a large JSONL file are converted at the same time, where each row is read and written by itself; the
result is the same.

    stepmark convert math-shepherd.jsonl --to stepwise rows.jsonl
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from stepmark.data import exchange, rows
from stepmark.data.decode import Part, opened, parts
from stepmark.data.encode import need, write_rows
from stepmark.data.store import encode, replacing_file
from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.protocols import Executor, Format, Writer
from stepmark.types import Imported, Place, Progress, Quarantined

LOOKED_AT = 100  # rows that a format is recognised by
KINDS = 1000  # different reasons of set aside rows that are counted
PART = 4 * 2**20  # bytes of a file that are a unit of work
SHOWN = 20  # set aside rows that a summary has


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of the rows of a file."""

    rows: int  # read, the set aside ones included
    written: int  # rows of the new file
    quarantined: int  # rows set aside
    reason: str  # the most frequent reason for it, with one place; "" if none was
    lost: Mapping[str, int]  # what could not be carried over -> how often, the most frequent first
    first: tuple[Quarantined, ...] = ()  # the first rows set aside


@dataclass(slots=True)
class _Counts:
    """What is counted on the way."""

    rows: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Quarantined] = field(default_factory=dict)  # reason without numbers -> the first of its rows
    first: list[Quarantined] = field(default_factory=list)

    def set_aside(self, row: Quarantined) -> None:
        kind = re.sub(r"[\d,.]+|'[^']*'", "", row.reason)
        if kind in self.reasons or len(self.reasons) < KINDS:
            self.reasons[kind] += 1
            self.examples.setdefault(kind, row)
        else:
            self.reasons["others"] += 1
        if len(self.first) < SHOWN:
            self.first.append(row)

    def add(self, other: _Counts) -> None:
        """Adds what was counted in a later part of the file."""
        self.rows += other.rows
        self.lost += other.lost
        self.reasons += other.reasons
        self.examples = other.examples | self.examples
        self.first = (self.first + other.first)[:SHOWN]

    def need_usable(self) -> None:
        """Raises DataError if all rows were set aside."""
        if self.rows == self.reasons.total():
            raise DataError(f"there is no usable row. {self.rows} were set aside, {self.reason() or 'as it is empty'}.")

    def reason(self) -> str:
        if not self.reasons:
            return ""
        [(kind, count)] = self.reasons.most_common(1)
        row = self.examples.get(kind)
        return f"{count} for other reasons" if row is None else f"{count} as line {row.line}: {row.reason}"


def convert(
    source: Place,
    out: Place,
    reader: Format,
    writer: Writer,
    *,
    executor: Executor | None = None,
    progress: Callable[[Progress], None] | None = None,
    size: int = PART,
) -> Converted:
    """Writes the rows of `source` to `out`, in the container that its ending names, whole or not at all. Rows that were
    set aside are in `out` with the ending `.quarantine.jsonl`. Parts of `size` bytes are the executor's units of work.

    Raises DataError where no row can be used, or where `out` can't be written; an old file then stays."""
    need(Path(out))
    if Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
        raise DataError(f"{out} is the source itself. Give another path.")
    counts, place = _Counts(), quarantine_of(out)
    if executor is not None and _divides(Path(source), Path(out), reader, writer):
        written = _in_parts(
            Path(source), Path(out), partial(_part, reader=reader, writer=writer), executor, counts, size
        )
    else:
        with ExitStack() as stack:
            usable = _usable(reader.read(source), counts, place, stack, progress)
            written = write_rows(out, encoded(usable, writer, counts.lost))
    if not counts.reasons:
        place.unlink(missing_ok=True)
    lost = {what: count for what, count in counts.lost.most_common() if count}
    return Converted(counts.rows, written, counts.reasons.total(), counts.reason(), lost, tuple(counts.first))


def encoded(rows: Iterable[Imported], writer: Writer, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
    """The rows of a file in the writer's format. What it has no place for is counted in `lost`."""
    holds: frozenset[str] = getattr(writer, "holds", exchange.EVERYTHING)
    also: tuple[str, ...] = getattr(writer, "also", ())
    for imported in _together(rows) if getattr(writer, "groups", False) else rows:
        if holds != exchange.EVERYTHING:
            exchange.lose(imported, holds, also, lost)
        yield from writer.encode(imported, lost)


def quarantine_of(out: Place) -> Path:
    """Where the rows are that were set aside."""
    return Path(out).with_name(f"{Path(out).name}.quarantine.jsonl")


def recognised(source: Place, split: str = "train") -> str:
    """The name of the format of a file, by the fields of its first rows. Raises ConfigError where none fits, or more
    than one."""
    formats = {name: registry.find("format", name) for name in registry.names("format")}
    readable = {name: f for name, f in formats.items() if hasattr(f, "read") and hasattr(f, "sniff")}
    ending = Path(source).suffix.lower()
    if by_ending := [name for name, f in readable.items() if ending in getattr(f, "endings", ())]:
        return by_ending[0]
    seen = _first_rows(source, split)
    fits = Counter({name: sum(bool(f.sniff(row)) for row in seen) for name, f in readable.items()})
    most = max(fits.values(), default=0)
    found = sorted(name for name, count in fits.items() if count == most and most)
    if len(found) == 1:
        return found[0]
    fields = ", ".join(dict.fromkeys(str(k) for row in seen for k in row)) or "none"
    what = f"fits several formats: {', '.join(found)}" if found else "is in no format that is known"
    raise ConfigError(
        f"{source} {what}. The fields of its first rows are: {fields}. Name the format with --from; there are: "
        f"{', '.join(sorted(readable))}, or the path of your own file."
    )


def _first_rows(source: Place, split: str) -> list[Mapping[str, Any]]:
    first = islice(rows.read(source, (), split=split, id_field=None), LOOKED_AT)
    found = [row.values for row in first if isinstance(row, rows.Row)]
    if not found and Path(source).suffix == ".json":  # one object over many lines
        with opened(Path(source)) as file:
            try:
                whole = json.loads(file.read())
            except (ValueError, RecursionError):
                return []
        found = [whole] if isinstance(whole, dict) else []
    return found


def _usable(
    found: Iterable[Imported | Quarantined],
    counts: _Counts,
    place: Path,
    stack: ExitStack,
    progress: Callable[[Progress], None] | None,
    whole: bool = True,
) -> Iterator[Imported]:
    """The usable rows. The others are counted and written to `place`. Raises DataError if there is no usable one."""
    file, started = None, time.monotonic()
    for row in found:
        counts.rows += 1
        if isinstance(row, Quarantined):
            counts.set_aside(row)
            file = file or stack.enter_context(replacing_file(place))
            file.write(encode(row).decode())
        else:
            yield row
        if progress is not None and counts.rows % 1000 == 0:
            progress(Progress("convert", counts.rows, 0, time.monotonic() - started))
    if whole:
        counts.need_usable()


def _divides(source: Path, out: Path, reader: Format, writer: Writer) -> bool:
    """Whether parts of the file can be converted by themselves: lines of JSON that are not packed."""
    jsonl = source.is_file() and source.suffix == out.suffix == ".jsonl"
    return jsonl and getattr(reader, "alone", False) and not getattr(writer, "groups", False)


def _in_parts(
    source: Path,
    out: Path,
    work: Callable[[tuple[int, Part, Path]], tuple[int, int, _Counts]],
    executor: Executor,
    counts: _Counts,
    size: int,
) -> int:
    """Converts parts of the file, each into a file of its own, and puts these together. Returns the rows written."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as folder:
        units = [(i, part, Path(folder) / f"{i}.jsonl") for i, part in enumerate(parts(source, size))]
        done = {i: (written, of_part) for i, written, of_part in executor.map(work, units)}
        for i, _, _ in units:
            counts.add(done[i][1])
        counts.need_usable()
        with ExitStack() as stack:
            made = stack.enter_context(replacing_file(out))
            aside = stack.enter_context(replacing_file(quarantine_of(out))) if counts.reasons else None
            for _, _, path in units:
                for target, part in ((made, path), (aside, quarantine_of(path))):
                    if target is not None and part.is_file():
                        with part.open("rb") as file:
                            shutil.copyfileobj(file, target.buffer)
    return sum(written for written, _ in done.values())


def _part(unit: tuple[int, Part, Path], *, reader: Format, writer: Writer) -> tuple[int, int, _Counts]:
    """Converts a part of the file, in the process of a worker."""
    index, part, path = unit
    counts = _Counts()
    with ExitStack() as stack:
        usable = _usable(reader.read(part), counts, quarantine_of(path), stack, None, whole=False)
        return index, write_rows(path, encoded(usable, writer, counts.lost)), counts


def _together(found: Iterable[Imported]) -> Iterator[Imported]:
    """Neighbours that have the same problem, as one."""
    for _, group in groupby(found, key=lambda x: (x.problem.id, x.problem.question)):
        listed = list(group)
        if len(listed) == 1:
            yield listed[0]
            continue
        yield Imported(
            listed[0].problem,
            tuple(s for x in listed for s in x.solutions),
            tuple(g for x in listed for g in x.grades),
            tuple(r for x in listed for r in x.rationales),
            tuple(label for x in listed for label in x.labels),
            {k: v for x in listed for k, v in x.extra.items()},
        )

"""Reads rows of a user's data. Each row is checked; bad rows are set aside with a reason.

The ending of a file names its format (data/decode.py); JSONL, one JSON object per line, is the default. A bad row never
stops the others; a source that can't be read at all raises DataError. A directory may be a data set that the library
`datasets` saved. A source that is not local may be the id of a data set on the Hugging Face hub; the same library reads
both, if it is installed.

The checks: the row is UTF-8 and a JSON object, or a row of a table; the fields are present, of the right type, not
empty, not too long, and without NUL characters and lone surrogates (which could not be written out again); ids are
unique.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import cast

from stepmark.data.decode import (
    SUFFIXES,
    Bad,
    Decoded,
    Part,
    decode_file,
    decode_hub,
    decode_part,
    decode_saved,
    is_saved,
    is_saved_whole,
)
from stepmark.data.outcome_counts import most_frequent
from stepmark.data.paths import nowhere
from stepmark.errors import DataError
from stepmark.types import Place, Problem, ProblemSet, Quarantined

MAX_LINE = 16 * 2**20  # bytes; a longer line is set aside without being held in memory
ID_LIMIT = 200  # characters


@dataclass(frozen=True, slots=True)
class Field:
    """A text field that a row must have, or may have."""

    name: str
    limit: int = 100_000  # characters
    required: bool = True  # an optional field may be absent, null or empty
    number: bool = False  # a number is allowed too, and becomes text in plain digits: 5.0 is "5"


QUESTION = Field("question")
ANSWER = Field("answer", limit=10_000, number=True)


@dataclass(frozen=True, slots=True)
class Row:
    """A row that passed every check."""

    file: str  # the path as it was given, or the data set's id
    line: int  # 1-based
    id: str  # the row's id, or its line number if it has none
    text: Mapping[str, str]  # the fields asked for; an absent optional field is ""
    values: Mapping[str, object]  # the whole row as decoded


def read(
    source: Place,
    fields: Sequence[Field] = (QUESTION, ANSWER),
    *,
    split: str = "train",
    id_field: str | None = "id",
    config: str | None = None,
    max_line: int = MAX_LINE,
) -> Iterator[Row | Quarantined]:
    """The rows of a source, in order. `source` is a file (then `split` is not used), a directory with a file named
    after `split`, a data set that `datasets` saved on disk, or the id of one on the hub, with `config` as its
    configuration.

    Rows without `id_field` get their line number as id; with None all do, and memory holds one row. Raises DataError,
    before the first row, if the source does not exist."""
    if isinstance(source, Part):
        return _check(str(source), decode_part(source, max_line), fields, id_field)
    path = Path(source)
    if is_saved(path):
        return _check(str(path), decode_saved(path, split), fields, id_field)
    if path.is_dir():
        path = _in_directory(path, split)
    if path.is_file():
        return _check(str(path), decode_file(path, max_line), fields, id_field)
    if _is_hub_id(source):
        return _check(str(source), decode_hub(str(source), config, split), fields, id_field)
    raise _nowhere(source)


def need(source: Place) -> None:
    """Raises DataError for a source that `read` would not find. Asks no hub."""
    if not Path(source).exists() and not _is_hub_id(source):
        raise _nowhere(source)


def _is_hub_id(source: Place) -> bool:
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(source))
    return named is not None and not str(source).endswith(SUFFIXES)


def _nowhere(source: Place) -> DataError:
    return DataError(f"no file or directory {str(source)!r} {nowhere(source)} Give the path of a JSONL file.")


def is_whole(source: Place) -> bool:
    """Whether a source has no splits of its own: a file, or a data set that was saved without splits."""
    return Path(source).is_file() or is_saved_whole(Path(source))


def texts(row: Row, names: Sequence[str], limit: int = 100_000) -> tuple[str, ...] | Quarantined:
    """The texts of a row under exactly one of `names`, which holds a list of texts or one text. A text may be empty."""
    given = [name for name in names if row.values.get(name) is not None]
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or f"none of them{_row_fields(row.values)}"
        return Quarantined(row.file, row.line, f"needs one field of {', '.join(map(repr, names))}; got {got}")
    value = row.values[given[0]]
    listed = value if isinstance(value, list) else [value]
    field, faults = Field(given[0], limit), []
    for i, x in enumerate(listed):
        checked = "" if isinstance(x, str) and not x.strip() else _text(x, field)
        if isinstance(checked, Bad):
            faults.append(f"field {given[0]!r}" + (f", item {i}" if listed is value else "") + f": {checked.reason}")
    return Quarantined(row.file, row.line, "; ".join(faults)) if faults else tuple(cast("list[str]", listed))


def problems(
    rows: Iterable[Row | Quarantined], make: Callable[[Row], Problem | Quarantined | None], limit: int | None = None
) -> ProblemSet:
    """Makes problems of rows. `make` returns a problem, a quarantined row with the reason, or None for a row of another
    split. Reading stops at `limit` problems."""
    good: list[Problem] = []
    bad: list[Quarantined] = []
    if limit is not None and limit <= 0:
        return ProblemSet(())
    for row in rows:
        problem = make(row) if isinstance(row, Row) else row
        if isinstance(problem, Quarantined):
            bad.append(problem)
        elif problem is not None:
            good.append(problem)
            if len(good) == limit:
                break
    return ProblemSet(tuple(good), tuple(bad))


def need_problems(task: str, split: str, loaded: ProblemSet) -> None:
    """Raises DataError for a split without problems, and for two problems with the same id."""
    if not loaded.problems:
        note = f" {loaded.note}" if loaded.note else ""
        raise DataError(
            f"the split {split!r} of the task {task} has no usable problem{_set_aside(loaded.quarantined)}.{note}"
        )
    seen: dict[str, Problem] = {}
    for p in loaded.problems:
        if (first := seen.setdefault(p.id, p)) is not p:
            raise DataError(
                f"the split {split!r} of the task {task} has two problems with the id {p.id!r}: "
                f"{first.question[:60]!r} and {p.question[:60]!r}. Give each its own id."
            )


def _set_aside(rows: Sequence[Quarantined]) -> str:
    """How many rows were set aside, with the most frequent reason; reasons that differ in numbers alone are one."""
    if not rows:
        return ""
    place, count = most_frequent([row.reason for row in rows], r"[\d,.]+")
    row = rows[place]
    many = "1 row was" if len(rows) == 1 else f"{len(rows)} rows were"
    return f"; {many} set aside, {count} for this reason (here of line {row.line}): {row.reason}"


def _in_directory(folder: Path, split: str) -> Path:
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if len(files) == 1:
        return files[0]
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
    raise DataError(
        f"directory {folder} has {len(files)} files for the split {split!r}; it holds: {names}. "
        f"It needs exactly one of {', '.join(split + suffix for suffix in SUFFIXES)}."
    )


def _check(
    file: str, decoded: Iterable[Decoded], fields: Sequence[Field], id_field: str | None
) -> Iterator[Row | Quarantined]:
    seen: dict[str, int] = {}
    ids = () if id_field is None else (Field(id_field, limit=ID_LIMIT, required=False, number=True),)
    all_fields = (*fields, *ids)
    for line, value in decoded:
        if isinstance(value, Bad):
            yield Quarantined(file, line, value.reason)
            continue
        if not isinstance(value, Mapping):
            yield Quarantined(file, line, f"not a JSON object but {_type(value)}")
            continue
        text: dict[str, str] = {}
        faults: list[str] = []
        for f in all_fields:
            checked = _text(value.get(f.name), f)
            if isinstance(checked, Bad):
                faults.append(f"field {f.name!r}: {checked.reason}" + ("" if f.name in value else _row_fields(value)))
            else:
                text[f.name] = checked
        id = str(line) if id_field is None else text.get(id_field) or str(line)
        if not id.isprintable():
            faults.append(f"field {id_field!r}: an id may not hold control characters")
        if id in seen:
            faults.append(f"duplicate id {id!r}, first on line {seen[id]}")
        if faults:
            yield Quarantined(file, line, "; ".join(faults))
        else:
            if id_field is not None:
                seen[id] = line
            yield Row(file, line, id, text, value)


def _text(value: object, field: Field) -> str | Bad:
    if value is None or (value == "" and not field.required):
        return Bad("missing") if field.required else ""
    if field.number and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            return Bad(f"not a finite number: {value}")
        # repr gives the shortest text that reads back as the same number: 0.1 stays 0.1, and 1e-7 gets its zeros.
        value = str(int(value)) if value == int(value) else format(Decimal(repr(value)), "f")
    if not isinstance(value, str):
        return Bad(f"wrong type: {_type(value)}, not text{' or a number' if field.number else ''}")
    if not value or value.isspace():
        return Bad("empty")
    if len(value) > field.limit:
        return Bad(f"{len(value):,} characters; at most {field.limit:,} are allowed")
    fault = fault_of_text(value)
    return Bad(fault) if fault else value


def fault_of_text(text: str) -> str:
    """What in a text could not be written out again: NUL characters or lone surrogates; "" for nothing."""
    if "\0" in text:
        return "NUL characters"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "a lone surrogate, which is no character"
    return ""


def _type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _row_fields(value: Mapping[str, object]) -> str:
    return f" (the row has: {', '.join(repr(k)[:40] for k in list(value)[:10]) or 'nothing'})"

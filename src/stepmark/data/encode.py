"""Writes rows to a file or a data set: JSONL, JSON, CSV, Parquet, gzip, Zstandard, and what `datasets` reads from disk.

The ending of the path names the container, as data/decode.py reads it; a path without an ending is a directory in
which `datasets` saves. All rows have the fields of the first one. In CSV a list is JSON in its cell, and null is empty.
The file is there whole or not at all, and memory holds a few rows at a time.

    stepmark convert rows.jsonl --to stepwise rows.parquet
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from stepmark.data.decode import ENDINGS, PARQUET, SUFFIXES, TABLES, zstandard
from stepmark.data.store import replacing, replacing_file
from stepmark.errors import DataError
from stepmark.types import Place

BATCH = 1000  # rows of a Parquet file that are written at a time
FIRST = 20 * BATCH  # rows that the columns' types are taken from

Rows = Iterable[Mapping[str, object]]


def write_rows(path: Place, rows: Rows) -> int:
    """Writes the rows, and returns their number. Raises DataError for an ending that names no container, a package that
    is missing, and rows that do not fit together in one table; the old file then stays."""
    path = Path(path)
    need(path)
    name = path.name.lower()
    counted = _Counted(rows)
    if not path.suffix:
        _data_set(path, counted)
    elif name.endswith(PARQUET):
        with replacing_file(path) as file:
            _parquet(path, cast("io.BufferedWriter", file.buffer), counted)
    else:
        with replacing_file(path) as file, _packed(path, cast("io.BufferedWriter", file.buffer)) as text:
            ending = next(e for e in ENDINGS if e in Path(name).suffixes)
            if ending in TABLES:
                _table(path, text, counted, TABLES[ending])
            elif ending == ".json":
                _array(text, counted)
            else:
                for row in counted:
                    text.write(_json(row) + "\n")
    return counted.count


def need(path: Path) -> None:
    """Raises DataError for a path that rows can't be written to: by its ending, or for want of a package."""
    name = path.name.lower()
    if path.suffix and not name.endswith(SUFFIXES):
        raise DataError(
            f"{path}: the ending says how rows are written, and {path.suffix!r} is none that is known. There are: "
            f"{', '.join(SUFFIXES)}; a path without an ending is a directory for `datasets`."
        )
    if not path.suffix:
        _package("datasets", path)
    if name.endswith(PARQUET):
        _package("pyarrow.parquet", path)
    if name.endswith(".zst"):
        zstandard(path)


class _Counted:
    """Rows that are counted as they are taken."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        for row in self.rows:
            self.count += 1
            yield row


_LINE = json.JSONEncoder(ensure_ascii=False)


def _json(value: object) -> str:
    return _LINE.encode(value)


@contextlib.contextmanager
def _packed(path: Path, file: io.BufferedWriter) -> Iterator[io.TextIOBase]:
    """A text file on top of `file`, packed as the path's ending says."""
    name = path.name.lower()
    if name.endswith(".gz"):
        # Without name and time, so that equal rows are equal files.
        raw: Any = gzip.GzipFile("", "wb", 6, file, mtime=0)
    elif name.endswith(".zst"):
        raw = zstandard(path).ZstdCompressor().stream_writer(file, closefd=False)
    else:
        raw = file
    text = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="")
    yield text
    text.flush()
    text.detach()
    if raw is not file:
        raw.close()
    file.flush()


def _array(text: io.TextIOBase, rows: Rows) -> None:
    before = "["
    for row in rows:
        text.write(f"{before}\n{_json(row)}")
        before = ","
    text.write("[]\n" if before == "[" else "\n]\n")


def _table(path: Path, text: io.TextIOBase, rows: Rows, separator: str) -> None:
    table = csv.writer(text, delimiter=separator)  # its line ends are \r\n, so that a \r in a text is quoted too
    heading: list[str] | None = None
    for number, row in enumerate(rows, 2):
        if heading is None:
            heading = list(row)
            table.writerow(heading)
        if row.keys() != set(heading):
            raise DataError(
                f"{path}, row {number}: its fields are {', '.join(row)}; the first row has {', '.join(heading)}. A "
                "table has the same columns in all rows; write JSONL."
            )
        table.writerow([_cell(row[name]) for name in heading])


def _cell(value: object) -> object:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _parquet(path: Path, file: io.BufferedWriter, rows: Rows) -> None:
    arrow, parquet = _package("pyarrow", path), _package("pyarrow.parquet", path)
    taken = iter(rows)
    first = [dict(row) for row in islice(taken, FIRST)]
    writer, count = None, 0
    try:
        schema = _schema(arrow, first)
        writer = parquet.ParquetWriter(file, schema)
        for batch in _batches(chain(first, taken)):
            writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, TypeError, ValueError) as e:
        raise DataError(
            f"{path}, rows {count + 1} and on: they do not fit into one table: {e}. A column holds values of one type: "
            "write step labels with estimate=hard or estimate=soft, or write JSONL."
        ) from e
    finally:
        if writer is not None:
            writer.close()


def _schema(arrow: Any, rows: Sequence[Mapping[str, object]]) -> Any:
    """The columns of the first rows. A column that is empty in all of them is text."""
    found = arrow.Table.from_pylist(rows).schema
    fields = [arrow.field(f.name, arrow.string()) if arrow.types.is_null(f.type) else f for f in found]
    return arrow.schema(fields)


def _batches(rows: Rows) -> Iterator[list[dict[str, object]]]:
    taken = iter(rows)
    while batch := [dict(row) for row in islice(taken, BATCH)]:
        yield batch


def _data_set(path: Path, rows: Rows) -> None:
    """A directory as `datasets` saves it, made from a Parquet file."""
    datasets = _package("datasets", path)
    with replacing(path) as place:
        table = place / "rows.parquet"
        with table.open("wb") as file:
            _parquet(path, file, rows)
        cache = place / "cache"
        data = datasets.Dataset.from_parquet(str(table), cache_dir=str(cache))
        data.save_to_disk(str(place))
        del data
        table.unlink()
        shutil.rmtree(cache, ignore_errors=True)


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        package = name.partition(".")[0]
        how = "pip install 'stepmark[parquet]'" if package == "pyarrow" else f"pip install {package}"
        raise DataError(f"writing {path} needs {package}, which is not installed: {how}, or write JSONL.") from e

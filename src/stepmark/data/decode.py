"""Decodes a file or a data set row by row: JSONL, JSON, CSV, Parquet, and what the library `datasets` reads.

Each row comes with its number, counted from 1 as an editor or a spreadsheet counts it: in a CSV the heading is row 1.
What can't be decoded comes as Bad, with the reason, and the rows after it still come. A source that can't be read at
all raises DataError.

JSONL and CSV hold one line in memory at a time, JSON the whole file. All may be gzip or Zstandard, recognised by the
first bytes; Zstandard needs the package zstandard. data/encode.py writes the same.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from stepmark.errors import DataError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BOM = b"\xef\xbb\xbf"  # some programs write it before UTF-8
TABLES = {".csv": ",", ".tsv": "\t"}  # ending -> separator
ENDINGS = (".jsonl", ".json", *TABLES)  # of files that may also be packed, with one of these after it:
PACKED = (".gz", ".zst")
PARQUET = ".parquet"
SUFFIXES = (*(f"{ending}{packed}" for ending in ENDINGS for packed in ("", *PACKED)), PARQUET)


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that can't be decoded."""

    reason: str


Decoded = tuple[int, object]  # a row's number, and its value or Bad


class Part(str):
    """The path of a JSONL file of which only some lines are read, by their bytes; their numbers are those in the
    file."""

    start: int  # bytes before its first line
    end: int  # bytes up to the end of its last line
    line: int  # number of its first line, from 1

    @classmethod
    def of(cls, path: str, start: int, end: int, line: int) -> Part:
        part = cls(path)
        part.start, part.end, part.line = start, end, line
        return part


def parts(path: Path, size: int) -> Iterator[Part]:
    """A JSONL file, divided at the ends of lines into parts of about `size` bytes."""
    start, line = 0, 1
    with path.open("rb") as file:
        while chunk := file.read(size):
            chunk += file.readline()
            yield Part.of(str(path), start, start + len(chunk), line)
            start, line = start + len(chunk), line + chunk.count(b"\n")


def decode_part(part: Part, max_line: int) -> Iterator[Decoded]:
    """The rows of a part."""
    with Path(part).open("rb") as file:
        file.seek(part.start)
        lines = io.BytesIO(file.read(part.end - part.start))
    yield from _lines(lines, max_line, part.line)


def decode_file(path: Path, max_line: int) -> Iterator[Decoded]:
    """The rows of a file, whose ending names its format; a file with an unknown ending is JSONL."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith(PARQUET):
        return _parquet(path)
    return _text(path, name, max_line)


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a data set here, with all rows in one or a part for each split."""
    return is_saved_whole(folder) or (folder / "dataset_dict.json").is_file()


def is_saved_whole(folder: Path) -> bool:
    """Whether `datasets` saved a data set here that has no splits."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def decode_saved(folder: Path, split: str) -> Iterator[Decoded]:
    """The rows of a data set that `datasets` saved on disk; of one with splits, those of `split`."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as e:
        raise DataError(
            f"{folder} is a data set that the library datasets saved: `pip install datasets` to read it, or give a "
            "JSONL file."
        ) from e
    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as e:  # the library raises errors of its own, of Arrow and of the file system
        raise DataError(f"data set {folder} can't be read: {type(e).__name__}: {e}. Save it again.") from e
    if not is_saved_whole(folder):
        if split not in data:
            raise DataError(
                f"data set {folder} has no split {split!r}; it has: {', '.join(data) or 'none'}. Save one of that name."
            )
        data = data[split]
    return enumerate(data, start=1)


def decode_hub(name: str, config: str | None, split: str) -> Iterator[Decoded]:
    """The rows of a data set on the hub."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as e:
        raise DataError(
            f"no file or directory {name!r} (working directory: {Path.cwd()}). "
            "If it is a data set on the Hugging Face hub, `pip install datasets` to load it; "
            "or give the path of a JSONL file."
        ) from e
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as e:  # the library raises errors of its own, of the network and of the file system
        raise DataError(
            f"data set {name!r} (configuration {config!r}, split {split!r}) can't be loaded from the hub: "
            f"{type(e).__name__}: {e}. Give the path of a local JSONL file instead."
        ) from e
    return enumerate(data, start=1)


def _text(path: Path, name: str, max_line: int) -> Iterator[Decoded]:
    number = 0
    try:
        with opened(path) as file:
            separator = TABLES.get(Path(name).suffix)
            if separator is not None:
                rows = _table(path, file, separator)
            elif name.endswith(".json") and _is_array(file):
                rows = _array(file)
            else:
                rows = _lines(file, max_line)
            for number, value in rows:
                yield number, value
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        kind = "gzip" if path.name.lower().endswith(".gz") or not isinstance(e, EOFError) else "packed"
        yield number + 1, Bad(f"the {kind} file is damaged, nothing can be read from here on: {e}")
    except OSError as e:
        raise DataError(f"{path} can't be read, at line {number + 1}: {e}") from e
    except Exception as e:
        if type(e).__name__ != "ZstdError":  # the package may not be there to name it
            raise
        yield number + 1, Bad(f"the Zstandard file is damaged, nothing can be read from here on: {e}")


def opened(path: Path) -> IO[bytes]:
    """A file, opened to be read, unpacked if it is gzip or Zstandard. Raises DataError without the package for it."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(GZIP):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if start == ZSTD:
        return io.BufferedReader(_Zstandard(path))
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """The content of a Zstandard file. Raises EOFError where the file ends too early, which the package's own reader
    takes for its end."""

    def __init__(self, path: Path) -> None:
        self._make = zstandard(path).ZstdDecompressor().decompressobj
        self._file, self._frame, self._left = path.open("rb"), self._make(), b""
        self._begun = False  # whether a frame has begun that has not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            packed = self._file.read(1 << 16)
            if not packed:
                if self._begun:
                    raise EOFError("it ends before the end of its last frame")
                return 0
            out = []
            while packed:
                self._begun = True
                out.append(self._frame.decompress(packed))
                packed = b""
                if self._frame.eof:
                    packed, self._frame, self._begun = self._frame.unused_data, self._make(), False
            self._left = b"".join(out)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def zstandard(path: Path) -> Any:
    """The package for Zstandard files. Raises DataError where it is not installed."""
    try:
        return importlib.import_module("zstandard")
    except ImportError as e:
        raise DataError(
            f"{path} is a Zstandard file, and the package zstandard is not installed: pip install zstandard, or use a "
            "file with another ending, such as .jsonl.gz."
        ) from e


def _lines(file: IO[bytes], max_line: int, first: int = 1) -> Iterator[Decoded]:
    number = first - 1
    while raw := file.readline(max_line + 1):
        number += 1
        if len(raw) > max_line:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(max_line)
            yield number, Bad(f"a line of more than {max_line:,} bytes")
        elif value := _line(raw.removeprefix(BOM) if number == 1 else raw):
            yield number, value[0]


def _line(raw: bytes) -> tuple[object] | None:
    """The line's value in a tuple, because the value may be null; None for a blank line."""
    if not raw.strip():
        return None
    if b"\0" in raw:
        return (Bad("NUL bytes"),)
    try:
        return (json.loads(raw.decode("utf-8")),)
    except UnicodeDecodeError as e:
        return (Bad(f"not UTF-8: {e.reason} at byte {e.start}"),)
    except (ValueError, RecursionError) as e:
        return (Bad(f"broken JSON: {e}"),)


def _is_array(file: IO[bytes]) -> bool:
    start = file.read(len(BOM)).removeprefix(BOM) or file.read(1)
    while start and not start.strip():
        start = file.read(1)
    file.seek(0)
    return start.strip().startswith(b"[")


def _array(file: IO[bytes]) -> Iterator[Decoded]:
    """The elements of a JSON array, numbered as they come. After broken JSON nothing more can be read."""
    number, decoder, space = 1, json.JSONDecoder(), " \t\r\n"
    try:
        text = file.read().decode("utf-8-sig")
        at = text.index("[") + 1
        while True:
            while text[at : at + 1] and text[at] in space:
                at += 1
            if text[at : at + 1] == "]" and number == 1:
                return
            value, at = decoder.raw_decode(text, at)
            while text[at : at + 1] and text[at] in space:
                at += 1
            yield number, value
            number += 1
            if text[at : at + 1] == "]":
                return
            if text[at : at + 1] != ",":
                raise ValueError(f"a comma or ] must come after the element, at character {at}")
            at += 1
    except UnicodeDecodeError as e:
        yield number, Bad(f"not UTF-8: {e.reason} at byte {e.start}; nothing can be read. Save the file as UTF-8")
    except (ValueError, RecursionError) as e:
        yield number, Bad(f"broken JSON, nothing can be read from here on: {e}")


def _table(path: Path, file: IO[bytes], separator: str) -> Iterator[Decoded]:
    # Bytes that are no UTF-8 become lone surrogates, so that they spoil their own row and no other.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=separator, strict=True)
        heading = _heading(path, rows)
        number = 1
        while True:
            number += 1
            try:
                cells = next(rows, None)
            except csv.Error as e:
                yield number, Bad(f"broken CSV: {e}")
                continue
            if cells is None:
                return
            if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                yield number, Bad("not UTF-8. Save the file as UTF-8")
            elif cells and len(cells) != len(heading):
                yield number, Bad(f"{len(cells)} columns; the heading has {len(heading)}")
            elif cells:  # not a blank line
                yield number, dict(zip(heading, cells, strict=True))


def _heading(path: Path, rows: Iterator[list[str]]) -> list[str]:
    try:
        heading = next(rows, [])
    except csv.Error as e:
        raise DataError(f"{path} has no readable heading: {e}. Its first row must name the columns.") from e
    if len(set(heading)) < len(heading):
        twice = next(name for name in heading if heading.count(name) > 1)
        raise DataError(f"{path} has two columns {twice!r}. The first row names the columns; each name may occur once.")
    return heading


def _parquet(path: Path) -> Iterator[Decoded]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as e:
        raise DataError(
            f"{path} is a Parquet file, and pyarrow, which reads these, is not installed: "
            "pip install 'stepmark[parquet]', or give a JSONL or CSV file."
        ) from e
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as e:  # errors of Arrow are one or the other
        raise DataError(f"{path} can't be read as Parquet: {e}") from e
    return _batches(path, file)


def _batches(path: Path, file: Any) -> Iterator[Decoded]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            for i in range(batch.num_rows):
                number += 1
                try:
                    yield number, batch.slice(i, 1).to_pylist()[0]
                except UnicodeDecodeError as e:
                    yield number, Bad(f"not UTF-8: {e.reason}")
    except (OSError, ValueError) as e:
        yield number + 1, Bad(f"the Parquet file is damaged, nothing can be read from here on: {e}")

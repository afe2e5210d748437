"""Files of a run: append-only records, the resolved configuration, and other files that are complete or absent.

A stage's results are lines of JSON, one frozen dataclass each, appended with one write() per batch. A process that is
killed at any moment leaves complete lines and at most one incomplete line at the end. The next process that appends
cuts the incomplete line off. So a stage resumes with

    done = out.keys()
    out.append(work(u) for u in batch if u.id not in done)

and no record is lost or stored twice. Each line starts with its record's key, so keys are read without parsing the
rest. Text is stored exactly, including NUL bytes and lone surrogates. One exception: a high and a low surrogate side by
side, as two characters, come back as the one character that they encode, as JSON defines it.

Other files are written under a temporary name and then renamed. What is written is locked (locks.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import json
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from stepmark.data import locks
from stepmark.errors import ConfigChanged, ConfigError, DataError, StageError
from stepmark.types import Place


class StoredRecord(Protocol):
    """A dataclass with a `key` that identifies the record and never changes."""

    @property
    def key(self) -> str: ...


T = TypeVar("T", bound=StoredRecord)
K = TypeVar("K", bound=StoredRecord)

_KEY = re.compile(rb'\{"key":"((?:[^"\\]|\\.)*)"[,}]')


class Records(Generic[T]):
    """The records of one kind in one file. Reading needs no lock and returns complete records only. The first append
    locks the file against other writers until `close`, the end of a `with` block, or the end of the process."""

    def __init__(self, path: Place, kind: type[T]) -> None:
        self.path = Path(path)
        self.kind = kind
        self._file: io.FileIO | None = None
        self._keys: set[str] = set()  # valid only while the file is open

    def append(self, records: Iterable[T]) -> int:
        """Appends records with one write() and returns their number. All of them are in the file when this returns.

        Raises DataError for a key that the file or the batch already has, and then writes nothing. Raises StageError
        if another process is writing the file, or if the disk refuses the write; the file then stays as it was."""
        batch = list(records)
        if not batch:
            return 0
        file = self._open()
        keys = {r.key for r in batch}
        if len(keys) < len(batch) or not keys.isdisjoint(self._keys):
            seen = set(self._keys)
            known = next(r.key for r in batch if r.key in seen or seen.add(r.key))  # type: ignore[func-returns-value]
            raise DataError(f"{self.path} already has a record with the key {known!r}. Skip the keys that keys() has.")
        data = memoryview(b"".join(map(encode, batch)))
        before = os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException as e:
            with contextlib.suppress(OSError):
                file.truncate(before)
            if isinstance(e, OSError):
                raise StageError(
                    f"{self.path} can't be written: {e.strerror}. The {len(self._keys)} records in it are kept; "
                    "make room and run the same command again."
                ) from e
            raise
        self._keys |= keys
        return len(batch)

    def keys(self) -> set[str]:
        """The keys of all complete records. Raises DataError for a line that is not a record, and for a key that
        occurs twice."""
        if self._file is not None:
            return set(self._keys)
        keys: set[str] = set()
        for number, line in self._lines():
            m = _KEY.match(line)
            if m is None or not line.endswith(b"}\n"):
                raise self._corrupt(number, "it does not start with a key or does not end with a brace")
            raw = m[1]
            key = json.loads(b'"' + raw + b'"') if b"\\" in raw else raw.decode("utf-8", "replace")
            if key in keys:
                raise self._corrupt(number, f"a line before has the key {key!r} too")
            keys.add(key)
        return keys

    def __iter__(self) -> Iterator[T]:
        """The records in the order in which they were written. Raises DataError for a line that is not a record."""
        decode = decoder(self.kind)
        named = any(f.name == "key" for f in dataclasses.fields(self.kind))  # type: ignore[arg-type]
        for number, line in self._lines():
            try:
                fields = json.loads(line.decode())  # decoded here, because json guesses the encoding of bytes with NULs
                key = fields["key"] if named else fields.pop("key")
                record: T = decode(fields)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
                raise self._corrupt(number, f"{type(e).__name__}: {e}") from e
            if record.key != key:
                raise self._corrupt(number, f"its key is {key!r} but its fields say {record.key!r}")
            yield record

    def __len__(self) -> int:
        """The number of complete records (counts lines without parsing them)."""
        return sum(1 for _ in self._lines())

    def claim(self) -> None:
        """Locks the file against other writers from now on, as the first append does. Raises StageError if another
        writer holds the lock."""
        self._open()

    def close(self) -> None:
        """Flushes the appended records to the disk and lets other processes write. Reading still works afterwards."""
        if self._file is not None:
            file, self._file, self._keys = self._file, None, set()
            with file:
                os.fsync(file.fileno())

    def __enter__(self) -> Records[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._file.close()  # type: ignore[union-attr]

    def __repr__(self) -> str:
        return f"Records({str(self.path)!r}, {self.kind.__name__})"

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            file = self.path.open("rb", buffering=1 << 20)
        except FileNotFoundError:
            return
        with file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # only the last line may lack it: torn by a kill, or being written now
                    yield number, line

    def _open(self) -> io.FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = io.FileIO(self.path, "a+")
            try:
                if not locks.take(file):
                    raise StageError(
                        f"{self.path} is being written by another process, or by another Records of this one that "
                        "was not closed. Wait for it to end, or write somewhere else."
                    )
                drop_torn_line(file)
                self._keys = self.keys()
            except BaseException:
                file.close()
                raise
            self._file = file
        return self._file

    def _corrupt(self, line: int, reason: str) -> DataError:
        return DataError(
            f"{self.path}, line {line}: not a {self.kind.__name__} record: {reason}. Only an incomplete last line is "
            "repaired automatically. Delete this line; then the same command makes its record again."
        )


class RunDir:
    """The directory of one run: config.json, records as NAME.jsonl, and other files that are complete or absent."""

    def __init__(self, path: Place) -> None:
        self.path = Path(path)
        self._lock: io.FileIO | None = None
        self._records: dict[str, Records[Any]] = {}

    def open(self, config: Mapping[str, Any], upgrade: Callable[[Any], Any] | None = None) -> RunDir:
        """Locks the directory, and creates it if it is missing. Writes `config` to config.json, or compares the two if
        config.json exists. Leave settings that can't change a result (such as workers) out of `config`. `upgrade` turns
        a stored configuration of an earlier version into one of this version.

        Raises ConfigChanged with the diff if they differ, StageError while another process has the directory open, and
        ConfigError for a value that JSON can't hold."""
        plain = self._plain(config, sort_keys=False)
        if self._lock is None:
            self._lock = self._take_lock()
        try:
            if not self.compare(config, upgrade):
                write_text(self.path / "config.json", plain)  # in the order of `config`, which tables have too
        except BaseException:
            self.close()
            raise
        return self

    def compare(self, config: Mapping[str, Any], upgrade: Callable[[Any], Any] | None = None) -> bool:
        """Whether the directory has a config.json. Raises ConfigChanged with the diff where it differs from `config`.
        Locks and writes nothing."""
        new = self._plain(config)
        if not (self.path / "config.json").exists():
            return False
        stored = self.read_json("config.json")
        old = _dumps(stored if upgrade is None else upgrade(stored), sort_keys=True)
        if old != new:
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "stored", "given", lineterm="", n=1)
            raise ConfigChanged(str(self.path), "\n".join(lines))
        return True

    def _plain(self, config: Mapping[str, Any], sort_keys: bool = True) -> str:
        try:
            return _dumps(config, sort_keys)
        except (TypeError, ValueError) as e:
            raise ConfigError(f"the configuration of {self.path} can't be stored: {e}. Use plain values.") from e

    def records(self, name: str, kind: type[K]) -> Records[K]:
        """The records in NAME.jsonl; `name` may contain folders. Every call for a name returns the same object."""
        records = self._records.setdefault(name, Records(self.path / f"{name}.jsonl", kind))
        if records.kind is not kind:
            raise DataError(f"{records.path} holds {records.kind.__name__} records, not {kind.__name__}.")
        return records

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a value of plain types and dataclasses, completely or not at all. Raises ValueError for NaN and
        infinity, which other programs can't read."""
        return write_text(self.path / name, _dumps(value))

    def read_json(self, name: str) -> Any:
        """Reads a file of write_json. Raises DataError if it is missing or broken."""
        try:
            return json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            raise DataError(f"no file {self.path / name}. Is {self.path} a finished run?") from None
        except ValueError as e:
            raise DataError(f"{self.path / name} is not JSON: {e}.") from e

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text file, completely or not at all."""
        return write_text(self.path / name, text)

    def close(self) -> None:
        """Closes the records and lets other processes open the directory."""
        for records in self._records.values():
            records.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self._lock.close()  # type: ignore[union-attr]

    def _take_lock(self) -> io.FileIO:
        self.path.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(self.path / ".lock", "a+")
        if not locks.take(file):
            file.seek(0)
            holder = file.read(20).decode("ascii", "replace").strip() or "unknown"
            file.close()
            raise StageError(
                f"{self.path} is in use by another run (process {holder}). Wait until it ends, or use another "
                "directory."
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        return file


def write_json(path: Place, value: object) -> None:
    """Writes a small JSON file, completely or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Place, text: str) -> Path:
    """Writes UTF-8, completely or not at all. Lone surrogates, which UTF-8 can't hold, become backslash escapes."""
    with replacing_file(path) as file:
        file.write(text)
    return Path(path)


@contextlib.contextmanager
def replacing_file(path: Place) -> Iterator[io.TextIOWrapper]:
    """A temporary text file that is renamed to `path` if the block ends without an error, and deleted otherwise. So a
    reader finds the old file or the new one, never a part. Lone surrogates are written as backslash escapes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """A new directory for the block to fill. It replaces `path` if the block ends without an error, and is deleted
    otherwise.

    After a kill in the middle, the old directory still exists: at `path`, or (between the two renames) at a place from
    which `settled(path)` restores it. Only one writer at a time."""
    path = settled(path)
    new, old = (path.with_name(path.name + end) for end in (".new", ".old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for entry in new.rglob("*"):
            if entry.is_file():
                with entry.open("rb") as file:
                    os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    new.rename(path)
    _sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def settled(path: Place) -> Path:
    """Returns `path`, after repairing what a kill in the middle of `replacing` left there."""
    path = Path(path)
    old = path.with_name(path.name + ".old")
    if old.exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)
    return path


def encode(record: StoredRecord) -> bytes:
    """A record's line, with its line end."""
    line = _LINE.encode({"key": record.key} | _fields(record)) + "\n"
    try:
        return line.encode()
    except UnicodeEncodeError:  # a lone surrogate: only a \u escape can represent it
        return _ASCII_LINE.encode({"key": record.key} | _fields(record)).encode() + b"\n"


@functools.cache
def decoder(kind: Any) -> Callable[[Any], Any]:
    """A function from parsed JSON to a value of type `kind`, which may be a dataclass, an enum, str, int, float, bool,
    a tuple or a mapping from str of these, or one of these or None. The function raises TypeError or ValueError for
    any other value."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_decoder(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    if kind is float:
        return lambda v: float(v) if type(v) in (float, int) else _misfit(kind, v)
    if kind in (str, int, bool, types.NoneType):
        return lambda v: v if type(v) is kind else _misfit(kind, v)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        item = decoder(args[0])
        return lambda v: tuple([item(x) for x in v]) if type(v) is list else _misfit(kind, v)
    if origin is tuple:
        items = [decoder(a) for a in args]
        return lambda v: tuple([f(x) for f, x in zip(items, v, strict=True)]) if type(v) is list else _misfit(kind, v)
    if origin in (typing.Union, types.UnionType) and len(args) == 2 and types.NoneType in args:
        item = decoder(args[0] if args[1] is types.NoneType else args[1])
        return lambda v: None if v is None else item(v)
    if isinstance(origin, type) and issubclass(origin, Mapping) and args[0] is str:
        value = decoder(args[1])
        return lambda v: {k: value(x) for k, x in v.items()} if type(v) is dict else _misfit(kind, v)
    raise TypeError(f"records can't hold values of type {kind}")


def _dataclass_decoder(kind: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    fields = {f.name: decoder(hints[f.name]) for f in dataclasses.fields(kind) if f.init}

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            _misfit(kind, value)
        values = {}
        for name, x in value.items():
            if name not in fields:
                raise ValueError(f"{kind.__name__} has no field {name!r}; was it written by another version?")
            try:
                values[name] = fields[name](x)
            except (TypeError, ValueError) as e:
                raise type(e)(f"{name}: {e}") from None
        return kind(**values)

    return decode


def _misfit(kind: Any, value: Any) -> Any:
    raise TypeError(f"expected {getattr(kind, '__name__', kind)}, got {value!r:.60}")


def plain(value: Any) -> Any:
    """A record as plain values of JSON, as `decoder` reads them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return value.value if isinstance(value, Enum) else value


def _fields(value: Any) -> dict[str, Any]:
    """The fields of one dataclass, not of those inside it: the encoder calls this again for each of them."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"a value of type {type(value).__name__} can't be stored")
    return {name: getattr(value, name) for name in _names(type(value))}


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_fields)
_ASCII_LINE = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=_fields)


def _dumps(value: Any, sort_keys: bool = False) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_fields, sort_keys=sort_keys) + "\n"


def drop_torn_line(file: io.FileIO) -> None:
    """Cuts off an incomplete last line, which a kill left. The caller holds the file's lock."""
    end = size = os.fstat(file.fileno()).st_size
    if not size:
        return
    file.seek(size - 1)  # no pread, which Windows lacks
    if file.read(1) == b"\n":
        return
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # a directory can't be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

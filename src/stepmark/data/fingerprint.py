"""Fingerprints: short texts that tell whether a checkpoint, a file or a problem is still the one that was used.

A checkpoint is known by its content, wherever it lies: SHA-256 of every byte of its weights, settings and tokenizer. So
a copy has the same fingerprint, and a checkpoint that was trained anew under the same path has another, even if only
one layer changed. Stepmark's own notes beside the weights don't count. A verifier that names other checkpoints, such as
a blend, has their content in its fingerprint.

Hashing takes some seconds for each gigabyte, so the hashes of large files are kept in
XDG_CACHE_HOME/stepmark/hashes.json, by path, size, inode and times of change. A file that changed within the last two
seconds is not kept there: with the coarse clock of a file system, it could change again and look the same.

    stepmark sample --model generator/ --n 16 --out solutions.jsonl      # solutions.jsonl.settings.json has it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stepmark.data import gguf
from stepmark.data.store import write_text
from stepmark.errors import CheckpointError
from stepmark.types import Place, Problem, Solution

# What loaders read. Weights in other formats are never loaded; logs and texts for people change no result.
READ = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py", ".npz", ".joblib")
NOTES = ("training.json", "trained.json", "reinforced.json")  # how a checkpoint was made, not what it is
# Files of Stepmark's verifiers that may name other checkpoints, relative to their own directory.
CARDS = ("verifier.json", "blend.json", "likelihood_corrected.json", "surprise.json")
LARGE = 4 * 2**20  # bytes; smaller files are hashed each time
SETTLED = 2.0  # seconds since the last change after which the times of a file tell whether it changed again
MOST = 4096  # entries of the cache; the oldest are dropped


def of_model(place: Place) -> str | None:
    """The fingerprint of a checkpoint: of its content where it is a directory or a GGUF file, of its revision where it
    is a hub id whose files are in the local cache. None for a hub id that was never loaded here, and for a name on a
    server. Raises CheckpointError for a directory that can't be read."""
    if gguf.is_gguf(place):
        return of_file(gguf.file_of(place))
    if not str(place) or not Path(place).is_dir():
        return _revision(str(place))
    try:
        return _of_directory(Path(place).resolve(), set())
    except OSError as e:
        raise CheckpointError(f"the checkpoint {place} can't be read: {e}. Is it being written?") from e


def of_file(path: Place) -> str:
    """The fingerprint of a file's content."""
    return sha256(path).hex()[:16]


def of_problems(problems: Iterable[Problem], answers: bool) -> dict[str, str]:
    """Problem id -> fingerprint of its question; with `answers`, that of its answer and worked solution follows. One
    can be compared with the other: the shorter is the beginning of the longer."""
    return {p.id: _short(p.question) + (_short(repr((p.answer, p.reference))) if answers else "") for p in problems}


def of_data(place: Place) -> str:
    """The fingerprint of a data file, or of all files in a directory."""
    path = Path(place)
    if path.is_file():
        return of_file(path)
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return _short("".join(f"{f.relative_to(path)} {of_file(f)}\n" for f in files))


def of_solutions(solutions: Iterable[Solution]) -> dict[str, str]:
    """Solution id -> fingerprint of its text."""
    return {s.id: _short(s.text) for s in solutions}


def sha256(path: Place) -> bytes:
    """SHA-256 of a file, from the cache where the file has not changed since."""
    path = Path(path).resolve()
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size < LARGE:
            return hashlib.file_digest(file, "sha256").digest()
        key = _identity(path, before)
        if known := _cached().get(key):
            return bytes.fromhex(known)
        now = time.time()
        digest = hashlib.file_digest(file, "sha256").digest()
        unchanged = _identity(path, os.fstat(file.fileno())) == key
    if unchanged and max(before.st_mtime, before.st_ctime) + SETTLED < now:
        _keep(key, digest.hex())
    return digest


def _of_directory(path: Path, seen: set[Path]) -> str | None:
    """`seen` has the directories above, so that two that name each other come to an end."""
    files = sorted(f for f in path.iterdir() if f.suffix in READ and f.name not in NOTES and f.is_file())
    if not files:
        return None
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # hashing releases the interpreter's lock
        hashes = list(threads.map(sha256, files))
    total = hashlib.sha256()
    for file, digest in zip(files, hashes, strict=True):
        total.update(f"{file.name}\0".encode(errors="surrogateescape") + digest)
    for other in _named(path):
        if other not in seen:
            of_other = of_file(other) if other.is_file() else _of_directory(other, seen | {path})
            total.update(f"{of_other}\0".encode())
    return total.hexdigest()[:16]


def _named(path: Path) -> Iterator[Path]:
    """The checkpoints, and the user's own files, that a verifier's files name."""
    for card in CARDS:
        texts: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            texts = list(_texts(json.loads((path / card).read_bytes())))
        for text in texts:
            with contextlib.suppress(OSError, ValueError):  # most texts are no paths
                other = Path(text).resolve() if text.endswith(".py") else (path / text).resolve()
                if other != path and (other.is_file() if text.endswith(".py") else other.is_dir()):
                    yield other


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _revision(name: str) -> str | None:
    """The revision of a hub id that the local cache of the hub's files has."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody's home directory
        hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
        return (hub / f"models--{name.replace('/', '--')}" / "refs" / "main").read_text().strip()[:16] or None
    return None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


# ---- the cache of hashes ----


def _identity(path: Path, status: os.stat_result) -> str:
    """Changes whenever the file does: the time of its last status change can't be set back."""
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{path} {status.st_size} {status.st_dev} {status.st_ino} {times}"


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stepmark" / "hashes.json"


def _cached() -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        stored = json.loads(_place().read_bytes())
        entries = stored.items() if isinstance(stored, dict) else ()
        return {k: v for k, v in entries if re.fullmatch("[0-9a-f]{64}", str(v))}
    return {}


def _keep(key: str, digest: str) -> None:
    """Adds a hash. A cache that can't be written only costs time; what another process adds meanwhile may be lost."""
    with contextlib.suppress(OSError, RuntimeError):
        entries = [*_cached().items(), (key, digest)][-MOST:]
        write_text(_place(), json.dumps(dict(entries)) + "\n")

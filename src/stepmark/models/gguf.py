"""GGUF files as models: converted once into an ordinary checkpoint directory, which everything else reads.

A model's path may be `model.gguf`, or `gguf://package` for the one .gguf file inside an installed Python package
(`gguf://package/name.gguf` where there are several). The package is searched, never imported: the file is data. It is
read by transformers, with the `gguf` package, and written with its tokenizer, chat template and special tokens to

    ~/.cache/stepmark/gguf/NAME-HASH/        ($XDG_CACHE_HOME, or $STEPMARK_CACHE in place of ~/.cache/stepmark)

under the SHA-256 of the file, so that the same file is converted once, wherever it lies. Its quantised weights become
float32, which holds them exactly, or bfloat16 for a model of more than a billion parameters.

    stepmark sample --task gsm8k --model SmolLM2-135M-Instruct.Q4_1.gguf --out solutions.jsonl
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.data.store import write_json, write_text
from stepmark.errors import CheckpointError
from stepmark.models.saving import quietly, save
from stepmark.types import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEME = "gguf://"
MAGIC = b"GGUF"
EXACT = 1_000_000_000  # parameters; larger models are stored in bfloat16


def is_gguf(path: Place) -> bool:
    """Whether a model's path names a GGUF file."""
    return str(path).startswith(SCHEME) or str(path).lower().endswith(".gguf")


def file_of(path: Place) -> Path:
    """The file of a GGUF path. Raises CheckpointError where there is none, or a package has several."""
    text = str(path)
    if not text.startswith(SCHEME):
        file = Path(path)
        if not file.is_file():
            raise CheckpointError(f"no file {file} (working directory: {Path.cwd()}).")
        return file
    package, _, name = text.removeprefix(SCHEME).partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"{text}: no package {package!r} is installed. Install it, or give the file's path.")
    files = sorted(f for place in spec.submodule_search_locations for f in Path(place).rglob(name or "*.gguf"))
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise CheckpointError(f"{text}: needs one .gguf file in the package {package}, found {found}. {_which(files)}")
    return files[0]


def _which(files: list[Path]) -> str:
    if files:
        return f"Name one: {SCHEME}PACKAGE/{files[0].name}."
    return "Where a package holds its model in parts, put them together as it says, and give the file's path."


def directory(path: Place) -> str:
    """The checkpoint directory of a model's path: of a GGUF file the converted one, else the path itself.

    Raises CheckpointError for a file that is broken or of an unsupported architecture, and where `gguf` is missing."""
    if not is_gguf(path):
        return str(path)
    file = file_of(path).resolve()
    state = file.stat()
    return _converted(str(file), state.st_size, state.st_mtime_ns, str(_cache()))


def sha256(path: Place) -> str:
    """The SHA-256 of a GGUF path's file."""
    with file_of(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache() -> Path:
    own = os.environ.get("STEPMARK_CACHE")
    return (
        Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stepmark"
    ).expanduser() / "gguf"


@lru_cache(maxsize=8)
def _converted(name: str, size: int, changed: int, cache: str) -> str:
    """The directory of a converted file. A small file remembers the hash of each file seen, by place, size and time."""
    file = Path(name)
    seen = Path(cache) / "seen" / hashlib.sha256(f"{name}\0{size}\0{changed}".encode()).hexdigest()[:32]
    try:
        digest = seen.read_text().strip()
    except OSError:
        _check(file)
        digest = sha256(file)
        write_text(seen, digest + "\n")
    target = Path(cache) / f"{file.stem}-{digest[:16]}"
    if not (target / "config.json").is_file():
        _convert(file, target, digest)
    return str(target)


def _check(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(4)
    if start != MAGIC:
        raise CheckpointError(f"{file} is no GGUF file: it begins with {start!r}, not {MAGIC!r}. Download it again.")


def _convert(file: Path, target: Path, digest: str) -> None:
    """Writes the checkpoint beside `target` and renames it, so that a reader finds all of it or nothing."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"{file} needs the package gguf to be read: pip install 'stepmark[gguf]'.")
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    model, tokenizer = _read(file)
    try:
        save(partial, model, tokenizer)
        write_json(partial / "source.json", {"file": file.name, "bytes": file.stat().st_size, "sha256": digest})
        try:
            partial.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with quietly():
            loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**place)
    except Exception as e:  # a damaged file can fail anywhere in the reader
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise CheckpointError(
            f"{file} can't be read as a model ({reason}). Either the file is damaged, or its architecture is one that "
            "transformers doesn't read from GGUF: then use the model's checkpoint directory or hub id."
        ) from e
    # transformers calls the loaded model quantised, and would not save it. Its weights are plain float32.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    if sum(x.numel() for x in model.parameters()) > EXACT:
        model = model.to(torch.bfloat16)
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None and tokenizer.eos_token_id is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer

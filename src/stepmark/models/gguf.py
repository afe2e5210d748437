"""GGUF files as models: converted once into an ordinary checkpoint directory, which everything else reads.

The file that a model's path names (data/gguf.py) is read by transformers, with the `gguf` package, and written with its
tokenizer, chat template and special tokens to

    XDG_CACHE_HOME/stepmark/gguf/NAME-HASH/        (~/.cache/stepmark/... where it is not set)

under the SHA-256 of the file, so that the same file is converted once, wherever it lies. Its quantised weights become
float32, which holds them exactly, or bfloat16 for a model of more than a billion parameters.

    stepmark sample --task gsm8k --model SmolLM2-135M-Instruct.Q4_1.gguf --out solutions.jsonl
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.data import fingerprint
from stepmark.data.gguf import file_of, is_gguf
from stepmark.data.store import write_json
from stepmark.errors import CheckpointError
from stepmark.models.saving import quietly, save
from stepmark.types import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAGIC = b"GGUF"
EXACT = 1_000_000_000  # parameters; larger models are stored in bfloat16


def directory(path: Place) -> str:
    """The checkpoint directory of a model's path: of a GGUF file the converted one, else the path itself.

    Raises CheckpointError for a file that is broken or of an unsupported architecture, and where `gguf` is missing."""
    if not is_gguf(path):
        return str(path)
    file = file_of(path)
    with file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    if start != MAGIC:
        raise CheckpointError(f"{file} is no GGUF file: it begins with {start!r}, not {MAGIC!r}. Download it again.")
    digest = fingerprint.sha256(file).hex()
    target = _cache() / f"{file.stem}-{digest[:16]}"
    if not (target / "config.json").is_file():
        _convert(file, target, digest)
    return str(target)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stepmark" / "gguf"


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

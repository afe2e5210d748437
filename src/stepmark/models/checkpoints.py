"""Model directories in the Hugging Face layout: make a tiny one, load any, safely.

`create` trains a byte-level BPE tokenizer on a task's own texts and adds a randomly initialised Llama. Training,
sampling and scoring load it in the same way as a 7B model.

Safety: weights are read from safetensors only, and a checkpoint's own code runs only with `trust_remote_code=True`.

    stepmark init --task arithmetic --out base/
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stepmark.errors import CheckpointError, ConfigError
from stepmark.types import Place

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Reserved in every vocabulary that we make: the tag where a verifier reads a score, and the two words of the score.
STEP, GOOD, BAD = "<step>", "<good>", "<bad>"
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama made from scratch."""

    hidden: int = 64  # width of the residual stream
    layers: int = 2  # transformer blocks
    heads: int = 4  # attention heads in each block
    kv_heads: int = 1  # fewer than `heads` makes the cache smaller, and so sampling faster
    intermediate: int = 0  # width of the feed-forward block; 0 means about 8/3 of `hidden`
    vocab: int = 2048  # largest vocabulary; a small corpus gives a smaller one
    max_length: int = 512  # positions
    digits: bool = False  # True splits numbers into digits, which real text needs; False does not
    words: bool = False  # True makes each frequent word one token, and encodes all other words byte by byte


def create(path: Place, texts: Iterable[str], shape: Shape | None = None, seed: int = 0) -> Path:
    """Creates a checkpoint directory at `path`: tokenizer trained on `texts`, random weights from `seed`.

    Raises ConfigError for an invalid shape, CheckpointError when `path` already holds a model."""
    shape = shape or Shape()
    path = Path(path)
    if (path / "config.json").exists():
        raise CheckpointError(f"{path} already holds a model. Choose another directory, or delete this one.")
    faults = [
        f"{k} must be at least 1, got {v}."
        for k, v in asdict(shape).items()
        if k not in ("intermediate", "digits", "words") and v < 1
    ]
    if shape.intermediate < 0:
        faults.append(f"intermediate must be at least 0, got {shape.intermediate}.")
    if shape.heads > 0 and shape.hidden % (2 * shape.heads):  # rotary embeddings rotate pairs
        faults.append(f"hidden ({shape.hidden}) must be an even multiple of heads ({shape.heads}).")
    if shape.kv_heads > 0 and shape.heads % shape.kv_heads:
        faults.append(f"heads ({shape.heads}) must be a multiple of kv_heads ({shape.kv_heads}).")
    if faults:
        raise ConfigError(faults)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _learn_tokenizer(texts, shape)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate or -(-shape.hidden * 8 // 3 // 16) * 16,
        max_position_embeddings=shape.max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save(path, model, tokenizer)
    return path


def _learn_tokenizer(texts: Iterable[str], shape: Shape) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if shape.digits:
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    specials = ["<pad>", "<bos>", "<eos>", STEP, GOOD, BAD]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = split
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(shape.vocab, 256 + len(specials)),  # every byte has a token, so any text can be encoded
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    if shape.words:
        counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
        known = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        frequent = [w for w, n in counts.most_common() if n > 1 and w not in known]
        vocab = {w: i for i, w in enumerate([*known, *frequent[: max(0, shape.vocab - len(known))]])}
        bpe.model = models.BPE(vocab=vocab, merges=[], ignore_merges=True)
        bpe.add_special_tokens(specials)
    else:
        bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[STEP, GOOD, BAD],
        model_max_length=shape.max_length,
        clean_up_tokenization_spaces=False,
    )


def save(path: Place, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes model and tokenizer. `config.json` is written last, so a directory that has it is complete."""
    path = Path(path)
    partial = path / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial)
    with _quietly():
        model.save_pretrained(partial)
    for file in sorted(partial.rglob("*"), key=lambda p: p.name == "config.json"):
        if file.is_file():
            target = path / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    shutil.rmtree(partial)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Turns off transformers' progress bars and its warning about new heads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def check(path: Place) -> None:
    """Raises CheckpointError, with what is missing, when a local directory is no checkpoint."""
    path = Path(path)
    if not path.exists():
        if str(path).startswith((".", "/")) or str(path).count("/") != 1:
            raise CheckpointError(f"no checkpoint directory {path} (working directory: {Path.cwd()}).")
        return  # "owner/name": a hub id, for transformers to find
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} has no config.json, so it is no Hugging Face checkpoint. Create one; see: stepmark init --help"
        )
    if not any(path.glob("*.safetensors")):
        weights = ", ".join(sorted(p.name for p in path.glob("*.bin"))) or "no weights"
        raise CheckpointError(
            f"{path} has {weights}; weights are read from safetensors only, since other formats can run code."
        )


def load_tokenizer(path: Place, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local or hub checkpoint. Raises CheckpointError."""
    check(path)
    return _cached_tokenizer(str(path), version(path), trust_remote_code)


def version(path: Place) -> int:
    """A number that changes when a local checkpoint is written again. Caches use it to drop old entries."""
    try:
        return (Path(path) / "config.json").stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _cached_tokenizer(path: str, _version: int, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"no tokenizer could be loaded from {path}: {e}") from e


def digest(path: Place) -> str:
    """Hash of a local checkpoint's weights and settings, independent of its path. For a hub id, the id itself."""
    files = sorted(f for f in Path(path).glob("*") if f.suffix in (".safetensors", ".json", ".joblib", ".npz"))
    if not files:
        return str(path)
    h = hashlib.sha256()
    for file in files:
        h.update(file.name.encode())
        with file.open("rb") as f:
            h.update(hashlib.file_digest(f, "sha256").digest())
    return h.hexdigest()[:16]


def load_model(
    path: Place,
    head: str = "CausalLM",
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    new_head: bool = False,
    attention: str | None = "sdpa",
    **config: Any,
) -> PreTrainedModel:
    """The model of a local or hub checkpoint, in evaluation mode, on its device.

    `head`: CausalLM, SequenceClassification or TokenClassification, as in transformers' AutoModelFor... With `new_head`
    the checkpoint may lack the head, which is then random. `attention`: packed batches need sdpa, since eager attention
    would add their bool masks to the logits; None takes the architecture's default. `config` changes configuration
    fields, e.g. num_labels. Raises CheckpointError, also for missing weights."""
    check(path)
    import torch
    import transformers
    from safetensors import SafetensorError

    resolved_device = resolve_device(device)
    auto = getattr(transformers, f"AutoModelFor{head}")
    try:
        with _quietly():
            model, loading_info = auto.from_pretrained(
                str(path),
                dtype=resolve_dtype(dtype, resolved_device),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                attn_implementation=attention,
                output_loading_info=True,
                **config,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise CheckpointError(f"no model could be loaded from {path}: {e}") from e
    base = model.base_model_prefix + "."
    missing = sorted(k for k in loading_info["missing_keys"] if not new_head or k.startswith(base))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} weights of a {type(model).__name__}, which would be random: "
            f"{', '.join(missing[:4])}. Train it first, or use the head that it was trained with."
        )
    return cast("PreTrainedModel", model.to(torch.device(resolved_device)).eval())


def resolve_device(device: str) -> str:
    """ "auto" becomes "cuda" if there is one, else "cpu"; "mps", the GPU of a Mac, is taken only where it is asked for.
    Raises ConfigError for a device that torch does not know or this machine does not have."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise ConfigError(f"torch knows no device {device!r}. This machine has {', '.join(there)}.") from e
    if kind in ("cuda", "mps") and device not in there:
        raise ConfigError(
            f"got device {device!r}, but this machine has only {', '.join(there)}. Use one of these, or device=auto."
        )
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU and float32 on a CPU. Raises ConfigError for an unknown dtype."""
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def positions(path: Place, trust_remote_code: bool = False) -> float:
    """Largest number of tokens that the model of a checkpoint can read; infinite if its configuration sets no limit.

    Raises CheckpointError when the configuration can't be read, or needs code that is not trusted."""
    return _positions(str(path), version(path), trust_remote_code)


@lru_cache(maxsize=8)
def _positions(path: str, _version: int, trust_remote_code: bool) -> float:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"no configuration could be loaded from {path}: {e}") from e
    return float(getattr(config, "max_position_embeddings", None) or math.inf)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id. Without one any id works, since padding is always masked."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0

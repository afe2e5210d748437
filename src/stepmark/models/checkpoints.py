"""Model directories in the Hugging Face layout: make a tiny one, load any, safely.

`create` trains a byte-level BPE tokenizer on a task's own texts and adds a randomly initialised Llama. Training,
sampling and scoring load it in the same way as a 7B model.

Safety: weights are read from safetensors only, and a checkpoint's own code runs only with `trust_remote_code=True`.

    stepmark init --task arithmetic --out base/
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stepmark.data import fingerprint
from stepmark.data.fingerprint import sha256
from stepmark.data.gguf import file_of, is_gguf
from stepmark.data.paths import nowhere
from stepmark.errors import CheckpointError, ConfigError
from stepmark.models import gguf
from stepmark.models.saving import quietly
from stepmark.models.saving import save as save
from stepmark.types import Place

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Reserved in every vocabulary that we make: the tag where a verifier reads a score, and the two words of the score.
STEP, GOOD, BAD = "<step>", "<good>", "<bad>"
HIDDEN, HEADS = 64, 4  # of a Llama made from scratch, unless its other sizes need another number
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama made from scratch. Raises ConfigError for sizes that don't fit one another, all at once."""

    hidden: int = 0  # width of the residual stream; 0 takes 64, or the next that fits `heads`
    layers: int = 2  # transformer blocks
    heads: int = 0  # attention heads in each block; 0 takes 4, or the nearest number that fits `hidden` and `kv_heads`
    kv_heads: int = 1  # fewer than `heads` makes the cache smaller, and so sampling faster
    intermediate: int = 0  # width of the feed-forward block; 0 means about 8/3 of `hidden`
    vocab: int = 2048  # largest vocabulary; a small corpus gives a smaller one
    max_length: int = 512  # positions
    digits: bool = False  # True splits numbers into digits, which real text needs; False does not
    words: bool = False  # True makes each frequent word one token, and encodes all other words byte by byte

    def __post_init__(self) -> None:
        hidden, heads = self.hidden, self.heads
        if heads == 0:
            fitting = [n for n in range(1, 65) if _fit(hidden or n * HIDDEN, n, self.kv_heads)]
            heads = min(fitting, key=lambda n: abs(n - HEADS), default=HEADS)
        if hidden == 0:
            hidden = -(-HIDDEN // (2 * heads)) * 2 * heads if heads > 0 else HIDDEN
        object.__setattr__(self, "hidden", hidden)
        object.__setattr__(self, "heads", heads)
        faults = [
            f"{k} must be at least 1, got {v}."
            for k, v in asdict(self).items()
            if k not in ("intermediate", "digits", "words") and v < 1
        ]
        if self.intermediate < 0:
            faults.append(f"intermediate must be at least 0, got {self.intermediate}.")
        if heads > 0 and not _fit(hidden, heads, 1):
            faults.append(f"hidden ({hidden}) must be an even multiple of heads ({heads}).")
        if heads > 0 and self.kv_heads > 0 and heads % self.kv_heads:
            faults.append(f"heads ({heads}) must be a multiple of kv_heads ({self.kv_heads}).")
        if faults:
            raise ConfigError(faults)


def _fit(hidden: int, heads: int, kv_heads: int) -> bool:
    """Whether rotary embeddings, which rotate pairs, divide among the heads, and these among the kv_heads."""
    return hidden % (2 * heads) == 0 and (kv_heads < 1 or heads % kv_heads == 0)


def create(path: Place, texts: Iterable[str], shape: Shape | None = None, seed: int = 0) -> Path:
    """Creates a checkpoint directory at `path`: tokenizer trained on `texts`, random weights from `seed`.

    Raises CheckpointError when `path` already holds a model."""
    shape = shape or Shape()
    path = Path(path)
    if (path / "config.json").exists():
        raise CheckpointError(f"{path} already holds a model. Choose another directory, or delete this one.")
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


def check(path: Place) -> None:
    """Raises CheckpointError, with what is missing, when a local directory is no checkpoint."""
    if is_gguf(path):
        file_of(path)
        return
    given, path = str(path), Path(path)  # a Path of "./a/b" no longer says that it is no hub id
    if not path.exists():
        if given.startswith((".", "/")) or given.count("/") != 1:
            raise CheckpointError(f"no checkpoint directory {path} {nowhere(path)}")
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
    """The tokenizer of a local or hub checkpoint, or of a GGUF file. Raises CheckpointError."""
    path = gguf.directory(path)
    check(path)
    return _cached_tokenizer(str(path), version(path), trust_remote_code)


def version(path: Place) -> int:
    """A number that changes when a local checkpoint is written again. Caches use it to drop old entries."""
    file = file_of(path) if is_gguf(path) else Path(path) / "config.json"
    try:
        return file.stat().st_mtime_ns
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
    if is_gguf(path):
        return fingerprint.of_file(file_of(path))
    files = sorted(f for f in Path(path).glob("*") if f.suffix in (".safetensors", ".json", ".joblib", ".npz"))
    if not files:
        return str(path)
    h = hashlib.sha256()
    for file in files:
        h.update(file.name.encode())
        h.update(sha256(file))
    return h.hexdigest()[:16]


def load_model(
    path: Place,
    head: str = "CausalLM",
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    new_head: bool = False,
    attention: str | None = "packed",
    **config: Any,
) -> PreTrainedModel:
    """The model of a local or hub checkpoint, or of a GGUF file, in evaluation mode, on its device.

    `head`: CausalLM, SequenceClassification or TokenClassification, as in transformers' AutoModelFor...; "" is the
    body alone. With `new_head` the checkpoint may lack the head, which is then random. `attention`: "packed" is the one
    for packed batches (attention.py), where the model can take it; None is the architecture's default. `config` changes
    configuration fields, e.g. num_labels. Raises CheckpointError, also for missing weights."""
    path = gguf.directory(path)
    check(path)
    import torch
    import transformers
    from safetensors import SafetensorError

    resolved_device = resolve_device(device)
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    try:
        with quietly():
            model, loading_info = auto.from_pretrained(
                str(path),
                dtype=resolve_dtype(dtype, resolved_device),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                attn_implementation=None if attention == "packed" else attention,
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
    if attention == "packed" and getattr(model, "_supports_attention_backend", False):
        from stepmark.models.attention import PACKED

        model.set_attn_implementation(PACKED)
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
    path = gguf.directory(path)
    return _positions(path, version(path), trust_remote_code)


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

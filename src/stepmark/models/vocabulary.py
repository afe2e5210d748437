"""Vocabulary trimming: a copy of a checkpoint without the tokens that some data never uses.

Two thirds of a small multilingual model may be the embedding of words that a task never says. Here their rows are
dropped from the embedding and the output layer. What stays:

- every token of the data, and the shorter tokens from which its merges build it, so that the data is encoded as before;
- special tokens, and all bytes, so that every text can still be encoded.

Everything else of the model is unchanged. So the probability of a kept token is the full model's, renormalised over the
kept ones.

    stepmark init --from gemma-3-270m/ --keep-vocab-of data/train.jsonl --out gemma-trimmed/
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.data import decode
from stepmark.data.paths import nowhere
from stepmark.errors import CheckpointError, ConfigError, DataError
from stepmark.models import checkpoints, gguf
from stepmark.models.tags import RESERVED
from stepmark.types import Place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
KEPT_RESERVED = 32  # reserved tokens that stay, for tags; some tokenizers have thousands
ROUNDS = 50  # of repairs of texts that would be encoded otherwise
REPAIRED = 100  # texts a round
LONGEST = 1 << 24  # bytes of a line
BATCH = 1000  # texts encoded at once


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The result of a trimming."""

    path: str
    texts: int  # that the vocabulary was chosen for
    tokens: int  # of these texts
    vocabulary: int  # tokens now
    vocabulary_before: int
    parameters: int  # of the model now
    parameters_before: int


def trim(source: Place, texts: Sequence[str], out: Place, trust_remote_code: bool = False) -> Trimmed:
    """Writes a copy of the checkpoint `source` to `out`, with the vocabulary of `texts`.

    Raises CheckpointError for a tokenizer that is not of byte pairs, and where `out` holds a model; ConfigError for no
    texts."""
    import torch

    if not texts:
        raise ConfigError("the vocabulary is chosen for texts, and there are none. Give a file with texts.")
    out = Path(out)
    if (out / "config.json").exists():
        raise CheckpointError(f"{out} already holds a model. Choose another directory, or delete this one.")
    source = gguf.directory(source)
    tokenizer = checkpoints.load_tokenizer(source, trust_remote_code)
    model: Any = checkpoints.load_model(
        source, dtype="float32", device="cpu", trust_remote_code=trust_remote_code, attention=None
    )
    before = sum(p.numel() for p in model.parameters()), int(model.get_input_embeddings().weight.shape[0])
    kept, tokens, trimmed = _kept(tokenizer, texts, _config_ids(model))
    rows = torch.tensor(kept)
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    for layer in (model.get_input_embeddings(), None if tied else model.get_output_embeddings()):
        if layer is not None:
            layer.weight = torch.nn.Parameter(layer.weight.detach()[rows].clone())
            if getattr(layer, "bias", None) is not None:
                layer.bias = torch.nn.Parameter(layer.bias.detach()[rows].clone())
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    _renumber(model, {old: new for new, old in enumerate(kept)})
    checkpoints.save(out, model, trimmed)
    return Trimmed(
        str(out), len(texts), tokens, len(kept), before[1], sum(p.numel() for p in model.parameters()), before[0]
    )


def texts_of(path: Place) -> list[str]:
    """The texts of a file: all strings in the rows of a data file (JSONL, JSON, CSV, Parquet), or the file's own text.

    Raises DataError for a file that is not there or can't be read."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {path} {nowhere(path)}")
    if not path.name.lower().endswith(decode.SUFFIXES):
        return [path.read_text(encoding="utf-8", errors="replace")]
    return list(dict.fromkeys(t for _, value in decode.decode_file(path, LONGEST) for t in _strings(value)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


# ---- which tokens stay ----


def _kept(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], named: Iterable[int]
) -> tuple[list[int], int, PreTrainedTokenizerBase]:
    """The kept ids, ascending, the number of the texts' tokens, and the tokenizer of the kept ones."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    if stored["model"]["type"] != "BPE":
        raise CheckpointError(
            f"the vocabulary of a tokenizer of byte pairs (BPE) can be trimmed; this one is {stored['model']['type']}."
        )
    vocab: dict[str, int] = stored["model"]["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(_merges(stored))}
    encoded = list(_encoded(tokenizer, texts))
    kept = {i for ids in encoded for i in ids} | set(named)
    kept |= {i for i in tokenizer.all_special_ids if i is not None}
    kept |= {i for token, i in vocab.items() if _is_byte(stored, token)}
    added = {x["content"]: x["id"] for x in stored["added_tokens"]}
    reserved = sorted(i for token, i in added.items() if RESERVED.fullmatch(token))
    kept |= {i for token, i in added.items() if not RESERVED.fullmatch(token)} | set(reserved[:KEPT_RESERVED])
    if (unknown := stored["model"].get("unk_token")) is not None:
        kept.add(vocab[unknown])
    names = {i: token for token, i in vocab.items()}
    for i in [i for i in kept if i in names]:
        kept |= {vocab[x] for x in _built_from(names[i], ranks) if x in vocab}
    for _ in range(ROUNDS):
        order = sorted(kept)
        trimmed = _tokenizer_of(tokenizer, stored, order)
        new = (tuple(order[i] for i in ids) for ids in _encoded(trimmed, texts))
        different = [text for text, a, b in zip(texts, encoded, new, strict=True) if a != b]
        if not different:
            return order, sum(map(len, encoded)), trimmed
        backend = tokenizer.backend_tokenizer
        for text in different[:REPAIRED]:  # merges within a longer text may take another way to the same tokens
            for word in _words(backend, text):
                kept |= {vocab[x] for x in _built_from(word, ranks) if x in vocab}
    raise CheckpointError(
        f"{len(different)} of {len(texts)} texts would be encoded otherwise with the trimmed vocabulary, the first one "
        f"begins {different[0][:60]!r}. This tokenizer can't be trimmed."
    )


def _merges(stored: Mapping[str, Any]) -> list[list[str]]:
    """The pairs that are merged, in their order. Older files have them as texts with a space."""
    return [m if isinstance(m, list) else m.split(" ", 1) for m in stored["model"]["merges"]]


def _is_byte(stored: Mapping[str, Any], token: str) -> bool:
    """Whether a token is needed so that every text can be encoded. Byte-level tokenizers have a character for each
    byte; others have tokens such as <0x0A>, for the characters that have no token of their own."""
    if stored["model"].get("byte_fallback"):
        return BYTE.fullmatch(token) is not None or (len(token) == 1 and ord(token) < 128)
    return len(token) == 1


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        yield from map(tuple, tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _words(backend: Any, text: str) -> list[str]:
    """What merges are applied to, one after the other."""
    normalized = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    return [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)] if backend.pre_tokenizer else [normalized]


def _built_from(word: str, ranks: Mapping[tuple[str, ...], int]) -> set[str]:
    """All tokens that arise while the merges build a word, from its characters to its tokens."""
    parts = list(word)
    seen = set(parts)
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        i = 0
        while i < len(parts):
            if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                merged.append(best[0] + best[1])
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
        seen.add(best[0] + best[1])
    return seen


# ---- the new tokenizer and the model's numbers ----


def _tokenizer_of(
    tokenizer: PreTrainedTokenizerBase, stored: Mapping[str, Any], kept: Sequence[int]
) -> PreTrainedTokenizerBase:
    """The tokenizer with the kept tokens alone, numbered in their old order."""
    from transformers import AutoTokenizer

    number = {old: new for new, old in enumerate(kept)}
    new = json.loads(json.dumps(stored))
    new["model"]["vocab"] = {t: number[i] for t, i in stored["model"]["vocab"].items() if i in number}
    vocab = new["model"]["vocab"]
    new["model"]["merges"] = [pair for pair in _merges(stored) if all(x in vocab for x in (*pair, "".join(pair)))]
    new["added_tokens"] = [x | {"id": number[x["id"]]} for x in stored["added_tokens"] if x["id"] in number]
    special = (new.get("post_processor") or {}).get("special_tokens") or {}
    for token in special.values():
        token["ids"] = [number[i] for i in token["ids"]]
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        (Path(place) / "tokenizer.json").write_text(json.dumps(new), encoding="utf-8")
        config = Path(place) / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # tokenizer.json has them
        config.write_text(json.dumps(settings), encoding="utf-8")
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    return made


def _config_ids(model: Any) -> set[int]:
    """The tokens that the model's configurations name, such as its end tokens."""
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for key, value in (vars(config) if config is not None else {}).items():
            if key.endswith("_token_id") and value is not None:
                found |= {i for i in (value if isinstance(value, list) else [value]) if i >= 0}
    rows = model.get_input_embeddings().weight.shape[0]
    return {i for i in found if i < rows}


def _renumber(model: Any, number: Mapping[int, int]) -> None:
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        if config is None:
            continue
        for key, value in list(vars(config).items()):
            if key.endswith("_token_id") and value is not None:
                new = [number.get(i, i) for i in value] if isinstance(value, list) else number.get(value, value)
                setattr(config, key, new)
        if hasattr(config, "vocab_size"):
            config.vocab_size = len(number)

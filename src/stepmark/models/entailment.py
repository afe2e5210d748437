"""The probability that one text follows from another, by a sequence-classification checkpoint.

It works with any local or hub checkpoint for AutoModelForSequenceClassification that was trained on pairs (natural
language inference). Pairs are encoded with the tokenizer's own pair format, with special tokens in the texts taken
literally, and run in batches of near-equal length. A pair that is too long for the model has no probability; no text is
truncated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stepmark.errors import ConfigError
from stepmark.models import checkpoints

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 8192  # padding included: bounds memory
ENTAILS = re.compile(r"entail(s|ed|ment)?", re.IGNORECASE)  # matched against the whole name, so not "not_entailment"

Pair = tuple[str, str]  # premise, hypothesis


def probabilities(
    path: str,
    pairs: Sequence[Pair],
    *,
    entailment: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> list[float | None]:
    """p(hypothesis follows from premise) for each pair, in [0, 1]; None for a pair that is too long for the model, or
    whose output is not finite. Equal pairs are computed once.

    `entailment` is the index of the entailment label; None finds it by its name. Raises ConfigError when no name or
    index fits, CheckpointError for a missing model."""
    if not pairs:
        return []
    import torch

    model = _cached_model(path, checkpoints.version(path), dtype, device, trust_remote_code)
    tokenizer = checkpoints.load_tokenizer(path, trust_remote_code)
    index = label_index(model.config.id2label, entailment, path)
    max_length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", math.inf))
    probability: dict[Pair, float | None] = dict.fromkeys(pairs)
    encoded: dict[Pair, Mapping[str, list[int]]] = {}
    for premise, hypothesis in probability:
        inputs = tokenizer(premise, hypothesis, split_special_tokens=True, truncation=False, verbose=False)
        if len(inputs["input_ids"]) <= max_length:
            encoded[premise, hypothesis] = inputs
    # Without a padding token a decoder model can't find the end of a shorter text, so each text is its own batch.
    padded = tokenizer.pad_token_id is not None
    with torch.inference_mode():
        for group in _by_length(encoded, BATCH_TOKENS if padded else 0):
            batch = _padded([encoded[pair] for pair in group], checkpoints.pad_id(tokenizer), model.device)
            logits = model(**batch).logits.float()
            share = logits.softmax(-1)[:, index] if logits.shape[1] > 1 else logits[:, 0].sigmoid()
            for pair, p in zip(group, share.cpu().tolist(), strict=True):
                probability[pair] = p if math.isfinite(p) else None
    return [probability[pair] for pair in pairs]


def label_index(names: Mapping[int, str], entailment: int | None, path: str) -> int:
    """The index of the label that stands for entailment among a model's labels. Raises ConfigError."""
    labels = ", ".join(f"{i}: {name}" for i, name in sorted(names.items()))
    if entailment is not None:
        if entailment not in names:
            raise ConfigError(f"{path} has no label {entailment}. It has {labels}.")
        return entailment
    matches = [i for i, name in names.items() if ENTAILS.fullmatch(name.strip())]
    if len(matches) != 1:
        raise ConfigError(
            f"{path} has the labels {labels}; none or several are named entailment. Give the index, as in entailment=0."
        )
    return matches[0]


@lru_cache(maxsize=2)
def _cached_model(path: str, _version: int, dtype: str, device: str, trust_remote_code: bool) -> Any:
    # The architecture's default attention: some encoders have no other.
    return checkpoints.load_model(
        path, "SequenceClassification", dtype=dtype, device=device, trust_remote_code=trust_remote_code, attention=None
    )


def _by_length(encoded: Mapping[Pair, Mapping[str, list[int]]], max_tokens: int) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    for pair in sorted(encoded, key=lambda pair: len(encoded[pair]["input_ids"])):
        if group and len(encoded[pair]["input_ids"]) * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _padded(rows: Sequence[Mapping[str, list[int]]], pad: int, device: Any) -> dict[str, torch.Tensor]:
    """The tokenizer's outputs for each pair (ids, mask, types) as int64 [B, L], padded on the right."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad}
    return {
        name: torch.tensor([[*row[name], *[fill.get(name, 0)] * (width - len(row[name]))] for row in rows]).to(device)
        for name in rows[0]
    }

"""How likely one text follows from another, by a sequence-classification checkpoint.

Any local or hub checkpoint that AutoModelForSequenceClassification loads and that was trained on pairs (natural
language inference) will do. Pairs are encoded as the tokenizer encodes a pair, with special tokens in the texts taken
literally, and go through the model in batches of near-equal length. A pair that the model can't read to its end has
no probability; nothing is cut.
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
ENTAILS = re.compile(r"entail(s|ed|ment)?", re.IGNORECASE)  # a whole name, so not "not_entailment"

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
    """p(hypothesis follows from premise) for each pair, in [0, 1]; None for one that is too long for the model, or
    whose output is no number. Equal pairs are computed once.

    `entailment` is the index of the label that says so; None finds it by its name. Raises ConfigError where no name or
    index fits, CheckpointError when there is no such model."""
    if not pairs:
        return []
    import torch

    model = _cached_model(path, checkpoints.version(path), dtype, device, trust_remote_code)
    tokenizer = checkpoints.load_tokenizer(path, trust_remote_code)
    index = label_index(model.config.id2label, entailment, path)
    reads = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", math.inf))
    found: dict[Pair, float | None] = dict.fromkeys(pairs)
    encoded: dict[Pair, Mapping[str, list[int]]] = {}
    for premise, hypothesis in found:
        inputs = tokenizer(premise, hypothesis, split_special_tokens=True, truncation=False, verbose=False)
        if len(inputs["input_ids"]) <= reads:
            encoded[premise, hypothesis] = inputs
    # Without a padding token a decoder can't tell where a shorter text ends: those go one by one.
    together = tokenizer.pad_token_id is not None
    with torch.inference_mode():
        for group in _by_length(encoded, BATCH_TOKENS if together else 0):
            batch = _padded([encoded[pair] for pair in group], checkpoints.pad_id(tokenizer), model.device)
            logits = model(**batch).logits.float()
            share = logits.softmax(-1)[:, index] if logits.shape[1] > 1 else logits[:, 0].sigmoid()
            for pair, p in zip(group, share.cpu().tolist(), strict=True):
                found[pair] = p if math.isfinite(p) else None
    return [found[pair] for pair in pairs]


def label_index(names: Mapping[int, str], entailment: int | None, path: str) -> int:
    """The index of the label that stands for entailment among a model's labels. Raises ConfigError."""
    there = ", ".join(f"{i}: {name}" for i, name in sorted(names.items()))
    if entailment is not None:
        if entailment not in names:
            raise ConfigError(f"{path} has no label {entailment}. It has {there}.")
        return entailment
    fits = [i for i, name in names.items() if ENTAILS.fullmatch(name.strip())]
    if len(fits) != 1:
        raise ConfigError(
            f"{path} has the labels {there}; none or several are called entailment. Say which one it is: entailment=0."
        )
    return fits[0]


@lru_cache(maxsize=2)
def _cached_model(path: str, _version: int, dtype: str, device: str, trust_remote_code: bool) -> Any:
    # The architecture's own attention: some encoders have no other.
    return checkpoints.load_model(
        path, "SequenceClassification", dtype=dtype, device=device, trust_remote_code=trust_remote_code, attention=None
    )


def _by_length(encoded: Mapping[Pair, Mapping[str, list[int]]], most: int) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    for pair in sorted(encoded, key=lambda pair: len(encoded[pair]["input_ids"])):
        if group and len(encoded[pair]["input_ids"]) * (len(group) + 1) > most:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _padded(rows: Sequence[Mapping[str, list[int]]], pad: int, device: Any) -> dict[str, torch.Tensor]:
    """What the tokenizer made of each pair (ids, mask, types) -> int64 [B, L], filled up on the right."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad}
    return {
        name: torch.tensor([[*row[name], *[fill.get(name, 0)] * (width - len(row[name]))] for row in rows]).to(device)
        for name in rows[0]
    }

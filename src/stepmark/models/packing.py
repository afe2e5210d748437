"""Sequences -> rectangular batches: packed end to end for training, padded for scoring.

In a packed row each sequence attends only to itself (a block-diagonal causal mask), and its positions start at zero.
So packing changes the speed and no result, which a test checks. The parts of one Encoded are separate in the same way;
they only share the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from stepmark.models.encoding import Encoded

if TYPE_CHECKING:
    import torch

OPEN_ROWS = 32  # rows that can still take a sequence while packing; more rows pack better and slower
LOGITS = 1 << 25  # logits in memory at once: 128 MiB in float32, of which a loss needs several


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors for one forward pass. B rows of L tokens, K positions where scores are read."""

    ids: torch.Tensor  # int64 [B, L]
    positions: torch.Tensor  # int64 [B, L], from zero in each sequence
    mask: torch.Tensor  # bool [B, 1, L, L]: may the query (third axis) see the key (fourth)?
    weights: torch.Tensor  # float32 [B, L] weight of ids[b, t] in the next-token loss, predicted at t-1; 0 on padding
    rows: torch.Tensor  # int64 [K]
    columns: torch.Tensor  # int64 [K]
    targets: torch.Tensor  # float32 [K]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all batches of one update. Dividing by them gives means over the update, not over one batch."""

    scores: float  # positions with a target
    next_tokens: float  # sum of next-token weights
    sequences: float = 1.0  # number of sequences


def pack(lengths: Sequence[int], order: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Groups sequences into rows of at most `row_tokens`; a longer sequence gets its own row.

    Takes the sequences in `order`, and puts each into the row where it leaves the least room. Every index is in the
    result exactly once."""
    closed: list[list[int]] = []
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        fits = [r for r, free in enumerate(room) if free >= lengths[i]]
        if fits:
            best = min(fits, key=lambda r: room[r])
            rows[best].append(i)
            room[best] -= lengths[i]
        else:
            rows.append([i])
            room.append(row_tokens - lengths[i])
        if len(rows) > OPEN_ROWS:
            fullest = min(range(len(rows)), key=lambda r: room[r])
            closed.append(rows.pop(fullest))
            room.pop(fullest)
    return closed + rows


def batch(rows: Sequence[Sequence[Encoded]], pad_id: int, device: str = "cpu") -> Batch:
    """Concatenates the sequences of each row, and pads the rows to one length."""
    import numpy as np
    import torch

    height, width = len(rows), max(sum(len(e) for e in row) for row in rows)
    ids = np.full((height, width), pad_id, dtype=np.int64)
    positions = np.zeros((height, width), dtype=np.int64)
    owner = np.zeros((height, width), dtype=np.int64)  # the sequence of its row that a token belongs to; 0 is padding
    weights = np.zeros((height, width), dtype=np.float32)
    at_rows: list[int] = []
    at_columns: list[int] = []
    targets: list[float] = []
    for b, row in enumerate(rows):
        start = 0
        for e in row:
            end = start + len(e)
            ids[b, start:end] = e.ids
            cuts = [start, *(start + t for t in e.parts), end]
            for first, last in pairwise(cuts):
                positions[b, first:last] = np.arange(last - first)
                owner[b, first:last] = first + 1
            if e.weights:
                weights[b, start:end] = e.weights
                weights[b, cuts[:-1]] = 0.0  # the first token of a sequence is not predicted
            at_rows += [b] * len(e.at)
            at_columns += [start + t for t in e.at]
            targets += e.targets
            start = end
    sequence = torch.from_numpy(owner)
    same = sequence[:, :, None] == sequence[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    tensors = (
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        (same & causal)[:, None],
        torch.from_numpy(weights),
        torch.tensor(at_rows, dtype=torch.int64),
        torch.tensor(at_columns, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.float32),
    )
    return Batch(*(t.to(device) for t in tensors))


def next_token_loss(logits: torch.Tensor, b: Batch) -> torch.Tensor:
    """Sum over tokens of weight * -log p(token | the tokens before it in its sequence), in nats.

    `logits` [B, L, V] are the model's outputs, unshifted; the shift by one position happens here."""
    return next_token_loss_of(logits, lambda kept: kept, b)


def next_token_loss_of(hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], b: Batch) -> torch.Tensor:
    """`next_token_loss` from the last hidden states [B, L, D] and the output layer `head`.

    The output layer runs only at tokens with a weight. In small models it is a large part of the work."""
    keep = b.weights[:, 1:] > 0
    return (_losses(hidden[:, :-1][keep], head, b.ids[:, 1:][keep]) * b.weights[:, 1:][keep]).sum()


def _losses(hidden_KD: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], ids_K: torch.Tensor) -> torch.Tensor:
    """[K] -log p of each token, in nats. Where the vocabulary is large, the logits are computed in pieces, and again
    for the gradient, so that those of a whole batch are never in memory."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def piece(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(head(hidden).float(), ids, reduction="none")

    size = max(1, LOGITS // vocabulary(head))
    if len(ids_K) <= size:
        return piece(hidden_KD, ids_K)
    pieces = zip(torch.split(hidden_KD, size), torch.split(ids_K, size), strict=True)
    return torch.cat([checkpoint(piece, h, ids, use_reentrant=False) for h, ids in pieces])


def vocabulary(head: object) -> int:
    """Width of the logits of an output layer; 1 if it isn't known."""
    weight = getattr(head, "weight", None)
    return 1 if weight is None else int(weight.shape[0])


def log_probs_of(hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], b: Batch) -> torch.Tensor:
    """[K] at each position where a score is read: the sum of weight * log p, in nats, over the tokens of its sequence
    up to and including it. At the end of a sequence it is the joint log-probability of the weighted tokens.

    `hidden` [B, L, D] and `head` as in `next_token_loss_of`. It keeps gradients, for use in a loss."""
    import torch

    keep = b.weights[:, 1:] > 0
    losses = _losses(hidden[:, :-1][keep], head, b.ids[:, 1:][keep])
    dense = torch.zeros_like(b.weights[:, 1:]).masked_scatter(keep, -losses * b.weights[:, 1:][keep])
    seen = b.mask[b.rows, 0, b.columns, 1:]
    return (dense[b.rows] * seen).sum(-1)

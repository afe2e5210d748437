"""Sequences -> rectangular batches: packed end to end.

In a packed row each sequence attends only to itself (a block-diagonal causal mask), and its positions start at zero.
So packing changes the speed and no result, which a test checks. The parts of one Encoded are separate in the same way;
they only share the batch. A part that continues a token (`Encoded.after`) sees that token, and what it sees, besides.

A mask carries its Layout, from which the models' attention (attention.py) knows positions and sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepmark.models.encoding import Encoded

if TYPE_CHECKING:
    import numpy as np
    import torch

OPEN_ROWS = 32  # rows that can still take a sequence while packing; more rows pack better and slower
RATIO = 1.25  # of the lengths of segments that attend together, since they are padded to one length
SLACK = 8  # tokens by which they may differ besides
FEWER = 2  # times fewer scores of queries against keys, from which segments attend apart; they are copied for it
WORTH = 1 << 17  # fewest scores that this must save: below, the calls cost more (measured on 64-wide models)
HIDDEN = 1 << 40  # a position that no query sees
LOGITS = 1 << 25  # logits in memory at once: 128 MiB in float32, of which a loss needs several


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors for one forward pass. B rows of L tokens, K positions where scores are read."""

    ids: torch.Tensor  # int64 [B, L]
    positions: torch.Tensor  # int64 [B, L], from zero in each sequence
    previous: torch.Tensor  # int64 [B, L] column of the token before; of a first token, its own
    mask: torch.Tensor  # bool [B, 1, L, L]: may the query (third axis) see the key (fourth)?
    weights: torch.Tensor  # float32 [B, L] weight of ids[b, t] in the next-token loss, predicted at t-1; 0 on padding
    rows: torch.Tensor  # int64 [K]
    columns: torch.Tensor  # int64 [K]
    targets: torch.Tensor  # float32 [K]


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens of a row that see the same tokens before them. Indices are in the flat batch, [B * L]."""

    own: np.ndarray  # [Q] its tokens
    seen: np.ndarray  # [T] the tokens that its last one sees; its own are the last of them


@dataclass(frozen=True, slots=True)
class Group:
    """S segments of near-equal length, padded to Q queries and T keys. Indices are in the flat batch, [B * L]."""

    queries: torch.Tensor  # int64 [S, Q]
    keys: torch.Tensor  # int64 [S, T]
    query_positions: torch.Tensor  # int64 [S, Q]; 0 on padding
    key_positions: torch.Tensor  # int64 [S, T]; HIDDEN on padding


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tokens of a batch belong together: what a layer's attention needs besides the mask."""

    positions: torch.Tensor  # int64 [B, L], as in Batch
    groups: tuple[Group, ...] = ()  # all segments; none if all tokens of a row are scored against one another
    place: torch.Tensor | None = None  # int64 [B * L] each token's index among the queries of all groups
    masks: dict[tuple[int | None, int | None], list[torch.Tensor]] = field(default_factory=dict)  # by window and chunk

    @property
    def dense(self) -> bool:
        """Whether all tokens of a row are scored against one another, and the mask takes out those that are unseen."""
        return not self.groups


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
    previous = np.tile(np.maximum(np.arange(width) - 1, 0), (height, 1))
    mask = np.zeros((height, width, width), dtype=bool)
    causal = np.tri(width, dtype=bool)
    weights = np.zeros((height, width), dtype=np.float32)
    segments: list[Segment] = []
    at_rows: list[int] = []
    at_columns: list[int] = []
    targets: list[float] = []
    for b, row in enumerate(rows):
        start = 0
        for e in row:
            end = start + len(e)
            ids[b, start:end] = e.ids
            if e.weights:
                weights[b, start:end] = e.weights
            for k, (first, last, places) in enumerate(e.sequences()):
                own = slice(start + first, start + last)
                positions[b, own] = places
                if places.start:
                    previous[b, own.start] = start + e.after[k - 1]
                    mask[b, own] = mask[b, previous[b, own.start]]
                else:
                    previous[b, own.start] = own.start
                    weights[b, own.start] = 0.0  # the first token of a sequence is not predicted
                mask[b, own, own] = causal[: last - first, : last - first]
                seen = np.flatnonzero(mask[b, own.stop - 1]) if places.start else np.arange(own.start, own.stop)
                segments.append(Segment(b * width + np.arange(own.start, own.stop), b * width + seen))
            at_rows += [b] * len(e.at)
            at_columns += [start + t for t in e.at]
            targets += e.targets
            start = end
        mask[b, start:, start:] = causal[: width - start, : width - start]  # padding sees padding
    tensors = (
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(previous),
        torch.from_numpy(mask)[:, None],
        torch.from_numpy(weights),
        torch.tensor(at_rows, dtype=torch.int64),
        torch.tensor(at_columns, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.float32),
    )
    made = Batch(*(t.to(device) for t in tensors))
    made.mask.packed = _layout(made.positions, positions, segments)  # type: ignore[attr-defined]
    return made


def _near(a: int, b: int) -> bool:
    return max(a, b) <= RATIO * min(a, b) + SLACK


def _layout(positions: torch.Tensor, flat: np.ndarray, segments: Sequence[Segment]) -> Layout:
    """The layout of a batch. Its segments attend apart where that saves much."""
    import numpy as np
    import torch

    groups: list[list[Segment]] = []
    for s in sorted(segments, key=lambda s: (len(s.seen), len(s.own))):
        first = groups[-1][0] if groups else None
        if first is None or not _near(len(s.seen), len(first.seen)) or not _near(len(s.own), len(first.own)):
            groups.append([])
        groups[-1].append(s)
    scores = sum(len(g) * max(len(s.own) for s in g) * max(len(s.seen) for s in g) for g in groups)
    height, width = flat.shape
    dense = height * width * width
    if dense < FEWER * scores or dense - scores < WORTH:
        return Layout(positions)
    device, flat, made, placed = positions.device, flat.ravel(), [], 0
    place = np.zeros(height * width, dtype=np.int64)  # padding takes any query's result: nobody reads it
    for group in groups:
        most_queries, most_keys = max(len(s.own) for s in group), max(len(s.seen) for s in group)
        queries, keys = (np.zeros((len(group), n), dtype=np.int64) for n in (most_queries, most_keys))
        query_positions = np.zeros_like(queries)
        key_positions = np.full_like(keys, HIDDEN)
        for i, s in enumerate(group):
            queries[i, : len(s.own)], query_positions[i, : len(s.own)] = s.own, flat[s.own]
            keys[i, : len(s.seen)], key_positions[i, : len(s.seen)] = s.seen, flat[s.seen]
            place[s.own] = placed + i * most_queries + np.arange(len(s.own))
        placed += queries.size
        made.append(Group(*(torch.from_numpy(x).to(device) for x in (queries, keys, query_positions, key_positions))))
    return Layout(positions, tuple(made), torch.from_numpy(place).to(device))


def next_token_loss(logits: torch.Tensor, b: Batch) -> torch.Tensor:
    """Sum over tokens of weight * -log p(token | the tokens before it in its sequence), in nats.

    `logits` [B, L, V] are the model's outputs, unshifted; the shift by one position happens here."""
    return next_token_loss_of(logits, lambda kept: kept, b)


def next_token_loss_of(hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], b: Batch) -> torch.Tensor:
    """`next_token_loss` from the last hidden states [B, L, D] and the output layer `head`.

    The output layer runs only at tokens with a weight. In small models it is a large part of the work."""
    rows, columns = (b.weights > 0).nonzero(as_tuple=True)
    nats = losses(hidden[rows, b.previous[rows, columns]], head, b.ids[rows, columns])
    return (nats * b.weights[rows, columns]).sum()


def losses(hidden_KD: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], ids_K: torch.Tensor) -> torch.Tensor:
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


def log_probs_at(
    hidden_KD: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], tokens: Sequence[int]
) -> torch.Tensor:
    """[K, tokens] the log-probability of each of `tokens` after each of the hidden states, among the whole vocabulary.

    In pieces where the vocabulary is large, as in `next_token_loss_of`; it keeps gradients."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def piece(hidden: torch.Tensor) -> torch.Tensor:
        return head(hidden).float().log_softmax(-1)[:, list(tokens)]

    size = max(1, LOGITS // vocabulary(head))
    if len(hidden_KD) <= size:
        return piece(hidden_KD)
    return torch.cat([checkpoint(piece, h, use_reentrant=False) for h in torch.split(hidden_KD, size)])


def vocabulary(head: object) -> int:
    """Width of the logits of an output layer; 1 if it isn't known."""
    weight = getattr(head, "weight", None)
    return 1 if weight is None else int(weight.shape[0])


def token_log_probs(hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], b: Batch) -> torch.Tensor:
    """[B, L] log p of each token that has a weight, given the tokens before it in its sequence, in nats; 0 elsewhere.

    `hidden` [B, L, D] and `head` as in `next_token_loss_of`. It keeps gradients, for use in a loss."""
    import torch

    rows, columns = (b.weights > 0).nonzero(as_tuple=True)
    nats = losses(hidden[rows, b.previous[rows, columns]], head, b.ids[rows, columns])
    return torch.zeros_like(b.weights).index_put((rows, columns), -nats)


def log_probs_of(hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], b: Batch) -> torch.Tensor:
    """[K] at each position where a score is read: the sum of weight * log p, in nats, over the tokens of its sequence
    up to and including it. At the end of a sequence it is the joint log-probability of the weighted tokens.

    `hidden` [B, L, D] and `head` as in `next_token_loss_of`. It keeps gradients, for use in a loss."""
    weighted = token_log_probs(hidden, head, b) * b.weights
    return (weighted[b.rows] * b.mask[b.rows, 0, b.columns]).sum(-1)

"""Attention as an architecture defines it, in a packed batch and in shared rollouts.

transformers passes a layer's settings with each call. `rule_of` reads them into a Rule, which says which positions a
layer's queries see, and how scores become shares:

- sliding windows (Mistral, Gemma 2 and 3, Phi-3, gpt-oss, some Qwen): a query sees the last `window` positions;
- chunks (Llama 4): a query sees the positions of its own chunk;
- soft-capped scores (Gemma 2): cap * tanh(scores / cap);
- sinks (gpt-oss): one more score for each head, which takes a share and adds nothing.

transformers takes a mask of four axes as it is, for all layers alike, so a packed batch with such a mask would ignore
the windows. Models are therefore loaded with the attention here (`packed`), which is torch's own with two additions: it
knows the positions of a packed batch, and so its windows; and it knows the sequences of each row, so it need not score
all tokens of a row against all others (packing.Layout). Without a packed batch it is torch's own attention.

Axis names: S segments, H heads, K key-value heads, E query heads per key-value head, Q queries, T keys, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    import numpy as np

    from stepmark.models.packing import Layout

PACKED = "stepmark_packed"
SHORT = 32  # length of windows and chunks while a model is checked

Positions = TypeVar("Positions", "np.ndarray", torch.Tensor)


class Unsupported(Exception):
    """The model's attention needs a feature that is not known here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The attention of one layer."""

    scale: float  # factor of the scores
    window: int | None = None  # a query sees this many positions, its own included
    chunk: int | None = None  # a query sees positions of its own chunk of this many
    softcap: float | None = None  # scores stay within plus and minus this
    sinks: torch.Tensor | None = None  # [H] a score for each head that takes a share and adds nothing

    @property
    def plain(self) -> bool:
        """Whether shares are a plain softmax of the scores, so that torch's fused attention computes them."""
        return self.softcap is None and self.sinks is None

    def first(self, positions: Positions) -> Positions:
        """The first position that a query at each of `positions` sees."""
        if self.window is not None:
            return (positions - self.window + 1).clip(0)
        return positions * 0 if self.chunk is None else positions - positions % self.chunk

    def shares(self, scores_KEX: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The softmax of scores [..., K, E, X], which are overwritten. `mask` is added to as many of the first columns
        as it has."""
        if self.softcap is not None:
            scores_KEX = scores_KEX.div_(self.softcap).tanh_() * self.softcap  # the gradient of tanh needs its result
        if mask is not None:
            scores_KEX[..., : mask.shape[-1]] += mask
        if self.sinks is None:
            return scores_KEX.softmax(-1)
        heads, group = scores_KEX.shape[-3:-1]
        sinks = self.sinks.to(scores_KEX.dtype).reshape(heads, group, 1).expand(*scores_KEX.shape[:-1], 1)
        return torch.cat([scores_KEX, sinks], dim=-1).softmax(-1)[..., :-1]


def rule_of(module: torch.nn.Module, width: int, scaling: float | None, options: Mapping[str, Any]) -> Rule:
    """The rule of a layer, from its configuration and the options with which it calls attention. `width`: of a head.

    Raises Unsupported for an option that changes attention in a way that is not known here."""
    if options.get("position_bias") is not None:
        raise Unsupported("its attention adds a bias for positions")
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else None
    if kind not in (None, "full_attention", "sliding_attention", "chunked_attention"):
        raise Unsupported(f"it has a layer of the kind {kind}")
    window = options.get("sliding_window") if kind != "full_attention" else None
    if kind == "sliding_attention" and window is None:
        window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None
    scale = width**-0.5 if scaling is None else scaling
    return Rule(scale, window, chunk, options.get("softcap"), options.get("s_aux"))


def scored(
    q_SHQD: torch.Tensor, k_SKTD: torch.Tensor, v_SKTD: torch.Tensor, seen: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """[S, H, Q, D] attention whose scores are in memory, for rules that torch's fused attention lacks. `seen`, bool
    [S or 1, Q, T]: which keys a query sees."""
    q_SKEQD = (q_SHQD * rule.scale).reshape(q_SHQD.shape[0], k_SKTD.shape[1], -1, *q_SHQD.shape[2:])
    scores = q_SKEQD @ k_SKTD.unsqueeze(2).transpose(-1, -2)  # [S, K, E, Q, T]
    hidden = torch.zeros(seen.shape, dtype=q_SHQD.dtype, device=q_SHQD.device).masked_fill_(~seen, -torch.inf)
    # `shares` has its head axes before the last one, so queries go before them.
    shares = rule.shares(scores.movedim(3, 1), hidden[:, :, None, None]).movedim(1, 3)
    return (shares @ v_SKTD.unsqueeze(2)).flatten(1, 2)


def packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: [B, heads, L, D] in, [B, L, heads, D] out."""
    layout: Layout | None = getattr(attention_mask, "packed", None)
    if (layout is None or attention_mask is None) and options.get("softcap") is None and options.get("s_aux") is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    rule = rule_of(module, query.shape[-1], scaling, options)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        if rule.plain:
            return sdpa_attention_forward(module, q, k, v, seen, dropout=dropout, scaling=rule.scale)[0]
        if seen is None:  # transformers leaves out a mask that is causal
            seen = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])[None]
        return scored(q, k, v, seen.reshape(-1, *seen.shape[-2:]), rule).transpose(1, 2)

    if layout is None or attention_mask is None:
        return attend(query, key, value, attention_mask), None
    if layout.place is None:
        return attend(query, key, value, _seen(layout, attention_mask, rule)), None
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [B * L, heads, D]
    parts = []
    for group, seen in zip(layout.groups, _seen_by_group(layout, rule), strict=True):
        own, others, values = q[group.queries], k[group.keys], v[group.keys]  # [S, Q or T, heads, D]
        result = attend(own.transpose(1, 2), others.transpose(1, 2), values.transpose(1, 2), seen)
        parts.append(result.flatten(0, 1))
    flat = torch.cat(parts)[layout.place]
    return flat.reshape(query.shape[0], query.shape[2], *flat.shape[1:]), None


def _seen(layout: Layout, mask: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The mask of a batch, [B, 1, L, L], with a layer's windows."""
    size = rule.chunk if rule.window is None else rule.window
    if size is None or mask.shape[-1] <= size:
        return mask
    if (key := (rule.window, rule.chunk)) not in layout.masks:
        first = rule.first(layout.positions)
        layout.masks[key] = [mask & (layout.positions[:, None, None] >= first[:, None, :, None])]
    return layout.masks[key][0]


def _seen_by_group(layout: Layout, rule: Rule) -> list[torch.Tensor]:
    """For each group, bool [S, 1, Q, T]: which keys a query sees in a layer."""
    if (key := (rule.window, rule.chunk)) not in layout.masks:
        layout.masks[key] = [
            (
                (g.key_positions[:, None] <= g.query_positions[..., None])
                & (g.key_positions[:, None] >= rule.first(g.query_positions)[..., None])
            )[:, None]
            for g in layout.groups
        ]
    return layout.masks[key]


AttentionInterface.register(PACKED, packed)
AttentionMaskInterface.register(PACKED, sdpa_mask)


@contextmanager
def short_windows(model: torch.nn.Module, config: Any) -> Iterator[None]:
    """Makes sliding windows and chunks at most SHORT long within the block, so that short texts reach beyond them."""
    names = ("sliding_window", "attention_chunk_size")
    holders = [(x, name) for x in (config, *model.modules()) for name in names]
    before = [
        (x, name, size) for x, name in holders if isinstance(size := getattr(x, name, None), int) and size > SHORT
    ]
    try:
        for x, name, _ in before:
            setattr(x, name, SHORT)
        yield
    finally:
        for x, name, size in before:
            setattr(x, name, size)

"""Attention as an architecture defines it: which positions a layer's queries see, and how scores become shares.

transformers passes a layer's settings with each call. `rule_of` reads them into a Rule, which says all that the shared
attention needs to know:

- sliding windows (Mistral, Gemma 2 and 3, Phi-3, gpt-oss, some Qwen): a query sees the last `window` positions;
- chunks (Llama 4): a query sees the positions of its own chunk;
- soft-capped scores (Gemma 2): cap * tanh(scores / cap);
- sinks (gpt-oss): one more score for each head, which takes a share and adds nothing.

`causal` attends within sequences that are encoded. Rollouts attend in cohort.py.

Axis names: G sequences, H heads, K key-value heads, E query heads per key-value head, W queries, T keys, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

QUERIES = 256  # queries scored at once where scores are materialised, or where a window hides most keys


class Unsupported(Exception):
    """The model's attention needs a feature that shared attention lacks."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The attention of one layer."""

    scale: float  # factor of the scores
    window: int | None = None  # a query sees this many positions, its own included
    chunk: int | None = None  # a query sees positions of its own chunk of this many
    softcap: float | None = None  # scores stay within plus and minus this
    sinks: torch.Tensor | None = None  # [H] a score for each head that takes a share and adds nothing

    def first(self, positions: np.ndarray) -> np.ndarray:
        """The first position that a query at each of `positions` sees."""
        if self.window is not None:
            first: np.ndarray = np.maximum(positions - self.window + 1, 0)
        else:
            first = positions - positions % self.chunk if self.chunk is not None else np.zeros_like(positions)
        return first

    def shares(self, scores_GKEX: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The softmax of scores [..., K, E, X], which are overwritten. `mask` is added to as many of the first columns
        as it has."""
        if self.softcap is not None:
            scores_GKEX = scores_GKEX.div_(self.softcap).tanh_().mul_(self.softcap)
        if mask is not None:
            scores_GKEX[..., : mask.shape[-1]] += mask
        if self.sinks is None:
            return scores_GKEX.softmax(-1)
        heads, group = scores_GKEX.shape[-3:-1]
        sinks = self.sinks.to(scores_GKEX.dtype).reshape(heads, group, 1).expand(*scores_GKEX.shape[:-1], 1)
        return torch.cat([scores_GKEX, sinks], dim=-1).softmax(-1)[..., :-1]


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


def causal(q_GHWD: torch.Tensor, k_GKTD: torch.Tensor, v_GKTD: torch.Tensor, rule: Rule) -> torch.Tensor:
    """[G, H, W, D] attention of the queries at the last W of T positions, each over itself and what it sees before."""
    width, total = q_GHWD.shape[2], k_GKTD.shape[2]
    start = total - width
    simple = rule.softcap is None and rule.sinks is None
    sees_all = not rule.first(np.array([total - 1])).any()
    grouped = q_GHWD.shape[1] != k_GKTD.shape[1]
    if simple and sees_all and not start:
        return F.scaled_dot_product_attention(
            q_GHWD, k_GKTD, v_GKTD, is_causal=True, scale=rule.scale, enable_gqa=grouped
        )
    size = width if simple and sees_all else QUERIES
    parts = []
    for a in range(0, width, size):
        at = start + np.arange(a, min(a + size, width))
        first = rule.first(at)
        keys = slice(int(first[0]), int(at[-1]) + 1)
        position = np.arange(keys.start, keys.stop)
        seen = torch.from_numpy((position <= at[:, None]) & (position >= first[:, None])).to(q_GHWD.device)
        q, k, v = q_GHWD[:, :, a : a + size], k_GKTD[:, :, keys], v_GKTD[:, :, keys]
        if simple:
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=rule.scale, enable_gqa=grouped))
            continue
        q_GKEWD = (q * rule.scale).reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
        scores = q_GKEWD @ k.unsqueeze(2).transpose(-1, -2)  # [G, K, E, W, T]
        hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)
        # `shares` has its head axes before the last one, so queries go to the front.
        shares = rule.shares(scores.movedim(3, 1), hidden[:, None, None]).movedim(1, 3)
        parts.append((shares @ v.unsqueeze(2)).flatten(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

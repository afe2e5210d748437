"""Attention within sequences that are encoded for rollouts. Rollouts attend in cohort.py, by the same rules
(models/attention.py).

Axis names: G sequences, H heads, K key-value heads, W queries, T keys, D head width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from stepmark.models.attention import Rule, scored

QUERIES = 256  # queries scored at once where scores are materialised, or where a window hides most keys


def causal(q_GHWD: torch.Tensor, k_GKTD: torch.Tensor, v_GKTD: torch.Tensor, rule: Rule) -> torch.Tensor:
    """[G, H, W, D] attention of the queries at the last W of T positions, each over itself and what it sees before."""
    width, total = q_GHWD.shape[2], k_GKTD.shape[2]
    start = total - width
    sees_all = not rule.first(np.array([total - 1])).any()
    grouped = q_GHWD.shape[1] != k_GKTD.shape[1]
    if rule.plain and sees_all and not start:
        return F.scaled_dot_product_attention(
            q_GHWD, k_GKTD, v_GKTD, is_causal=True, scale=rule.scale, enable_gqa=grouped
        )
    size = width if rule.plain and sees_all else QUERIES
    parts = []
    for a in range(0, width, size):
        at = start + np.arange(a, min(a + size, width))
        first = rule.first(at)
        keys = slice(int(first[0]), int(at[-1]) + 1)
        position = np.arange(keys.start, keys.stop)
        seen = torch.from_numpy((position <= at[:, None]) & (position >= first[:, None])).to(q_GHWD.device)
        q, k, v = q_GHWD[:, :, a : a + size], k_GKTD[:, :, keys], v_GKTD[:, :, keys]
        if rule.plain:
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=rule.scale, enable_gqa=grouped))
        else:
            parts.append(scored(q, k, v, seen[None], rule))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

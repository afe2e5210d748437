"""Drawing tokens: randomness from counters, and the inverse of the cumulative distribution.

The uniform number behind the t-th token of a rollout is a hash (SplitMix64's finaliser) of the rollout's own key
and t. Nothing is kept between draws, so a rollout is the same whatever shares its batch, whatever came before,
and on whichever machine, up to rounding in the logits.

Top-p follows Holtzman et al. 2020 (arXiv 1904.09751): the smallest set of most probable tokens whose mass
reaches p. Log-probabilities are the model's own, at temperature 1 and over the whole vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def key(seed: int, prompt_id: str, index: int) -> int:
    """The 64-bit key of a rollout's randomness."""
    name = f"{seed}\0{index}\0{prompt_id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def uniforms(keys_B: np.ndarray, t_B: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row, [B] float64: the `t_B`-th of each row's stream (t_B counts from 0)."""
    with np.errstate(over="ignore"):
        x = keys_B + (t_B.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
        x ^= x >> np.uint64(31)
    u_B: np.ndarray = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return u_B


def draw(
    logits_BV: torch.Tensor, u_B: torch.Tensor | None, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token id per row, [B] int64, and its log-probability at temperature 1, [B] float32, in nats.

    `u_B` holds a uniform number per row; None, or a temperature of 0, takes the most probable token."""
    logits_BV = logits_BV.float()
    if u_B is None or temperature == 0:
        top_B, ids_B = logits_BV.max(-1)
        return ids_B, top_B - logits_BV.logsumexp(-1)
    top_B1 = logits_BV.amax(-1, keepdim=True)
    mass_BV = torch.sub(logits_BV, top_B1)
    if temperature == 1:
        mass_BV.exp_()
        total_B1 = None
    else:
        total_B1 = mass_BV.exp().sum(-1, keepdim=True)
        mass_BV.div_(temperature).exp_()
    if top_p < 1:
        if total_B1 is None:
            total_B1 = mass_BV.sum(-1, keepdim=True)
        sorted_BV, order_BV = mass_BV.sort(stable=True, dim=-1, descending=True)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV.masked_fill_(before_BV >= top_p * mass_BV.sum(-1, keepdim=True), 0.0)
        mass_BV = torch.zeros_like(mass_BV).scatter_(-1, order_BV, sorted_BV)
    cumulative_BV = mass_BV.cumsum(-1)
    if total_B1 is None:
        total_B1 = cumulative_BV[:, -1:]
    end_B1 = cumulative_BV[:, -1:]
    # Strictly below the end, or rounding could pick a token that has no mass.
    at_B1 = torch.minimum((u_B[:, None] * end_B1).float(), torch.nextafter(end_B1, torch.zeros_like(end_B1)))
    ids_B1 = torch.searchsorted(cumulative_BV, at_B1, right=True)
    logprob_B1 = logits_BV.gather(-1, ids_B1) - top_B1 - total_B1.log()
    return ids_B1[:, 0], logprob_B1[:, 0]

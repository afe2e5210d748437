"""Drawing tokens: counter-based random numbers, and inverse transform sampling.

The uniform number for the t-th token of a rollout is a hash (SplitMix64's finaliser) of the rollout's own key and t. No
state is kept between draws. So a rollout does not depend on its batch, on earlier calls or on the machine, up to
rounding in the logits.

Top-p follows Holtzman et al. 2020 (arXiv 1904.09751): the smallest set of most probable tokens whose mass
reaches p. Log-probabilities are the model's own, at temperature 1 and over the whole vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

CHUNK = 1 << 20  # logits of a chunk of rows: 4 MiB, so that what is computed from them stays in a processor's cache

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def key(seed: int, prompt_id: str, index: int) -> int:
    """The 64-bit key of a rollout's randomness."""
    name = f"{seed}\0{index}\0{prompt_id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def uniforms(keys_B: np.ndarray, t_B: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each rollout, [B] float64: number `t_B` of its key, counted from 0."""
    with np.errstate(over="ignore"):
        x = keys_B + (t_B.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
        x ^= x >> np.uint64(31)
    u_B: np.ndarray = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return u_B


def numbers(u: np.ndarray, device: torch.device) -> torch.Tensor:
    """Uniform numbers on a device, in float64, or in float32 where the device has no other."""
    return torch.from_numpy(u.astype(np.float32) if device.type == "mps" else u).to(device)


def draw(
    logits_RV: torch.Tensor, u_RW: torch.Tensor | None, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, [R, W] int64, and their log-probabilities at temperature 1, [R, W] float32, in nats.

    `u_RW` has one uniform number for each token to draw from a row's logits. If it is None, or the temperature is 0,
    the result is the most probable token, with W = 1."""
    rows = max(1, CHUNK // logits_RV.shape[1]) if logits_RV.device.type == "cpu" else len(logits_RV)
    if len(logits_RV) > rows:  # two to three times as fast as all rows at once, where the vocabulary is large
        chunks = [slice(start, start + rows) for start in range(0, len(logits_RV), rows)]
        parts = [draw(logits_RV[c], None if u_RW is None else u_RW[c], temperature, top_p) for c in chunks]
        ids, logprobs = zip(*parts, strict=True)
        return torch.cat(ids), torch.cat(logprobs)
    logits_RV = logits_RV.float()
    if u_RW is None or temperature == 0:
        top_R1, ids_R1 = logits_RV.max(-1, keepdim=True)
        return ids_R1, top_R1 - logits_RV.logsumexp(-1, keepdim=True)
    top_R1 = logits_RV.amax(-1, keepdim=True)
    mass_RV = torch.sub(logits_RV, top_R1)
    if temperature == 1:
        mass_RV.exp_()
        total_R1 = None
    else:
        total_R1 = mass_RV.exp().sum(-1, keepdim=True)
        mass_RV.div_(temperature).exp_()
    if top_p < 1:
        if total_R1 is None:
            total_R1 = mass_RV.sum(-1, keepdim=True)
        sorted_RV, order_RV = mass_RV.sort(stable=True, dim=-1, descending=True)
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        sorted_RV.masked_fill_(before_RV >= top_p * mass_RV.sum(-1, keepdim=True), 0.0)
        mass_RV = torch.zeros_like(mass_RV).scatter_(-1, order_RV, sorted_RV)
    cumulative_RV = mass_RV.cumsum(-1)
    if total_R1 is None:
        total_R1 = cumulative_RV[:, -1:]
    end_R1 = cumulative_RV[:, -1:]
    # Strictly below the end; else rounding could select a token with probability 0.
    at_RW = torch.minimum((u_RW * end_R1).float(), torch.nextafter(end_R1, torch.zeros_like(end_R1)))
    ids_RW = torch.searchsorted(cumulative_RV, at_RW, right=True)
    return ids_RW, logits_RV.gather(-1, ids_RW) - top_R1 - total_R1.log()

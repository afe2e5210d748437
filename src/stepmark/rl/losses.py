"""The losses of a policy update. Each is a sum over tokens; the caller divides by the tokens of its minibatch.

K tokens; log-probabilities in nats, at the temperature of the attempts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def policy_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), negated: the sum of
    -min(ratio * A, clipped ratio * A) with ratio = exp(new - old); all [K]. Also returns the number of clipped tokens.
    """
    ratio = (new - old).exp()
    clipped_ratio = ratio.clamp(1 - clip, 1 + clip)
    plain, clipped = -advantages * ratio, -advantages * clipped_ratio
    return torch.maximum(plain, clipped).sum(), (clipped > plain).sum()


def value_loss(new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the squared error of the values [K]. An improvement counts only within `clip` of the old values, as in the
    published code of Schulman et al.; the paper does not mention it."""
    clipped_values = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((new - returns) ** 2, (clipped_values - returns) ** 2).sum()


def divergence(new: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """GRPO's estimate of KL(policy || reference) (DeepSeekMath, arXiv 2402.03300, equation 4): the sum over tokens of
    exp(d) - d - 1 with d = reference - new. Never negative, and unbiased for tokens sampled from the policy."""
    d = reference - new
    return (d.exp() - d - 1).sum()


def nats_a_token(policy: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]) -> float:
    """The mean of `divergence` over all tokens of several attempts, from their log-probabilities [T]."""
    policy_logprobs, reference_logprobs = (
        torch.from_numpy(np.concatenate(logprobs)).double() for logprobs in (policy, reference)
    )
    return float(divergence(policy_logprobs, reference_logprobs)) / len(policy_logprobs)


def adapted(weight: float, measured: float, target: float) -> float:
    """The weight of the divergence for the next update (Ziegler et al. 2019, section 2.2). The relative change is 0.1
    times the relative error of the measured divergence, which is clipped to 20%: at most 2% per update."""
    error = min(max(measured / target - 1.0, -0.2), 0.2)
    return weight * (1.0 + 0.1 * error)

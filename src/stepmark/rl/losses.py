"""What a policy update minimises. Sums over the tokens given; the caller divides by the tokens of its minibatch.

K tokens; log-probabilities in nats, at the attempts' temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def policy_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), negated, and how many tokens it
    held back: sum of -min(ratio * A, clipped ratio * A), ratio = exp(new - old); all [K]."""
    ratio = (new - old).exp()
    held = ratio.clamp(1 - clip, 1 + clip)
    plain, clipped = -advantages * ratio, -advantages * held
    return torch.maximum(plain, clipped).sum(), (clipped > plain).sum()


def value_loss(new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the squared error of values [K], whose gain counts only within `clip` of the old values (as in Schulman et
    al.'s published code, which the paper leaves out)."""
    held = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((new - returns) ** 2, (held - returns) ** 2).sum()


def divergence(new: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """GRPO's estimate of KL(policy || reference) (DeepSeekMath, arXiv 2402.03300, equation 4): the sum over tokens of
    exp(d) - d - 1 with d = reference - new. Never negative, and unbiased for tokens drawn from the policy."""
    d = reference - new
    return (d.exp() - d - 1).sum()


def nats_a_token(policy: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]) -> float:
    """The mean of the same over all tokens of several attempts, from their log-probabilities [T]."""
    new, old = (torch.from_numpy(np.concatenate(logs)).double() for logs in (policy, reference))
    return float(divergence(new, old)) / len(new)


def adapted(weight: float, measured: float, target: float) -> float:
    """The weight of the divergence for the next update (Ziegler et al. 2019, section 2.2): a tenth up or down for each
    time that the measured divergence is above or below the target, at most a fiftieth of the weight at once."""
    error = min(max(measured / target - 1.0, -0.2), 0.2)
    return weight * (1.0 + 0.1 * error)

"""Rewards -> how much each token of an attempt was better than expected. Plain arrays, no model.

- `gae`: generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16), by token:
  delta_t = r_t + gamma V(t+1) - V(t), A_t = delta_t + gamma lambda A_(t+1), with V = 0 after the last token.
- `group_relative`: GRPO with process rewards (DeepSeekMath, arXiv 2402.03300, section 4.1.3): all step rewards of the
  attempts at one problem are normalised together by their mean and standard deviation, and a token's advantage is the
  sum of the normalised rewards of the steps that end at it or later. Rewards at the end, which the paper does not mix
  with these, are normalised among themselves. Only rewards that are a score for each step are taken so: the shares of a
  minimum, or differences, are mostly zeros, which to centre would punish having more of them; there the attempts'
  totals are normalised, as outcomes are.

T tokens, S steps of an attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepmark.types import Reward

Floats = NDArray[np.float32]
EPSILON = 1e-6  # added to a standard deviation


def token_rewards(reward: Reward, ends: Sequence[int], length: int) -> Floats:
    """[T] the reward at each token: a step's at the token that ends it (Math-Shepherd, section 3.5), the attempt's at
    the last. Raises ValueError when there are not as many ends as step rewards, or an end outside the attempt."""
    if len(ends) != len(reward.steps):
        raise ValueError(f"{reward.solution_id}: {len(reward.steps)} step rewards for {len(ends)} steps")
    if any(not 0 <= t < length for t in ends) or length < 1:
        raise ValueError(f"{reward.solution_id}: step ends {list(ends)} are not all among {length} tokens")
    out = np.zeros(length, dtype=np.float64)
    np.add.at(out, np.asarray(ends, dtype=np.int64), np.asarray(reward.steps, dtype=np.float64))
    out[-1] += reward.end
    return out.astype(np.float32)


def penalised(rewards: Floats, policy: Floats, reference: Floats, weight: float) -> Floats:
    """r_t - weight * log(policy / reference) by token, [T]: the usual form of the KL term in PPO's reward (Ziegler et
    al. 2019, arXiv 1909.08593, equation 2). Math-Shepherd gives its coefficient and leaves the form unstated."""
    return (rewards - weight * (policy - reference)).astype(np.float32)


def gae(rewards: Floats, values: Floats, gamma: float, lam: float) -> tuple[Floats, Floats]:
    """Advantages [T], and returns [T], which are what the values should have been: advantages + values."""
    advantages = np.zeros(len(rewards), dtype=np.float64)
    ahead = following = 0.0  # the advantage and the value of the next token
    for t in range(len(rewards) - 1, -1, -1):
        value = float(values[t])
        ahead = float(rewards[t]) + gamma * following - value + gamma * lam * ahead
        advantages[t], following = ahead, value
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def group_relative(
    rewards: Sequence[Reward], ends: Sequence[Sequence[int]], lengths: Sequence[int], by_step: bool
) -> list[Floats]:
    """Advantages [T] of each attempt of one group. `by_step`: rewards at steps are normalised among the group's steps,
    and those at the end among its ends, of which every attempt has one; otherwise each attempt's total is, among the
    totals, and all its tokens have it. A group whose rewards are all alike teaches nothing."""
    lasts = _normal([r.end if by_step else r.total for r in rewards])
    steps = _normal([x for r in rewards for x in r.steps]) if by_step else np.zeros(sum(len(r.steps) for r in rewards))
    parts = np.split(steps, np.cumsum([len(r.steps) for r in rewards])[:-1])
    out = []
    for r, own, last, found, length in zip(rewards, parts, lasts, ends, lengths, strict=True):
        at = token_rewards(Reward(r.solution_id, tuple(own), float(last)), found, length)
        out.append(np.cumsum(at[::-1].astype(np.float64))[::-1].astype(np.float32))
    return out


def _normal(values: Sequence[float]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return x
    centred: NDArray[np.float64] = (x - x.mean()) / (x.std() + EPSILON) if x.std() > EPSILON else np.zeros_like(x)
    return centred


def whitened(parts: Sequence[Floats]) -> list[Floats]:
    """The same with mean 0 and variance 1 over all tokens of all attempts."""
    if not parts:
        return []
    whole = np.concatenate(parts).astype(np.float64)
    mean, spread = whole.mean(), whole.std()
    return [((p - mean) / (spread + EPSILON)).astype(np.float32) for p in parts]

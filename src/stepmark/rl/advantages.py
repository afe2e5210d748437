"""Rewards -> the advantage of each token of an attempt. Plain arrays, no model.

- `gae`: generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16), per token:
  delta_t = r_t + gamma V(t+1) - V(t), A_t = delta_t + gamma lambda A_(t+1), with V = 0 after the last token.
- `group_relative`: GRPO with process rewards (DeepSeekMath, arXiv 2402.03300, section 4.1.3). All step rewards of the
  attempts at one problem are normalised together by their mean and standard deviation. A token's advantage is the sum
  of the normalised rewards of the steps that end at it or later. Rewards at the end of an attempt are normalised
  separately; the paper does not mix the two. Step rewards are normalised only if they are one score per step. The
  shares of a minimum, and differences of scores, are mostly zeros, and centring them would punish an attempt for having
  more steps. For those credits the totals of the attempts are normalised, as outcomes are.

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
    """[T] the reward of each token. A step's reward falls on the token that ends the step (Math-Shepherd, section 3.5),
    the attempt's reward on the last token. Raises ValueError when the numbers of ends and of step rewards differ, or
    an end lies outside the attempt."""
    if len(ends) != len(reward.steps):
        raise ValueError(f"{reward.solution_id}: {len(reward.steps)} step rewards for {len(ends)} steps")
    if any(not 0 <= t < length for t in ends) or length < 1:
        raise ValueError(f"{reward.solution_id}: step ends {list(ends)} are not all among {length} tokens")
    out = np.zeros(length, dtype=np.float64)
    np.add.at(out, np.asarray(ends, dtype=np.int64), np.asarray(reward.steps, dtype=np.float64))
    out[-1] += reward.end
    return out.astype(np.float32)


def penalised(rewards: Floats, policy: Floats, reference: Floats, weight: float) -> Floats:
    """r_t - weight * log(policy / reference) per token, [T]: the usual form of the KL term in PPO's reward (Ziegler et
    al. 2019, arXiv 1909.08593, equation 2). Math-Shepherd states the coefficient but not the form."""
    return (rewards - weight * (policy - reference)).astype(np.float32)


def gae(rewards: Floats, values: Floats, gamma: float, lam: float) -> tuple[Floats, Floats]:
    """Advantages [T], and returns [T], the regression targets of the values: advantages + values."""
    advantages = np.zeros(len(rewards), dtype=np.float64)
    advantage = next_value = 0.0  # of the token after t; both are 0 after the last token
    for t in range(len(rewards) - 1, -1, -1):
        value = float(values[t])
        advantage = float(rewards[t]) + gamma * next_value - value + gamma * lam * advantage
        advantages[t], next_value = advantage, value
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def group_relative(
    rewards: Sequence[Reward], ends: Sequence[Sequence[int]], lengths: Sequence[int], by_step: bool
) -> list[Floats]:
    """Advantages [T] of each attempt of one group. With `by_step`, step rewards are normalised over all steps of the
    group, and end rewards over the attempts. Otherwise the totals are normalised over the attempts, and all tokens of
    an attempt get the same advantage. If all rewards of a group are equal, its advantages are 0."""
    end_parts = _standardised([r.end if by_step else r.total for r in rewards])
    step_parts = (
        _standardised([x for r in rewards for x in r.steps])
        if by_step
        else np.zeros(sum(len(r.steps) for r in rewards))
    )
    per_attempt = np.split(step_parts, np.cumsum([len(r.steps) for r in rewards])[:-1])
    advantages = []
    for r, own_steps, own_end, step_ends, length in zip(rewards, per_attempt, end_parts, ends, lengths, strict=True):
        by_token = token_rewards(Reward(r.solution_id, tuple(own_steps), float(own_end)), step_ends, length)
        advantages.append(np.cumsum(by_token[::-1].astype(np.float64))[::-1].astype(np.float32))
    return advantages


def _standardised(values: Sequence[float]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return x
    normal: NDArray[np.float64] = (x - x.mean()) / (x.std() + EPSILON) if x.std() > EPSILON else np.zeros_like(x)
    return normal


def whitened(parts: Sequence[Floats]) -> list[Floats]:
    """The advantages, normalised to mean 0 and variance 1 over all tokens of all attempts."""
    if not parts:
        return []
    all_tokens = np.concatenate(parts).astype(np.float64)
    mean, deviation = all_tokens.mean(), all_tokens.std()
    return [((p - mean) / (deviation + EPSILON)).astype(np.float32) for p in parts]

"""How a policy is reinforced, and how it came out. Checked before anything is loaded.

Math-Shepherd (arXiv 2312.08935, section 3.5) gives the coefficient of the KL term, 0.04, and leaves clipping, GAE,
batch and temperature unstated. Those here are common ones (Schulman et al. 2017; Ziegler et al. 2019), and suit a
model made from scratch; a pretrained 7B policy wants an lr of about 4e-7. All weights learn, in float32 on one device:
that and the optimiser's averages are 16 bytes a parameter, the reference 4 (on a GPU 2), activations come on top. For
more than about two billion parameters train with TRL, verl or OpenRLHF, and stepmark.rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepmark.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ReinforceSettings:
    """How to reinforce. Raises ConfigError at once, with all values that can't be."""

    method: Literal["ppo", "grpo"] = "ppo"
    updates: int = 50  # each draws new attempts and learns from them; those that are rolled back count
    prompts: int = 64  # problems of an update
    samples: int = 8  # attempts at each problem: GRPO's group
    temperature: float = 1.0  # of the attempts; the policy that learns is the one at this temperature
    max_tokens: int = 256  # of an attempt
    stop: tuple[str, ...] = ()  # an attempt ends with the first of these too
    truncated: Literal["penalty", "mask"] = (
        "penalty"  # attempts that ran out of tokens: earn `penalty`, or are left out
    )
    most_lost: float = 0.2  # share of the latest attempts that may have no reward (a check failed) before it stops
    penalty: float = 0.0  # all that an attempt earns which ran out of tokens; a wrong gold answer earns 0

    lr: float = 1e-4  # peak, of AdamW; it rises over the first updates and falls to a tenth along a cosine
    epochs: int = 2  # passes over the attempts of an update
    minibatches: int = 4  # optimiser steps of a pass
    row_tokens: int = 256  # length of a packed row
    batch_tokens: int = 16384  # most tokens of one forward and backward pass; more are accumulated
    clip: float = 0.2  # of the ratio of new to old probability
    max_grad_norm: float = 1.0  # larger gradients are scaled down to this norm
    gamma: float = 1.0  # discount by token
    lam: float = 0.95  # GAE's lambda
    value_weight: float = 0.1  # of the value loss (ppo)
    value_clip: float = 0.2  # how far a value may move from the old one before its gain is ignored (ppo)

    kl: float = 0.04  # weight of the divergence from the reference: in each token's reward (ppo), in the loss (grpo)
    kl_target: float | None = None  # nats a token; the weight is then raised and lowered to keep near it

    evaluate_every: int = 5  # updates from one look at held-out problems to the next
    guard: Literal["rollback", "stop", "off"] = "stop"  # when reward rises and accuracy falls beyond noise
    patience: int = 2  # looks in a row that have to find it so
    rollbacks: int = 2  # times to go back to the best policy, with twice the weight of the divergence, before stopping
    best: bool = True  # hand on the policy that did best on held-out problems, not the last one

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_seconds: float = 30.0  # at most this much work is lost to a kill
    tensorboard: bool = True
    device: str = "auto"
    threads: int = 1  # CPU threads in a matrix product
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"reinforce: {k} must be above 0, got {getattr(self, k)}."
            for k in (
                *("updates", "prompts", "samples", "temperature", "max_tokens", "lr", "epochs", "minibatches", "clip"),
                *("row_tokens", "batch_tokens", "max_grad_norm", "evaluate_every", "patience", "threads"),
            )
            if not getattr(self, k) > 0
        ]
        faults += [
            f"reinforce: {k} must be at least 0, got {getattr(self, k)}."
            for k in ("value_weight", "kl", "rollbacks")
            if getattr(self, k) < 0
        ]
        faults += [
            f"reinforce: {k} is from 0 to 1, got {getattr(self, k)}."
            for k in ("gamma", "lam", "most_lost")
            if not 0 <= getattr(self, k) <= 1
        ]
        allowed = {
            "method": ("ppo", "grpo"),
            "truncated": ("penalty", "mask"),
            "guard": ("rollback", "stop", "off"),
            "precision": ("auto", "float32", "bfloat16"),
        }
        faults += [
            f"reinforce: {k} is one of {', '.join(names)}, got {getattr(self, k)!r}."
            for k, names in allowed.items()
            if getattr(self, k) not in names
        ]
        if self.method == "grpo" and self.samples < 2:
            faults.append("reinforce: grpo compares the attempts at a problem, so samples must be at least 2.")
        if self.kl_target is not None and not self.kl > 0:
            faults.append("reinforce: kl_target moves the weight kl, which must be above 0 for it.")
        if self.kl_target is not None and not self.kl_target > 0:
            faults.append(f"reinforce: kl_target must be above 0, or null for none, got {self.kl_target}.")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class Look:
    """The guard's look at held-out problems. Of the policy before the first update, too: update 0."""

    update: int  # updates made
    accuracy: float  # share of held-out problems answered right, greedily
    reward: float  # mean reward of those same greedy attempts
    kl: float  # from the reference, nats a token, over the latest update's attempts; 0.0 before the first


@dataclass(frozen=True, slots=True)
class Reinforced:
    """What reinforcement came to."""

    path: str  # the policy's checkpoint directory
    updates: int  # made, those included that were rolled back
    best: int  # the update whose policy was handed on; 0 is the one it started from
    stopped: str  # why it ended before its last update; "" if it didn't
    looks: tuple[Look, ...]  # in order
    rollbacks: tuple[int, ...]  # the updates after which it went back to its best
    rewards: tuple[float, ...]  # mean reward of each update's attempts, by update
    tokens: int  # generated for learning, looks not counted
    # Of the policy that was handed on from the reference, nats a token, over attempts at held-out problems, or, without
    # any, at those that it learned from
    kl: float
    seconds: float  # all sittings together

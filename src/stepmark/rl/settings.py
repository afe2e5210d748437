"""The settings and the result of reinforcement. The settings are checked before a model is loaded.

Math-Shepherd (arXiv 2312.08935, section 3.5) states the coefficient of the KL term, 0.04, but not clipping, GAE, batch
size and temperature. The defaults here are common ones (Schulman et al. 2017; Ziegler et al. 2019) and suit a small
model trained from random weights; a pretrained 7B policy wants an lr of about 4e-7. All weights are trained in float32
on one device. Weights, gradients and the optimiser's averages need 16 bytes per parameter, the reference 4 (2 on a
GPU), plus activations. For more than about two billion parameters, train with TRL, verl or OpenRLHF, and
`stepmark.rewards`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepmark.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ReinforceSettings:
    """The settings of reinforcement. Raises ConfigError for values out of range, all of them at once."""

    method: Literal["ppo", "grpo"] = "ppo"  # step-by-step PPO with a value head, or GRPO
    updates: int = 50  # each samples new attempts and learns from them; updates that are rolled back count
    prompts: int = 64  # problems per update
    samples: int = 8  # attempts at each problem: GRPO's group
    temperature: float = 1.0  # of the attempts; log-probabilities in the losses are at this temperature too
    max_tokens: int = 256  # of an attempt
    stop: tuple[str, ...] = ()  # an attempt also ends at the first of these
    # "penalty": an attempt that ran out of tokens gets the reward `penalty`; "mask": it is left out
    truncated: Literal["penalty", "mask"] = "penalty"
    most_lost: float = 0.2  # training stops if a larger share of the latest attempts has no reward (a check failed)
    penalty: float = 0.0  # the whole reward of an attempt that ran out of tokens; a wrong gold answer earns 0

    lr: float = 1e-4  # peak learning rate of AdamW; it rises over the first updates, then a cosine to a tenth of it
    epochs: int = 2  # passes over the attempts of an update
    minibatches: int = 4  # gradient updates per pass
    row_tokens: int = 256  # length of a packed row
    batch_tokens: int = 16384  # largest number of tokens in one forward and backward pass; gradients are accumulated
    clip: float = 0.2  # largest distance from 1 of the ratio of new to old probability
    max_grad_norm: float = 1.0  # larger gradients are scaled down to this norm
    gamma: float = 1.0  # discount per token
    lam: float = 0.95  # GAE's lambda
    value_weight: float = 0.1  # weight of the value loss (ppo)
    value_clip: float = 0.2  # largest change of a value whose improvement counts in the value loss (ppo)

    kl: float = 0.04  # weight of the divergence from the reference: in each token's reward (ppo), in the loss (grpo)
    kl_target: float | None = None  # target in nats per token; if set, the weight is adapted to reach it

    evaluate_every: int = 5  # updates between two looks at the held-out problems
    guard: Literal["rollback", "stop", "off"] = "stop"  # what to do when the held-out accuracy falls significantly
    patience: int = 2  # looks in a row that must show the fall
    # What to do when the policy has collapsed: in `collapse_updates` updates in a row, every attempt was empty at half
    # of the prompts or more (judged from 4 samples on), or no attempt of all was both finished and not empty. Such
    # attempts earn the same, so nothing is learned from them; a policy that is right everywhere writes answers, so it
    # has not collapsed.
    collapse: Literal["rollback", "stop", "off"] = "stop"
    collapse_updates: int = 10  # updates in a row that must show the collapse
    rollbacks: int = 2  # largest number of returns to the best policy, each with a doubled kl weight, before stopping
    best: bool = True  # the result is the policy that did best on held-out problems, not the last one

    # bfloat16 autocast, or not; auto picks the faster one for the device
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_seconds: float = 30.0  # seconds between checkpoints
    tensorboard: bool = True  # also write event files, if tensorboard is installed
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    threads: int = 1  # CPU threads in a matrix product
    seed: int = 0  # of what is drawn and of the order of the data

    def __post_init__(self) -> None:
        faults = [
            f"reinforce: {k} must be above 0, got {getattr(self, k)}."
            for k in (
                *("updates", "prompts", "samples", "temperature", "max_tokens", "lr", "epochs", "minibatches", "clip"),
                *("row_tokens", "batch_tokens", "max_grad_norm", "evaluate_every", "patience", "threads"),
                "collapse_updates",
            )
            if not getattr(self, k) > 0
        ]
        faults += [
            f"reinforce: {k} must be at least 0, got {getattr(self, k)}."
            for k in ("value_weight", "kl", "rollbacks")
            if getattr(self, k) < 0
        ]
        faults += [
            f"reinforce: {k} must be from 0 to 1, got {getattr(self, k)}."
            for k in ("gamma", "lam", "most_lost")
            if not 0 <= getattr(self, k) <= 1
        ]
        allowed = {
            "method": ("ppo", "grpo"),
            "truncated": ("penalty", "mask"),
            "guard": ("rollback", "stop", "off"),
            "collapse": ("rollback", "stop", "off"),
            "precision": ("auto", "float32", "bfloat16"),
        }
        faults += [
            f"reinforce: {k} must be one of {', '.join(choices)}, got {getattr(self, k)!r}."
            for k, choices in allowed.items()
            if getattr(self, k) not in choices
        ]
        if self.method == "grpo" and self.samples < 2:
            faults.append("reinforce: grpo compares the attempts at a problem, so samples must be at least 2.")
        if self.kl_target is not None and not self.kl > 0:
            faults.append(f"reinforce: kl_target adapts the weight kl, so kl must be above 0, got {self.kl}.")
        if self.kl_target is not None and not self.kl_target > 0:
            faults.append(f"reinforce: kl_target must be above 0, or null for none, got {self.kl_target}.")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class Look:
    """The guard's look at the held-out problems. The look before the first update has update 0."""

    update: int  # number of updates made
    accuracy: float  # share of held-out problems with a correct greedy answer
    reward: float  # mean reward of the same greedy attempts
    kl: float  # divergence from the reference, nats per token, on the last update's attempts; 0.0 before the first


@dataclass(frozen=True, slots=True)
class Explored:
    """How much the attempts of one update still differ."""

    update: int  # number of updates made, this one included
    same_reward: float  # share of the prompts whose attempts all earn the same
    empty: float  # share of the attempts without text
    truncated: float  # share of the attempts that ran out of tokens
    entropy: float  # of the policy, nats per token


@dataclass(frozen=True, slots=True)
class Reinforced:
    """The result of reinforcement, as reinforced.json stores it."""

    path: str  # the policy's checkpoint directory
    updates: int  # number of updates made, with those that were rolled back
    best: int  # the update whose policy is the result; 0 is the policy at the start
    stopped: str  # why training ended before its last update; "" if it did not
    looks: tuple[Look, ...]  # in order
    rollbacks: tuple[int, ...]  # the updates after which the best policy was restored
    rewards: tuple[float, ...]  # mean reward of each update's attempts, by update
    tokens: int  # generated for learning; looks are not counted
    # Divergence of the resulting policy from the reference, nats per token, on attempts at the held-out problems, or at
    # the first training problems if there are none
    kl: float
    seconds: float  # summed over resumed calls
    explored: tuple[Explored, ...] = ()  # by update; results of earlier versions have none

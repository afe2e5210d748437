"""The learning of one update: attempts and their rewards -> new weights.

The old log-probabilities and values come from a separate forward pass before the first gradient update, with the same
weights and number formats, so the first ratio is exactly 1. Those of the sampling engine differ in the last bits.

T tokens of an attempt; K tokens of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stepmark.errors import DataError
from stepmark.models import checkpoints, optimization
from stepmark.models.encoding import Encoded
from stepmark.rl import losses
from stepmark.rl.advantages import Floats, gae, group_relative, penalised, token_rewards, whitened
from stepmark.rl.episodes import Episode
from stepmark.rl.policy import Policy, batches, encoded, own, read
from stepmark.rl.settings import ReinforceSettings
from stepmark.types import Place, Reward

WARMUP, FINAL = 0.1, 0.1  # share of the updates with a rising learning rate; the last rate as a share of the peak


class Learner:
    """The policy at `path`, its optimiser, and the frozen reference policy, which is the same checkpoint unless
    `reference` names another. An update is a function of the seed, the update's number and the weights."""

    def __init__(
        self,
        path: Place,
        settings: ReinforceSettings,
        device: str,
        trust_remote_code: bool = False,
        reference: Place | None = None,
    ) -> None:
        self.settings, self.device = settings, device

        def load(checkpoint: Place, dtype: str) -> Any:
            return checkpoints.load_model(checkpoint, dtype=dtype, device=device, trust_remote_code=trust_remote_code)

        half = "bfloat16" if device.startswith("cuda") and settings.precision != "float32" else "float32"
        self.policy = Policy(load(path, "float32"), settings.temperature, settings.method == "ppo")
        self.reference = Policy(load(reference or path, half), settings.temperature, values=False)
        self.reference.requires_grad_(False)
        self.pad_id = checkpoints.pad_id(checkpoints.load_tokenizer(path, trust_remote_code))
        self.forget()

    def forget(self) -> None:
        """Resets the optimiser. After a rollback, its averages belong to the weights that were discarded."""
        trainable = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=self.settings.lr, weight_decay=0.0, fused=True)

    def read(self, model: Policy, found: Sequence[Encoded]) -> tuple[list[Floats], list[Floats]]:
        """Log-probabilities and values of each attempt's sampled tokens, [T] each."""
        return read(model, found, self.pad_id, self.device, self.settings)

    def learn(
        self, drawn: Sequence[Episode], paid: Sequence[Reward], update: int, weight: float, by_step: bool
    ) -> dict[str, float]:
        """Learns from attempts with known rewards and returns the figures for the log. `kl` is the divergence from the
        reference before the update, in nats per token. `weight` is the weight of the divergence; `by_step` is that of
        group_relative."""
        s = self.settings
        sequences = [encoded(e) for e in drawn]
        old_logprobs, values = self.read(self.policy, sequences)
        reference_logprobs, _ = self.read(self.reference, sequences)
        rewards = [token_rewards(r, e.ends, len(e.ids)) for e, r in zip(drawn, paid, strict=True)]
        if s.method == "ppo":
            rewards = [
                penalised(r, o, f, weight) for r, o, f in zip(rewards, old_logprobs, reference_logprobs, strict=True)
            ]
            pairs = [gae(r, v, s.gamma, s.lam) for r, v in zip(rewards, values, strict=True)]
            advantages, returns = whitened([a for a, _ in pairs]), [r for _, r in pairs]
        else:
            advantages, returns = self._group_advantages(drawn, paid, by_step), values
        data = [old_logprobs, reference_logprobs, values, advantages, returns]
        rate = self._rate(update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals = {"clipped": 0.0, "entropy": 0.0, "norm": 0.0, "tokens": 0.0, "policy_loss": 0.0, "value_loss": 0.0}
        rng = np.random.default_rng([s.seed, 1, update])
        for _ in range(s.epochs):
            order = rng.permutation(len(sequences))
            for indices in np.array_split(order, min(s.minibatches, len(order))):
                self._minibatch(sequences, indices.tolist(), data, totals, update, weight)
        gradient_updates = s.epochs * min(s.minibatches, len(sequences))
        value_errors = np.concatenate(returns) - np.concatenate(values)
        variance = float(np.var(np.concatenate(returns)))
        return {
            "kl": losses.nats_a_token(old_logprobs, reference_logprobs),
            "kl_weight": weight,
            "lr": rate,
            "clipped": totals["clipped"] / totals["tokens"],
            "entropy": totals["entropy"] / totals["tokens"],
            "policy_loss": totals["policy_loss"] / totals["tokens"],
            "value_loss": totals["value_loss"] / totals["tokens"],
            "explained": 1 - float(np.var(value_errors)) / variance if s.method == "ppo" and variance > 0 else 0.0,
            "gradient_norm": totals["norm"] / gradient_updates,
        }

    @staticmethod
    def _group_advantages(attempts: Sequence[Episode], rewards: Sequence[Reward], by_step: bool) -> list[Floats]:
        groups: dict[str, list[int]] = {}
        for i, e in enumerate(attempts):
            groups.setdefault(e.problem.id, []).append(i)
        advantages: list[Floats] = [np.zeros(0, np.float32)] * len(attempts)
        for members in groups.values():
            group = group_relative(
                [rewards[i] for i in members],
                [attempts[i].ends for i in members],
                [len(attempts[i].ids) for i in members],
                by_step,
            )
            for i, a in zip(members, group, strict=True):
                advantages[i] = a
        return advantages

    def _minibatch(
        self,
        sequences: Sequence[Encoded],
        indices: list[int],
        data: Sequence[Sequence[Floats]],
        totals: dict[str, float],
        update: int,
        weight: float,
    ) -> None:
        """One gradient update on the attempts `indices`. Every loss is a mean over their tokens."""
        s = self.settings
        count = sum(own(sequences[i]) for i in indices)
        for batch, members in batches(sequences, indices, self.pad_id, self.device, s.row_tokens, s.batch_tokens):
            old, reference, values, advantages, returns = (
                torch.from_numpy(np.concatenate([values_of[i] for i in members])).to(self.device) for values_of in data
            )
            with optimization.autocast(s.precision, self.device):
                outputs = self.policy(batch)
            loss, clipped = losses.policy_loss(outputs.logprobs, old, advantages, s.clip)
            totals["policy_loss"] += float(loss.detach())
            if s.method == "ppo":
                error = losses.value_loss(outputs.values, values, returns, s.value_clip)
                totals["value_loss"] += float(error.detach())
                loss = loss + s.value_weight * error
            else:
                loss = loss + weight * losses.divergence(outputs.logprobs, reference)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            totals["clipped"] += float(clipped)
            totals["entropy"] += float(outputs.entropies.sum())
        totals["tokens"] += count
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), s.max_grad_norm))
        if not math.isfinite(norm):
            raise DataError(
                f"the gradient became {norm} at update {update}; it was not applied. "
                f"Check the rewards, or train in another directory with a lower lr ({s.lr})."
            )
        totals["norm"] += norm
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _rate(self, update: int) -> float:
        return optimization.learning_rate(update, self.settings.updates, self.settings.lr, WARMUP, FINAL)

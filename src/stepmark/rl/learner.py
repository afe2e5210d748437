"""One update's learning: attempts and what they earn -> new weights.

Old log-probabilities and values are read in a pass of their own before the first step, with the very weights and
numbers that learning starts from, so the first ratio is 1; the engine's are close, and not the same to the last bit.

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

WARMUP, FINAL = 0.1, 0.1  # share of the updates over which the rate rises; the last rate as a share of the peak


class Learner:
    """The policy at `path`, the optimiser, and the frozen reference, which is the same checkpoint unless another is
    given. What it does in an update is a function of the seed, the update's number and the weights."""

    def __init__(
        self,
        path: Place,
        settings: ReinforceSettings,
        device: str,
        trust_remote_code: bool = False,
        reference: Place | None = None,
    ) -> None:
        self.settings, self.device = settings, device

        def load(place: Place, dtype: str) -> Any:
            return checkpoints.load_model(place, dtype=dtype, device=device, trust_remote_code=trust_remote_code)

        half = "bfloat16" if device.startswith("cuda") and settings.precision != "float32" else "float32"
        self.policy = Policy(load(path, "float32"), settings.temperature, settings.method == "ppo")
        self.reference = Policy(load(reference or path, half), settings.temperature, values=False)
        self.reference.requires_grad_(False)
        self.pad_id = checkpoints.pad_id(checkpoints.load_tokenizer(path, trust_remote_code))
        self.forget()

    def forget(self) -> None:
        """Begins the optimiser anew: after the weights were put back, its averages belong to others."""
        learned = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=self.settings.lr, weight_decay=0.0, fused=True)

    def read(self, model: Policy, found: Sequence[Encoded]) -> tuple[list[Floats], list[Floats]]:
        """Log-probabilities and values of each attempt's own tokens, [T] each."""
        return read(model, found, self.pad_id, self.device, self.settings)

    def learn(
        self, drawn: Sequence[Episode], paid: Sequence[Reward], update: int, weight: float, by_step: bool
    ) -> dict[str, float]:
        """Learns from attempts whose rewards are known; gives figures for the log, `kl` among them: the divergence
        from the reference before it, in nats a token. `weight` is the divergence's; `by_step` as for group_relative."""
        s = self.settings
        found = [encoded(e) for e in drawn]
        old, values = self.read(self.policy, found)
        reference, _ = self.read(self.reference, found)
        given = [token_rewards(r, e.ends, len(e.ids)) for e, r in zip(drawn, paid, strict=True)]
        if s.method == "ppo":
            given = [penalised(r, o, f, weight) for r, o, f in zip(given, old, reference, strict=True)]
            pairs = [gae(r, v, s.gamma, s.lam) for r, v in zip(given, values, strict=True)]
            advantages, returns = whitened([a for a, _ in pairs]), [r for _, r in pairs]
        else:
            advantages, returns = self._grouped(drawn, paid, by_step), values
        data = [old, reference, values, advantages, returns]
        rate = self._rate(update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals = {"clipped": 0.0, "entropy": 0.0, "norm": 0.0, "tokens": 0.0, "policy_loss": 0.0, "value_loss": 0.0}
        rng = np.random.default_rng([s.seed, 1, update])
        for _ in range(s.epochs):
            order = rng.permutation(len(found))
            for part in np.array_split(order, min(s.minibatches, len(order))):
                self._step(found, part.tolist(), data, totals, update, weight)
        steps = s.epochs * min(s.minibatches, len(found))
        missed = np.concatenate(returns) - np.concatenate(values)
        spread = float(np.var(np.concatenate(returns)))
        return {
            "kl": losses.nats_a_token(old, reference),
            "kl_weight": weight,
            "lr": rate,
            "clipped": totals["clipped"] / totals["tokens"],
            "entropy": totals["entropy"] / totals["tokens"],
            "policy_loss": totals["policy_loss"] / totals["tokens"],
            "value_loss": totals["value_loss"] / totals["tokens"],
            "explained": 1 - float(np.var(missed)) / spread if s.method == "ppo" and spread > 0 else 0.0,
            "gradient_norm": totals["norm"] / steps,
        }

    @staticmethod
    def _grouped(drawn: Sequence[Episode], paid: Sequence[Reward], by_step: bool) -> list[Floats]:
        groups: dict[str, list[int]] = {}
        for i, e in enumerate(drawn):
            groups.setdefault(e.problem.id, []).append(i)
        advantages: list[Floats] = [np.zeros(0, np.float32)] * len(drawn)
        for members in groups.values():
            group = group_relative(
                [paid[i] for i in members],
                [drawn[i].ends for i in members],
                [len(drawn[i].ids) for i in members],
                by_step,
            )
            for i, a in zip(members, group, strict=True):
                advantages[i] = a
        return advantages

    def _step(
        self,
        found: Sequence[Encoded],
        part: list[int],
        data: Sequence[Sequence[Floats]],
        totals: dict[str, float],
        update: int,
        weight: float,
    ) -> None:
        """One optimiser step on the attempts `part`; every loss is a mean over their tokens."""
        s = self.settings
        count = sum(own(found[i]) for i in part)
        for b, members in batches(found, part, self.pad_id, self.device, s.row_tokens, s.batch_tokens):
            old, reference, values, advantages, returns = (
                torch.from_numpy(np.concatenate([x[i] for i in members])).to(self.device) for x in data
            )
            with optimization.autocast(s.precision, self.device):
                seen = self.policy(b)
            loss, clipped = losses.policy_loss(seen.logprobs, old, advantages, s.clip)
            totals["policy_loss"] += float(loss.detach())
            if s.method == "ppo":
                error = losses.value_loss(seen.values, values, returns, s.value_clip)
                totals["value_loss"] += float(error.detach())
                loss = loss + s.value_weight * error
            else:
                loss = loss + weight * losses.divergence(seen.logprobs, reference)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            totals["clipped"] += float(clipped)
            totals["entropy"] += float(seen.entropies.sum())
        totals["tokens"] += count
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), s.max_grad_norm))
        if not math.isfinite(norm):
            raise DataError(
                f"the gradient became {norm} at update {update}; the weights were left as they were before it. "
                f"Lower lr ({s.lr}), in another directory, or look at the rewards."
            )
        totals["norm"] += norm
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _rate(self, update: int) -> float:
        return optimization.learning_rate(update, self.settings.updates, self.settings.lr, WARMUP, FINAL)

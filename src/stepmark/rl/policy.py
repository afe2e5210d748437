"""The policy: a language model with a value head, and one pass over attempts.

The value head is a linear layer on the last hidden state, zero at first, so that the first advantages are the rewards
themselves. Dropout is off throughout: the probability that an attempt was drawn with is the one that learning starts
from. Where a model's logits are not its output layer's alone (soft caps, scales), the whole model is asked for them.

K tokens of attempts, in the order of the batch's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from stepmark.models import optimization, packing
from stepmark.models.encoding import Encoded
from stepmark.rl.advantages import Floats
from stepmark.rl.episodes import Episode
from stepmark.rl.settings import ReinforceSettings

TOLERANCE = 1e-3  # of the logits' spread
LOGITS = 1 << 27  # so many are computed at once: half a gigabyte in float32


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass says of each token that the policy drew, [K] each."""

    logprobs: torch.Tensor  # at the attempts' temperature, in nats
    values: torch.Tensor  # of the state that the token was drawn in; zeros without a value head
    entropies: torch.Tensor  # of the distribution that the token was drawn from, in nats; without gradient


class Policy(torch.nn.Module):
    """`model` is a causal language model of transformers; the reference policy is one too, without values."""

    def __init__(self, model: Any, temperature: float, values: bool = True) -> None:
        super().__init__()
        self.model = model.eval()
        self.temperature = temperature
        self.value = torch.nn.Linear(model.config.hidden_size, 1, device=model.device) if values else None
        if self.value is not None:
            torch.nn.init.zeros_(self.value.weight)
            torch.nn.init.zeros_(self.value.bias)
        self.plain = self._check()

    @torch.no_grad()
    def _check(self) -> bool:
        """Whether the output layer on the last hidden states gives the model's logits."""
        size = int(self.model.get_output_embeddings().weight.shape[0])
        ids = torch.tensor([[(7919 * i + 11) % size for i in range(8)]], device=self.model.device)
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        own = self.model.get_output_embeddings()(hidden).float()
        return bool((whole - own).abs().max() <= TOLERANCE * (whole.std() + 1e-9))

    def forward(self, b: packing.Batch) -> Pass:
        """One pass over a batch whose weights are 1 at the policy's own tokens and 0 elsewhere."""
        keep = b.weights[:, 1:] > 0
        given: dict[str, Any] = {
            "input_ids": b.ids,
            "attention_mask": b.mask,
            "position_ids": b.positions,
            "use_cache": False,
        }
        tokens = b.ids[:, 1:][keep]
        if self.plain:
            hidden = self.model.base_model(**given).last_hidden_state[:, :-1][keep]
            logprobs, entropies = self._read_all(hidden, tokens)
        else:
            out = self.model(**given, output_hidden_states=True)
            hidden = out.hidden_states[-1][:, :-1][keep]
            logprobs, entropies = self._read(out.logits[:, :-1][keep], tokens)
        if self.value is None:
            return Pass(logprobs, torch.zeros_like(logprobs), entropies)
        with torch.autocast(hidden.device.type, enabled=False):
            return Pass(logprobs, self.value(hidden.float())[:, 0], entropies)

    def _read_all(self, hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the output layer says of hidden states [K, D]. Many tokens of a large vocabulary are read in parts, and
        each part anew for its gradient: all of their logits at once may be larger than the model."""
        head = self.model.get_output_embeddings()

        def read(some: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._read(head(some), drawn)

        at_once = max(1, LOGITS // int(head.weight.shape[0]))
        if len(tokens) <= at_once:
            return read(hidden, tokens)
        parts = [
            checkpoint(read, some, drawn, use_reentrant=False)
            for some, drawn in zip(torch.split(hidden, at_once), torch.split(tokens, at_once), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _read(self, logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logs = (logits.float() / self.temperature).log_softmax(-1)
        logprobs = logs.gather(-1, tokens[:, None])[:, 0]
        with torch.no_grad():
            return logprobs, -(logs.exp() * logs).sum(-1)


def encoded(e: Episode) -> Encoded:
    """An attempt for a pass: prompt and own tokens, the latter with weight 1."""
    return Encoded((*e.prompt, *e.ids), weights=(*(0.0 for _ in e.prompt), *(1.0 for _ in e.ids)))


def batches(
    found: Sequence[Encoded], order: Sequence[int], pad_id: int, device: str, row_tokens: int, batch_tokens: int
) -> Iterator[tuple[packing.Batch, list[int]]]:
    """`found` in `order`, packed into rows and these into batches of at most `batch_tokens` (a longer row is one of its
    own), each with the indices of its sequences in the order of its tokens."""
    rows = packing.pack([len(e) for e in found], order, row_tokens)
    while rows:
        part = [rows.pop(0)]
        width = sum(len(found[i]) for i in part[0])
        while rows:
            wider = max(width, sum(len(found[i]) for i in rows[0]))
            if wider * (len(part) + 1) > batch_tokens:
                break
            part.append(rows.pop(0))
            width = wider
        yield packing.batch([[found[i] for i in row] for row in part], pad_id, device), [i for row in part for i in row]


def read(
    model: Policy, found: Sequence[Encoded], pad_id: int, device: str, settings: ReinforceSettings
) -> tuple[list[Floats], list[Floats]]:
    """Log-probabilities and values of each attempt's own tokens, [T] each. Nothing is learned from it."""
    logs: list[Floats] = [np.zeros(0, np.float32)] * len(found)
    values = list(logs)
    order = sorted(range(len(found)), key=lambda i: -len(found[i]))
    with torch.no_grad(), optimization.autocast(settings.precision, device):
        for b, members in batches(found, order, pad_id, device, settings.row_tokens, settings.batch_tokens):
            seen = model(b)
            cuts = np.cumsum([own(found[i]) for i in members])[:-1]
            parts = (np.split(x.float().cpu().numpy(), cuts) for x in (seen.logprobs, seen.values))
            for i, log, value in zip(members, *parts, strict=True):
                logs[i], values[i] = log, value
    return logs, values


def own(e: Encoded) -> int:
    """How many tokens of an encoded attempt are the policy's own."""
    return int(sum(e.weights))

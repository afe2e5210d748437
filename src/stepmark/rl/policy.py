"""The policy: a language model with a value head, and a forward pass over attempts.

The value head is a linear layer on the last hidden state. It is initialised to zero, so that the first advantages come
from the rewards alone. Dropout is always off, so that learning starts from the same probabilities that the attempts
were sampled with. If a model's logits are not the output layer's alone (soft caps, scales), the logits come from the
whole model's forward pass.

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

TOLERANCE = 1e-3  # relative to the standard deviation of the logits
LOGITS = 1 << 27  # the largest number of logits computed at once: half a gigabyte in float32


@dataclass(frozen=True, slots=True)
class Pass:
    """The outputs for each token that the policy sampled, [K] each."""

    logprobs: torch.Tensor  # at the temperature of the attempts, in nats
    values: torch.Tensor  # of the state before the token; zeros without a value head
    entropies: torch.Tensor  # of the distribution that the token was sampled from, in nats; without gradient


class Policy(torch.nn.Module):
    """`model` is a causal language model of transformers. The reference policy is a Policy without a value head."""

    def __init__(self, model: Any, temperature: float, values: bool = True) -> None:
        super().__init__()
        self.model = model.eval()
        self.temperature = temperature
        self.value = torch.nn.Linear(model.config.hidden_size, 1, device=model.device) if values else None
        if self.value is not None:
            torch.nn.init.zeros_(self.value.weight)
            torch.nn.init.zeros_(self.value.bias)
        self.head_gives_logits = self._head_gives_logits()

    @torch.no_grad()
    def _head_gives_logits(self) -> bool:
        """Whether the output layer applied to the last hidden states gives the model's logits."""
        size = int(self.model.get_output_embeddings().weight.shape[0])
        ids = torch.tensor([[(7919 * i + 11) % size for i in range(8)]], device=self.model.device)
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        from_head = self.model.get_output_embeddings()(hidden).float()
        return bool((expected - from_head).abs().max() <= TOLERANCE * (expected.std() + 1e-9))

    def forward(self, batch: packing.Batch) -> Pass:
        """A forward pass over a batch whose weights are 1 at the policy's sampled tokens and 0 elsewhere."""
        own_tokens = batch.weights[:, 1:] > 0
        inputs: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "position_ids": batch.positions,
            "use_cache": False,
        }
        tokens = batch.ids[:, 1:][own_tokens]
        if self.head_gives_logits:
            hidden = self.model.base_model(**inputs).last_hidden_state[:, :-1][own_tokens]
            logprobs, entropies = self._read_hidden(hidden, tokens)
        else:
            out = self.model(**inputs, output_hidden_states=True)
            hidden = out.hidden_states[-1][:, :-1][own_tokens]
            logprobs, entropies = self._read_logits(out.logits[:, :-1][own_tokens], tokens)
        if self.value is None:
            return Pass(logprobs, torch.zeros_like(logprobs), entropies)
        with torch.autocast(hidden.device.type, enabled=False):
            return Pass(logprobs, self.value(hidden.float())[:, 0], entropies)

    def _read_hidden(self, hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies from hidden states [K, D]. All logits at once may need more memory than the
        model, so a long batch is computed in parts, and each part again in the backward pass."""
        head = self.model.get_output_embeddings()

        def read(part: torch.Tensor, part_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._read_logits(head(part), part_tokens)

        size = max(1, LOGITS // int(head.weight.shape[0]))
        if len(tokens) <= size:
            return read(hidden, tokens)
        parts = [
            checkpoint(read, part, part_tokens, use_reentrant=False)
            for part, part_tokens in zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _read_logits(self, logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_distribution = (logits.float() / self.temperature).log_softmax(-1)
        logprobs = log_distribution.gather(-1, tokens[:, None])[:, 0]
        with torch.no_grad():
            return logprobs, -(log_distribution.exp() * log_distribution).sum(-1)


def encoded(e: Episode) -> Encoded:
    """An attempt as a sequence: prompt tokens with weight 0, sampled tokens with weight 1."""
    return Encoded((*e.prompt, *e.ids), weights=(*(0.0 for _ in e.prompt), *(1.0 for _ in e.ids)))


def batches(
    found: Sequence[Encoded], order: Sequence[int], pad_id: int, device: str, row_tokens: int, batch_tokens: int
) -> Iterator[tuple[packing.Batch, list[int]]]:
    """Packs the sequences `found`, in `order`, into rows, and the rows into batches of at most `batch_tokens` (a longer
    row is a batch of its own). Each batch comes with the indices of its sequences, in the order of its tokens."""
    rows = packing.pack([len(e) for e in found], order, row_tokens)
    while rows:
        chosen = [rows.pop(0)]
        width = sum(len(found[i]) for i in chosen[0])
        while rows:
            wider = max(width, sum(len(found[i]) for i in rows[0]))
            if wider * (len(chosen) + 1) > batch_tokens:
                break
            chosen.append(rows.pop(0))
            width = wider
        yield (
            packing.batch([[found[i] for i in row] for row in chosen], pad_id, device),
            [i for row in chosen for i in row],
        )


def read(
    model: Policy, found: Sequence[Encoded], pad_id: int, device: str, settings: ReinforceSettings
) -> tuple[list[Floats], list[Floats]]:
    """Log-probabilities and values of each attempt's sampled tokens, [T] each, without gradients."""
    logprobs: list[Floats] = [np.zeros(0, np.float32)] * len(found)
    values = list(logprobs)
    order = sorted(range(len(found)), key=lambda i: -len(found[i]))
    with torch.no_grad(), optimization.autocast(settings.precision, device):
        for batch, members in batches(found, order, pad_id, device, settings.row_tokens, settings.batch_tokens):
            outputs = model(batch)
            cuts = np.cumsum([own(found[i]) for i in members])[:-1]
            per_sequence = (np.split(x.float().cpu().numpy(), cuts) for x in (outputs.logprobs, outputs.values))
            for i, sequence_logprobs, sequence_values in zip(members, *per_sequence, strict=True):
                logprobs[i], values[i] = sequence_logprobs, sequence_values
    return logprobs, values


def own(e: Encoded) -> int:
    """The number of sampled tokens of an encoded attempt."""
    return int(sum(e.weights))

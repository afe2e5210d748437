"""The trainee for a generator: what `stepmark train generator` learns from, and its loss.

stepmark train generator --task arithmetic --base base/ --out generator/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded, token_ids
from stepmark.text.prompts import Template
from stepmark.types import Problem

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Generator:
    """The trainee for a generator: supervised fine-tuning on demonstrations with the next-token loss."""

    path: str  # checkpoint to start from
    template: str = "{question}\n"  # how a question is put
    prompt_loss_weight: float = 0.0  # loss weight of the question's tokens; above 0 helps training from random weights
    trust_remote_code: bool = False

    def build(self) -> torch.nn.Module:
        return checkpoints.load_model(
            self.path, dtype="float32", device="cpu", trust_remote_code=self.trust_remote_code
        )

    def encode_example(self, example: Problem) -> Encoded | None:
        text = example.demonstration or example.reference
        if not text:
            return None
        tokenizer = checkpoints.load_tokenizer(self.path, self.trust_remote_code)
        context = Template(self.template)(example)
        ids, spans = token_ids(tokenizer, context + text)
        weights = [self.prompt_loss_weight if start < len(context) else 1.0 for start, _ in spans]
        return Encoded((*ids, tokenizer.eos_token_id), weights=(*weights, 1.0))

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        logits_count = batch.ids.numel() * packing.vocabulary(scoring.output_layer(model))
        if logits_count > packing.LOGITS or scoring.fault(model):
            # The logits of the whole batch would take more memory than all else, or the model can't take a batch.
            hidden = scoring.outputs(model, batch)
            return packing.next_token_loss_of(hidden, scoring.output_layer(model), batch) / totals.next_tokens
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).logits
        return packing.next_token_loss(logits, batch) / totals.next_tokens

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, checkpoints.load_tokenizer(self.path, self.trust_remote_code))  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(checkpoints.load_tokenizer(self.path, self.trust_remote_code))

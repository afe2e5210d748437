"""Outcome reward models (...ForSequenceClassification) with one logit, or with two classes: one score a solution.

The checkpoint's chat template with the question and the solution, read at the last token that is not the padding token,
as transformers reads it: some checkpoints pad with the token that ends a turn. One logit is a reward without a scale;
the score is its sigmoid, which keeps the order. Of two classes the score is the probability of class 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded
from stepmark.types import Solution


@dataclass(frozen=True, slots=True)
class SequenceClassification:
    signs: ClassVar[Signs] = Signs(architectures=".*ForSequenceClassification", labels=(1, 2))
    head: ClassVar[str] = "SequenceClassification"
    per_step: ClassVar[bool] = False

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The conversation, with one place at its last token."""
        messages: list[layout.Message] = [("user", [question]), ("assistant", [solution.text.strip()])]
        encoded = layout.conversation(tokenizer, messages)
        return replace(encoded, at=(len(encoded) - 1,))

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the sigmoid of the logit, or the probability of class 1."""
        pad, columns = model.config.pad_token_id, batch.columns
        while pad is not None and bool(
            (batch.ids[batch.rows, columns] == pad).any()
        ):  # transformers reads at the last token that is not the padding's
            columns = columns.where(batch.ids[batch.rows, columns] != pad, batch.previous[batch.rows, columns])
        logits = model.score(heads.places(model, replace(batch, columns=columns))).float()
        return logits[:, 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[:, 1]

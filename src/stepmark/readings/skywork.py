"""Skywork-o1-Open-PRM (1.5B, 7B): a value head on a Qwen2 body, read at the new line after each step.

The tokenizer's BOS text, the question and a new line, then each step and a new line. The value is `v_head.summary` of
the last hidden state there, and the score its sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.errors import EncodingError
from stepmark.models import heads, layout
from stepmark.models.checkpoints import version
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded
from stepmark.types import Solution


@dataclass(frozen=True, slots=True)
class Skywork:
    signs: ClassVar[Signs] = Signs(
        architectures="Qwen2ForPrmModel", weights=(r"v_head\.summary\.weight",), body=".*", names="Skywork-o1.*PRM"
    )
    head: ClassVar[str] = ""
    per_step: ClassVar[bool] = True

    separator: str = "\n"  # after each step; the score is read at its last token

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """BOS, question, and each step with its separator."""
        if tokenizer.bos_token_id is None:
            raise EncodingError("skywork begins with BOS, and this tokenizer has none. Is it that of its training?")
        *before, tag = layout.plain_ids(tokenizer, self.separator)
        if before:
            raise EncodingError(f"the separator {self.separator!r} must be one token of this tokenizer.")
        first = [int(tokenizer.bos_token_id), *layout.plain_ids(tokenizer, f"{question}\n")]
        return layout.tagged(tokenizer, first, solution.steps, tag)

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the sigmoid of the value."""
        head = heads.linear(path, "v_head.summary", version(path), str(model.device))
        return head(heads.places(model, batch).float())[:, 0].sigmoid()

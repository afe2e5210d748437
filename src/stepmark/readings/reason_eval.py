"""ReasonEval (GAIR/ReasonEval-7B, -34B): three classes on a Mistral or Llama body, read at the end of each step.

A prompt with the question, then the steps, each encoded by itself. The separator of its published code is the padding
token, which it takes out of the ids again. The head `score_head` has the classes negative, neutral and positive; the
score is ReasonEval's validity, the probability of neutral or positive. Where the padding token is also BOS, as in the
7B model, its code reads one token before a step's last; so does this, since its published scores are those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.checkpoints import version
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded
from stepmark.types import Solution

PROMPT = "Question:\n{question}\nAnswer:\nLet's think step by step.\n"


@dataclass(frozen=True, slots=True)
class ReasonEval:
    signs: ClassVar[Signs] = Signs(
        architectures=r"ReasonEval_\w+", body=".*", weights=(r"score_head\.weight",), names="ReasonEval"
    )
    head: ClassVar[str] = ""
    per_step: ClassVar[bool] = True

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """BOS, the prompt and the steps, with a place at the end of each."""
        early = 1 + (tokenizer.pad_token_id == tokenizer.bos_token_id)
        ids = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        ids += layout.plain_ids(tokenizer, PROMPT.replace("{question}", question))
        at = list[int]()
        for step in solution.steps:
            ids += layout.plain_ids(tokenizer, step)
            at.append(len(ids) - early)
        return Encoded(tuple(ids), at=tuple(at))

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of neutral or positive."""
        head = heads.linear(path, "score_head", version(path), str(model.device))
        return head(heads.places(model, batch).float()).softmax(-1)[:, 1:].sum(-1)

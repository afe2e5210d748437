"""Qwen2.5-Math-PRM (7B, 72B) and Qwen2.5-Math-7B-PRM800K: two linear layers on a Qwen2 body, at the token <extra_0>.

The checkpoint's chat template with the system prompt of its card, the question, and as the answer the steps, each
followed by `<extra_0>`. The head is Linear, ReLU, Linear (keys `score.0`, `score.2`) with two classes; the score is the
probability of class 1. Its own class (Qwen2ForProcessRewardModel) no longer loads from transformers 4.54 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded
from stepmark.types import Solution

TAG = "<extra_0>"


@dataclass(frozen=True, slots=True)
class QwenPrm:
    signs: ClassVar[Signs] = Signs(
        architectures="Qwen2ForProcessRewardModel",
        weights=(r"score\.0\.weight", r"score\.2\.weight"),
        tokens=(TAG,),
        names=r"Qwen2\.5-Math.*PRM",
    )
    head: ClassVar[str] = ""
    per_step: ClassVar[bool] = True

    system: str = r"Please reason step by step, and put your final answer within \boxed{}."  # null text: no message

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The conversation, with <extra_0> after each step of the answer."""
        return layout.answered(tokenizer, self.system, question, solution.steps, TAG)

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of class 1."""
        return heads.two_layers(path, model, batch)

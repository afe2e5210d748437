"""ReasonFlux-PRM (1.5B, 7B): the class, head and tag of Qwen2.5-Math-PRM, without its system prompt.

The conversation is the question and the steps; a system message is in it only where the chat template adds its own.
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
class ReasonFlux:
    signs: ClassVar[Signs] = Signs(
        architectures="Qwen2ForProcessRewardModel",
        weights=(r"score\.0\.weight", r"score\.2\.weight"),
        tokens=(TAG,),
        names="ReasonFlux-PRM",
    )
    head: ClassVar[str] = ""
    per_step: ClassVar[bool] = True

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The conversation, with <extra_0> after each step of the answer."""
        return layout.answered(tokenizer, "", question, solution.steps, TAG)

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of class 1."""
        return heads.two_layers(path, model, batch)

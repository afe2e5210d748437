"""ReasonFlux-PRM (1.5B, 7B): the class, head and tag of Qwen2.5-Math-PRM, without its system prompt.

The conversation is the question and the steps; a system message is in it only where the chat template adds its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.checkpoints import version
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded, special_id
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
        tag = special_id(tokenizer, TAG, "tag")
        answer = [part for step in solution.steps for part in (layout.without(step, TAG), tag)]
        return layout.conversation(tokenizer, [("user", [layout.without(question, TAG)]), ("assistant", answer)])

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of class 1."""
        first, second = (heads.linear(path, f"score.{i}", version(path), str(model.device)) for i in (0, 2))
        return second(first(heads.places(model, batch).float()).relu()).softmax(-1)[:, 1]

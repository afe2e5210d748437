"""RLHFlow's PRMs (Llama3.1-8B-PRM-Deepseek-Data, -Mistral-Data) and DreamPRM: a turn for each step, answered by + or -.

The first turn of the user is the question, a space and the first step; each further turn is a step; the assistant
answers `+` each time. The score is the softmax over `+` and `-` one position before that `+`, where it is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded, special_id
from stepmark.types import Solution


@dataclass(frozen=True, slots=True)
class Rlhflow:
    signs: ClassVar[Signs] = Signs(
        body=".*ForCausalLM", names=r"RLHFlow--Llama3\.1-8B-PRM|Llama3\.1-8B-PRM-(?:Deepseek|Mistral)-Data|DreamPRM"
    )
    head: ClassVar[str] = "CausalLM"
    per_step: ClassVar[bool] = True

    between: str = " "  # between the question and the first step; some releases were trained with an empty line

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The conversation, with a place before each + of the assistant."""
        plus = special_id(tokenizer, "+", "word")
        turns = [question + self.between + solution.steps[0], *solution.steps[1:]]
        answered: list[layout.Message] = []
        for turn in turns:
            answered += [("user", [turn]), ("assistant", [plus])]
        encoded = layout.conversation(tokenizer, answered)
        return replace(encoded, at=tuple(t - 1 for t in encoded.at))

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of + against -."""
        return heads.word(model, batch, *(special_id(tokenizer, word, "word") for word in "+-"))

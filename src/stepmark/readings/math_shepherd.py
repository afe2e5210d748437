"""Math-Shepherd (peiyi9979/math-shepherd-mistral-7b-prm): a tag after each step, the words + and - at the tag itself.

The question, a space, and the steps, one a line, each followed by " ки". The score is the softmax over the logits of
`+` and `-` at the tag's own position. The tag is one token of Mistral's tokenizer only with the space before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded, special_id
from stepmark.types import Solution


@dataclass(frozen=True, slots=True)
class MathShepherd:
    signs: ClassVar[Signs] = Signs(body=".*ForCausalLM", names="math-shepherd-mistral")
    head: ClassVar[str] = "CausalLM"
    per_step: ClassVar[bool] = True

    tag: str = "ки"  # after each step
    good: str = "+"  # the word for a right step
    bad: str = "-"  # the word for a wrong step

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The question, and each step with its tag."""
        clean = [layout.without(s, self.tag).rstrip() for s in solution.steps]
        context = layout.without(question, self.tag) + " "
        return layout.marked(tokenizer, context, clean, "\n", special_id(tokenizer, self.tag, "tag"))

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of + against -."""
        good, bad = (special_id(tokenizer, word, "word") for word in (self.good, self.bad))
        return heads.word(model, batch, good, bad)

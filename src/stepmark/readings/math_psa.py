"""Math-PSA (openr): a tag of five new lines after each step, and the words " +" and " -" at the tag itself.

The question, a space, and each step followed by " \\n\\n\\n\\n\\n", which is one token. The checkpoint is a LoRA
adapter of Qwen2.5-Math-7B-Instruct, which is added into its base here, or a whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded, special_id
from stepmark.types import Solution

TAG = " \n\n\n\n\n"


@dataclass(frozen=True, slots=True)
class MathPsa:
    signs: ClassVar[Signs] = Signs(body=".*ForCausalLM|adapter", names="Math-psa")
    head: ClassVar[str] = "CausalLM"
    per_step: ClassVar[bool] = True

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The question, and each step with its tag."""
        return layout.after_each(tokenizer, question, " ", solution.steps, TAG)

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of " +" against " -"."""
        return heads.word(model, batch, *(special_id(tokenizer, word, "word") for word in (" +", " -")))

"""VersaPRM, Llama-PRM800K and Qwen-PRM800K (UW-Madison-Lee-Lab): a tag of four new lines after each step.

The question, " \\n\\n", and each step followed by " \\n\\n\\n\\n", which is one token. The score is the softmax over
`-` and `+`, without a space before them, at the tag. Their own code puts `-` first and takes the second. VersaPRM is a
LoRA adapter, which is added into its base here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded, special_id
from stepmark.types import Solution

TAG = " \n\n\n\n"


@dataclass(frozen=True, slots=True)
class Prm800k:
    signs: ClassVar[Signs] = Signs(body=".*ForCausalLM|adapter", names="VersaPRM|(?:Llama|Qwen)-PRM800K")
    head: ClassVar[str] = "CausalLM"
    per_step: ClassVar[bool] = True

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The question, and each step with its tag."""
        return layout.after_each(tokenizer, question, " \n\n", solution.steps, TAG)

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of + against -."""
        return heads.word(model, batch, *(special_id(tokenizer, word, "word") for word in "+-"))

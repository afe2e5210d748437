"""EurusPRM (Stage1, Stage2): an implicit reward, from how much likelier a model finds the text than its reference does.

The conversation of the question and the steps, joined by empty lines. A step's reward is beta times the sum, from the
beginning of the answer to the end of that step, of log p(token) of the model minus that of the reference, as its
published code adds it up: through the token that begins the next step, or the end of the turn. The score is the
reward's sigmoid, so the reward is the score's log-odds; with beta = 0.001 scores lie near a half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.models import heads, layout, packing
from stepmark.models.detection import Signs, local
from stepmark.models.encoding import Encoded
from stepmark.models.forward import output_layer, outputs
from stepmark.types import Solution

JOIN = "\n\n"


@dataclass(frozen=True, slots=True)
class Eurus:
    signs: ClassVar[Signs] = Signs(body=".*ForCausalLM", names="EurusPRM")
    head: ClassVar[str] = "CausalLM"
    per_step: ClassVar[bool] = True

    reference: str = "Qwen/Qwen2.5-Math-7B-Instruct"  # directory or hub id of the model that it was trained from
    beta: float = 0.001  # factor of the log-ratio

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The conversation. Tokens of the answer have weight 1; a step's place is the last token that it counts."""

        def ids(steps: int) -> tuple[int, ...]:
            answer = JOIN.join(solution.steps[:steps])
            return layout.conversation(tokenizer, [("user", [question]), ("assistant", [answer])]).ids

        def length(steps: int) -> int:
            """Of the conversation up to a step, without white space after its turn."""
            begun = list(ids(steps))
            while begun and not tokenizer.decode(begun[-1:]).strip():
                begun.pop()
            between = len(layout.plain_ids(tokenizer, JOIN)) if 0 < steps < len(solution.steps) else 0
            return len(begun) + between

        whole, start = ids(len(solution.steps)), length(0) - 2
        at = tuple(length(k) - 1 for k in range(1, len(solution.steps) + 1))
        return Encoded(whole, at=at, weights=tuple(float(t >= start) for t in range(len(whole))))

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the sigmoid of the rewards."""
        place = local(self.reference)
        dtype = str(model.dtype).removeprefix("torch.")
        reference = heads.model(place, heads.version(place), "CausalLM", dtype, str(model.device))
        own, other = (packing.log_probs_of(outputs(m, batch), output_layer(m), batch) for m in (model, reference))
        return (self.beta * (own - other)).sigmoid()

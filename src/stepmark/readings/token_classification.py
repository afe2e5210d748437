"""Token classifiers with two classes, as TRL trained them, and PURE-PRM-7B: read at the separator after each step.

The question, and each step followed by the separator, each encoded by itself, with BOS first where the tokenizer has
one, as TRL does. The score is the probability of class 1 at the separator's last token. PURE's own score is
p1 - p0 in [-1, 1]; p1 is half of that and 0.5, so the order is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stepmark.errors import ConfigError
from stepmark.models import heads, layout
from stepmark.models.detection import Signs
from stepmark.models.encoding import Encoded
from stepmark.types import Solution


@dataclass(frozen=True, slots=True)
class TokenClassification:
    signs: ClassVar[Signs] = Signs(architectures=".*ForTokenClassification", labels=(2,))
    head: ClassVar[str] = "TokenClassification"
    per_step: ClassVar[bool] = True

    separator: str = "\n"  # after each step, as in its training

    def __post_init__(self) -> None:
        if not self.separator:
            raise ConfigError("token_classification: separator is the text after each step, got an empty one.")

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Encoded:
        """The question, and each step with the separator."""
        *before, tag = layout.plain_ids(tokenizer, self.separator)
        ids = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        ids += layout.plain_ids(tokenizer, question)
        at = list[int]()
        for step in solution.steps:
            ids += [*layout.plain_ids(tokenizer, step), *before, tag]
            at.append(len(ids) - 1)
        return Encoded(tuple(ids), at=tuple(at))

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """[K] the probability of class 1."""
        return model.score(heads.places(model, batch)).float().softmax(-1)[:, 1]

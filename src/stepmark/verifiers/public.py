"""Public verifiers of others, read as their authors read them: without a recipe, and without code of theirs.

A checkpoint belongs to a family, whose file in `readings/` says how it is known, how text is laid out, and where a
score is read. `reading` is the family's name; "auto" finds it by the checkpoint's files, or refuses.
Question and solution are encoded as plain text, so a tag or a special token that someone wrote there is none; every
step has one place. A solution that is longer than the model reads is TRUNCATED, never cut.

    stepmark score --verifier Qwen/Qwen2.5-Math-PRM-7B rows.jsonl
    stepmark.load_verifier("./public-prm", reading="token_classification", options={"separator": "\\n\\n"})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from stepmark.errors import ConfigError, EncodingError
from stepmark.evaluation import aggregate as aggregation
from stepmark.models import checkpoints, detection, heads, scoring
from stepmark.models.encoding import Encoded
from stepmark.plugins import registry
from stepmark.protocols import Reading
from stepmark.types import Solution, Verification


@dataclass(frozen=True, slots=True)
class PublicVerifier:
    """Scores with the checkpoint at `path`. Raises ConfigError for an unknown reading."""

    path: str  # a directory or a hub id
    reading: str = "auto"  # the family; auto: what the checkpoint's files say
    aggregate: str = "min"  # how step scores are combined into the solution's score
    options: Mapping[str, Any] = field(default_factory=dict)  # of the reading, such as its separator
    dtype: str = "auto"  # of the weights; auto: bfloat16 on a GPU, else float32
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu

    def __post_init__(self) -> None:
        aggregation.aggregate([0.5], self.aggregate)
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"public: options is a mapping of the reading's options, got {self.options!r}.")
        if self.reading != "auto":
            self._reading()

    def identified(self) -> PublicVerifier:
        """This verifier with the name of its family in place of "auto", and its directory in place of a hub id.

        Raises CheckpointError where the files don't tell the family."""
        name = self.reading
        if name == "auto":  # before the weights are fetched
            name = detection.detect(detection.look(detection.local(self.path, weights=False)))
        return replace(self, path=detection.local(self.path), reading=name)

    @property
    def per_step(self) -> bool:
        """Whether each step gets a score. Raises CheckpointError as `identified` does."""
        known = self if self.reading != "auto" else self.identified()
        return bool(getattr(known._reading(), "per_step", True))

    @property
    def read_as(self) -> dict[str, Any]:
        """What its scores depend on besides the checkpoint: a file of scores is not continued with another reading."""
        return {"reading": self.reading, **self.options}

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with one score per step, or one in all of an outcome model."""
        if self.reading == "auto":
            return self.identified().verify(question, solutions)
        place, reading, per_step = detection.local(self.path), self._reading(), self.per_step
        tokenizer = checkpoints.load_tokenizer(heads.tokenizer_place(place))
        model = heads.model(place, heads.version(place), cast(Any, reading).head, self.dtype, self.device)

        def encode(solution: Solution) -> Encoded:
            encoded: Encoded = reading.encode(tokenizer, question, solution)
            expected = len(solution.spans) if per_step else 1
            if len(encoded.at) != expected:
                raise EncodingError(
                    f"{self.reading} gave {len(encoded.at)} places for {expected} steps; it must be one each."
                )
            return encoded

        return scoring.verify(
            solutions,
            encode,
            lambda batch: reading.read(place, model, tokenizer, batch),
            aggregate=self.aggregate if per_step else "last",
            max_length=scoring.max_length(model),
            pad_id=checkpoints.pad_id(tokenizer),
            device=str(model.device),
            per_step=per_step,
        )

    def _reading(self) -> Reading:
        return cast(Reading, registry.load("reading", self.reading, **self.options))

"""Step labels by entailment: a step is correct if some step of a correct worked solution entails it.

A baseline of Math-Shepherd (arXiv 2312.08935) that uses a natural-language-inference model, after DIVERSE (arXiv
2206.02336, section 3.3). Neither paper says how the pairs are built. Here the hypothesis is the step, and the premise
is a step of a reference solution, or with premise="prefix" the reference up to that step:

    p = max over the steps of the references of p(entailment | premise, step);    label = [p >= threshold].

The last step of a finished solution is labelled by the solution's grade (source "outcome"). The last step of a solution
that ran out of tokens is cut off and stays unknown, and so do all steps of a problem without references. A pair that is
too long for the model is not truncated but left out: if no other pair entails the step, the label is ungradable.

    stepmark label --labeler nli --labeler-option path=nli-model/ --task gsm8k --solutions S.jsonl --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.models import entailment
from stepmark.protocols import Tools
from stepmark.text.steps import split, splitter
from stepmark.types import Finish, LabelledSolution, StepLabel, Unlabelled

UNKNOWN = StepLabel(0, 0, source="nli")


@dataclass(frozen=True, slots=True)
class Nli:
    """The labeler. Raises ConfigError for a threshold out of range, `references` below 1 or an unknown splitter."""

    uses: ClassVar[frozenset[str]] = frozenset({"references"})

    path: str  # a sequence-classification checkpoint for sentence pairs: a directory or a hub id
    threshold: float = 0.5  # a step with at least this p counts as correct
    premise: Literal["step", "prefix"] = "step"  # one step of a reference, or the reference up to that step
    references: int = 4  # the largest number of references per problem, the data's own first; cost grows with it
    steps: str | None = None  # the step splitter for references (text/steps.py); null: the one for the solutions
    entailment: int | None = None  # index of the model's entailment label; null: found by its name
    dtype: str = "auto"  # of the weights while scoring
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.threshold <= 1:
            faults.append(f"nli: threshold must be a probability above 0 and at most 1, got {self.threshold}.")
        if self.references < 1:
            faults.append(f"nli: references must be at least 1, got {self.references}.")
        if self.steps is not None:
            try:
                splitter(self.steps)
            except ConfigError as e:
                faults += e.faults
        if faults:
            raise ConfigError(faults)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Scores the pairs of all units in one call. The model sees equal pairs only once."""
        grades = evidence.grades(units, tools)
        pairs = {
            (u, i): [(premise, unit.solution.steps[i]) for premise in premises]
            for u, unit in enumerate(units)
            for premises in [self._premises(unit, self.steps or tools.steps)]
            for i in range(len(unit.solution.spans))
            if not _last(unit, i)
        }
        probabilities = iter(
            entailment.probabilities(
                self.path,
                [pair for group in pairs.values() for pair in group],
                entailment=self.entailment,
                dtype=self.dtype,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
            )
        )
        labels = {position: self._label([next(probabilities) for _ in group]) for position, group in pairs.items()}
        for u, (unit, grade) in enumerate(zip(units, grades, strict=True)):
            last = UNKNOWN if unit.solution.finish is Finish.LENGTH else evidence.outcome(grade)
            steps = range(len(unit.solution.spans))
            yield LabelledSolution(unit.solution, grade, tuple(labels.get((u, i), last) for i in steps))

    def _premises(self, unit: Unlabelled, steps: str) -> list[str]:
        """The premises from a problem's references, in order, without duplicates."""
        return list(
            dict.fromkeys(
                text[0 if self.premise == "prefix" else start : end].strip()
                for text in unit.references[: self.references]
                for start, end in split(text, steps)
            )
        )

    def _label(self, probabilities: Sequence[float | None]) -> StepLabel:
        if any(p is not None and p >= self.threshold for p in probabilities):
            return StepLabel(1, 1, source="nli")
        if None in probabilities:
            return StepLabel(0, 0, ungradable=1, source="nli")
        return StepLabel(0, 1, source="nli") if probabilities else UNKNOWN


def _last(unit: Unlabelled, step: int) -> bool:
    """Whether this is the last step: the outcome labels it, or it is cut off."""
    return step == len(unit.solution.spans) - 1

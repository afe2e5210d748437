"""Step labels by entailment: a step is right if it follows from some step of a correct worked solution.

The rival with a natural-language-inference model of Math-Shepherd (arXiv 2312.08935), after DIVERSE (arXiv
2206.02336, section 3.3). Neither paper says how a pair is made; here the premise is a reference's step, or with
premise="prefix" the reference up to that step, the hypothesis is the step, and

    p = max over the steps of the references of p(entailment | premise, step);    label = [p >= threshold].

The last step of a finished solution is labelled by the solution's grade (source "outcome"); the last step of one that
ran out of tokens is cut off and stays unknown; so do the steps of a problem without references. A pair that is too
long for the model is never cut: where no other pair entails the step, its label is unknown and counted as ungradable.

    stepmark label --labeler nli --labeler-option path=nli-model/ --task gsm8k --solutions S.jsonl --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from stepmark.errors import ConfigError, UnknownName
from stepmark.evaluation import evidence
from stepmark.models import entailment
from stepmark.protocols import Tools
from stepmark.text.steps import SPLITTERS, split
from stepmark.types import Finish, LabelledSolution, StepLabel, Unlabelled

UNKNOWN = StepLabel(0, 0, source="nli")


@dataclass(frozen=True, slots=True)
class Nli:
    """The labeller. Raises ConfigError for a threshold that is no probability or an unknown way to split."""

    uses: ClassVar[frozenset[str]] = frozenset({"references"})

    path: str  # a sequence-classification checkpoint, a directory or a hub id, trained on pairs
    threshold: float = 0.5  # p from which on a step counts as right
    premise: Literal["step", "prefix"] = "step"  # what a step may follow from: one step of a reference, or all up to it
    references: int = 4  # compared with at most so many, the data's own first: the pairs grow with their number
    steps: str | None = None  # how references split into steps (text/steps.py); null: as the solutions were
    entailment: int | None = None  # index of the model's label for it; null finds it by its name
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.threshold <= 1:
            faults.append(f"nli: threshold is a probability above 0 and up to 1, got {self.threshold}.")
        if self.references < 1:
            faults.append(f"nli: references must be at least 1, got {self.references}.")
        if self.steps is not None and self.steps not in SPLITTERS:
            faults.append(str(UnknownName("way to split steps", self.steps, SPLITTERS)))
        if faults:
            raise ConfigError(faults)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """The pairs of all units go through the model together, equal ones once."""
        grades = evidence.grades(units, tools)
        pairs = {
            (u, i): [(premise, unit.solution.steps[i]) for premise in premises]
            for u, unit in enumerate(units)
            for premises in [self._premises(unit, self.steps or tools.steps)]
            for i in range(len(unit.solution.spans))
            if not _last(unit, i)
        }
        found = iter(
            entailment.probabilities(
                self.path,
                [pair for group in pairs.values() for pair in group],
                entailment=self.entailment,
                dtype=self.dtype,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
            )
        )
        labels = {at: self._label([next(found) for _ in group]) for at, group in pairs.items()}
        for u, (unit, grade) in enumerate(zip(units, grades, strict=True)):
            last = UNKNOWN if unit.solution.finish is Finish.LENGTH else evidence.outcome(grade)
            steps = range(len(unit.solution.spans))
            yield LabelledSolution(unit.solution, grade, tuple(labels.get((u, i), last) for i in steps))

    def _premises(self, unit: Unlabelled, steps: str) -> list[str]:
        """Each text once, in order."""
        return list(
            dict.fromkeys(
                text[0 if self.premise == "prefix" else start : end].strip()
                for text in unit.references[: self.references]
                for start, end in split(text, steps)
            )
        )

    def _label(self, found: Sequence[float | None]) -> StepLabel:
        if any(p is not None and p >= self.threshold for p in found):
            return StepLabel(1, 1, source="nli")
        if None in found:
            return StepLabel(0, 0, ungradable=1, source="nli")
        return StepLabel(0, 1, source="nli") if found else UNKNOWN


def _last(unit: Unlabelled, step: int) -> bool:
    """Whether it is the last step, which is labelled by its outcome, or cut off."""
    return step == len(unit.solution.spans) - 1

"""Step labels by string match: a step is right if its result is that of some step of a correct worked solution.

DIVERSE (Li et al., arXiv 2206.02336, section 3.3), the string-match rule that Math-Shepherd compares itself with
(arXiv 2312.08935). The references are `Unlabelled.references`: the data's own worked solution, and sampled ones that
the grader found correct. It runs no model. Where this deviates:
- the result of a step is the last number in it, as a value: 5, 5.0 and $5 are one result. With match="text", and for
  steps without a number, it is the step's text without regard to white space and case;
- the last step of a finished solution is labelled by the solution's grade (source "outcome"), as by all labellers;
- the last step of a solution that ran out of tokens is cut off, its result may be missing: it stays unknown;
- a problem without references has unknown steps, not wrong ones.

A correct solution among the references vouches for each of its own steps. A right step by another way than any
reference counts as wrong: the rule's own error, which more references make smaller.

    stepmark label --labeler rule --task arithmetic --solutions S.jsonl --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from stepmark.errors import UnknownName
from stepmark.evaluation import evidence
from stepmark.protocols import Tools
from stepmark.text.answers import last_number, normalise
from stepmark.text.steps import SPLITTERS, split
from stepmark.types import Finish, LabelledSolution, Solution, StepLabel, Unlabelled

UNKNOWN = StepLabel(0, 0, source="rule")


@dataclass(frozen=True, slots=True)
class Rule:
    """The labeller. Raises UnknownName for an unknown way to split."""

    uses: ClassVar[frozenset[str]] = frozenset({"references"})

    match: Literal["number", "text"] = "number"  # what is compared: the last number of a step, or all of its text
    steps: str | None = None  # how references split into steps (text/steps.py); null: as the solutions were

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps not in SPLITTERS:
            raise UnknownName("way to split steps", self.steps, SPLITTERS)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """One after the other; the grader is all it needs of the tools."""
        for unit, grade in zip(units, evidence.grades(units, tools), strict=True):
            s = unit.solution
            known = {
                self._result(text[start:end])
                for text in unit.references
                for start, end in split(text, self.steps or tools.steps)
            }
            yield LabelledSolution(
                s,
                grade,
                tuple(
                    evidence.outcome(grade) if evidence.ends(s, i) else self._compare(s, i, known)
                    for i in range(len(s.spans))
                ),
            )

    def _compare(self, s: Solution, step: int, known: set[str]) -> StepLabel:
        cut = s.finish is Finish.LENGTH and step == len(s.spans) - 1
        if cut or not known:
            return UNKNOWN
        return StepLabel(int(self._result(s.steps[step]) in known), 1, source="rule")

    def _result(self, step: str) -> str:
        number = last_number(step) if self.match == "number" else None
        return " ".join(step.casefold().split()) if number is None else normalise(number)

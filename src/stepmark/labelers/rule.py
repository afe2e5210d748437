"""Step labels by string match: a step is correct if a step of a correct worked solution has the same result.

DIVERSE (Li et al., arXiv 2206.02336, section 3.3), the string-match baseline of Math-Shepherd (arXiv 2312.08935). The
references are `Unlabelled.references`: the data's own worked solution, and sampled solutions that the grader found
correct. No model is needed. Deviations from the paper:
- the result of a step is the value of the last number in it: 5, 5.0 and $5 are the same. With match="text", and for a
  step without a number, the result is the step's text, ignoring white space and case;
- the last step of a finished solution is labelled by the solution's grade (source "outcome");
- the last step of a solution that ran out of tokens is cut off and may lack its result, so it stays unknown;
- the steps of a problem without references are unknown, not wrong.

All steps of a solution that is itself a reference are labelled correct. A correct step that no reference contains is
labelled wrong. This is the method's own error; more references make it smaller.

    stepmark label --labeler rule --task arithmetic --solutions S.jsonl --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from stepmark.evaluation import evidence
from stepmark.protocols import Tools
from stepmark.text.answers import last_number, normalise
from stepmark.text.steps import split, splitter
from stepmark.types import Finish, LabelledSolution, Solution, StepLabel, Unlabelled

UNKNOWN = StepLabel(0, 0, source="rule")


@dataclass(frozen=True, slots=True)
class Rule:
    """The labeler. Raises ConfigError for a step splitter that there is not."""

    uses: ClassVar[frozenset[str]] = frozenset({"references"})

    match: Literal["number", "text"] = "number"  # compare the last number of a step, or its whole text
    steps: str | None = None  # the step splitter for references (text/steps.py); null: the one for the solutions

    def __post_init__(self) -> None:
        if self.steps is not None:
            splitter(self.steps)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Labels one unit after the other. Of the tools it uses only the grader."""
        for unit, grade in zip(units, evidence.grades(units, tools), strict=True):
            solution = unit.solution
            results = {
                self._result(text[start:end])
                for text in unit.references
                for start, end in split(text, self.steps or tools.steps)
            }
            yield LabelledSolution(
                solution,
                grade,
                tuple(
                    evidence.outcome(grade) if evidence.ends(solution, i) else self._compare(solution, i, results)
                    for i in range(len(solution.spans))
                ),
            )

    def _compare(self, solution: Solution, step: int, results: set[str]) -> StepLabel:
        cut_off = solution.finish is Finish.LENGTH and step == len(solution.spans) - 1
        if cut_off or not results:
            return UNKNOWN
        return StepLabel(int(self._result(solution.steps[step]) in results), 1, source="rule")

    def _result(self, step: str) -> str:
        number = last_number(step) if self.match == "number" else None
        return " ".join(step.casefold().split()) if number is None else normalise(number)

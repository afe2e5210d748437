"""Step labels by binary search for the first wrong step: O(log steps) prefixes are tried instead of all.

OmegaPRM (arXiv 2406.06592), section 3.2. A prefix can still succeed if any of up to `rollouts` continuations reaches
the answer (Math-Shepherd's equation 3, whose rollouts stop here at the first success). If it can, the first error lies
after it; if it can't, at or before it. What the search needn't try follows, and its source says so:

    first_error             tried: the counts of its own rollouts
    outcome                 the last step of a finished solution: the solution's grade, for free
    inferred:later_success  a longer prefix succeeded, and that begins with this one
    inferred:earlier_error  a shorter prefix failed. Assumes that a failed prefix can't recover; one that failed by bad
                            luck, N rollouts being few, can, and a lucky success hides the error before it
    inferred:outcome        `trust_outcome`: the solution itself is correct, one success of each of its prefixes

`trust_outcome` changes what a label means: a correct solution costs nothing and all its steps are 1, also those that
no rollout of the completer could be saved from. Without it a correct solution is searched like any other up to its
last step, whose outcome is known anyhow, and only its own rollouts vouch for a step.

A tried prefix of which no rollout could be graded is unknown, not failed. The search for that solution ends there:
what was found is labelled, what lies between stays unknown. The place of the error is `evidence.first_error(labels)`.

    stepmark label --labeler first_error --solutions S.jsonl --model generator/ --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.evaluation.evidence import Prefix
from stepmark.protocols import Tools
from stepmark.types import Grade, LabelledSolution, StepLabel, Unlabelled

UNKNOWN = StepLabel(0, 0, source="first_error")


@dataclass(frozen=True, slots=True)
class FirstError:
    """The labeller. Raises ConfigError for numbers below 1."""

    uses: ClassVar[frozenset[str]] = frozenset({"completer"})

    rollouts: int = 8  # at most, for each prefix tried; a part of what the labels mean
    trust_outcome: bool = True  # a correct solution vouches for all its steps (see above)
    wave: int = 1  # rollouts of a prefix before the first look whether one succeeded; then as many again each time

    def __post_init__(self) -> None:
        faults = [
            f"first_error: {name} must be at least 1, got {getattr(self, name)}."
            for name in ("rollouts", "wave")
            if getattr(self, name) < 1
        ]
        if faults:
            raise ConfigError(faults)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """One prefix of each solution still searched goes to the completer together with those of the others."""
        evidence.need_completer(tools)
        grades = evidence.grades(units, tools)
        searches = [_begin(unit, grade, self.trust_outcome) for unit, grade in zip(units, grades, strict=True)]
        while open_ones := [s for s in searches if s.open]:
            found = evidence.gather([s.next for s in open_ones], tools, self.rollouts, evidence.succeeded, self.wave)
            for search in open_ones:
                search.learn(found[search.next.name])
        for search in searches:
            steps = range(len(search.unit.solution.spans))
            yield LabelledSolution(search.unit.solution, search.grade, tuple(map(search.label, steps)))


@dataclass(slots=True)
class _Search:
    unit: Unlabelled
    grade: Grade
    good: int  # the last step whose prefix is known to succeed; -1 for none
    bad: int  # the first one whose prefix is known to fail, or where there is nothing more to try
    trusted: bool = False  # the outcome vouches for all steps
    undecided: bool = False  # a prefix told nothing
    tried: dict[int, StepLabel] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return not self.undecided and self.bad - self.good > 1

    @property
    def next(self) -> Prefix:
        return Prefix(self.unit.problem, self.unit.solution, (self.good + self.bad) // 2)

    def learn(self, label: StepLabel) -> None:
        step = self.next.step
        self.tried[step] = replace(label, source="first_error")
        if not label.known:
            self.undecided = True
        elif label.correct:
            self.good = step
        else:
            self.bad = step

    def label(self, step: int) -> StepLabel:
        if evidence.ends(self.unit.solution, step):
            return evidence.outcome(self.grade)
        if step in self.tried:
            return self.tried[step]
        if step <= self.good:
            return StepLabel(1, 1, source="inferred:outcome" if self.trusted else "inferred:later_success")
        return StepLabel(0, 1, source="inferred:earlier_error") if step > self.bad else UNKNOWN


def _begin(unit: Unlabelled, grade: Grade, trust_outcome: bool) -> _Search:
    steps = len(unit.solution.spans)
    finished = evidence.ends(unit.solution, steps - 1)
    if finished and grade.correct and trust_outcome:
        return _Search(unit, grade, steps - 1, steps, trusted=True)
    # The last step of a finished solution needs no trial: the search is among those before it.
    return _Search(unit, grade, -1, steps - 1 if finished else steps)

"""Step labels by binary search for the first wrong step: rollouts for O(log steps) prefixes instead of all.

OmegaPRM (arXiv 2406.06592), section 3.2. A prefix succeeds if any of up to `rollouts` continuations reaches the answer
(Math-Shepherd's equation 3; here the rollouts of a prefix stop at the first success). If a prefix succeeds, the first
error comes after it. If it fails, the first error is in it. The labels of the other prefixes follow. The source of a
label says where it comes from:

    first_error             rollouts of this prefix; the label has their counts
    outcome                 the last step of a finished solution: the solution's grade, without rollouts
    inferred:later_success  a longer prefix succeeded, and it begins with this one
    inferred:earlier_error  a shorter prefix failed. This assumes that a failed prefix can't recover. With few rollouts
                            a correct prefix may fail by chance, and a lucky success hides an earlier error
    inferred:outcome        `trust_outcome`: the solution is correct, so it counts as a success of each of its prefixes

`trust_outcome` changes the meaning of a label: a correct solution needs no rollouts and all its steps are labelled 1,
even those from which no rollout of the completer would succeed. Without it, a correct solution is searched like any
other up to the step before its last one, whose label is the outcome, and only rollouts can label a step as correct.

A prefix without any gradable rollout is unknown, not failed. The search of that solution ends there: the steps that are
settled are labelled, the steps in between stay unknown. `evidence.first_error(labels)` is the index of the first error.

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
    """The labeler. Raises ConfigError for numbers below 1."""

    uses: ClassVar[frozenset[str]] = frozenset({"completer"})

    rollouts: int = 8  # the largest number per prefix; the meaning of a label depends on it
    trust_outcome: bool = True  # label all steps of a correct solution 1, without rollouts (see above)
    wave: int = 1  # rollouts of a prefix in the first wave; each later wave doubles the number drawn so far

    def __post_init__(self) -> None:
        faults = [
            f"first_error: {name} must be at least 1, got {getattr(self, name)}."
            for name in ("rollouts", "wave")
            if getattr(self, name) < 1
        ]
        if faults:
            raise ConfigError(faults)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Each wave sends one prefix of every solution that is still searched to the completer, all in one call. Yields
        a solution as soon as its search has ended."""
        evidence.need_completer(tools)
        grades = evidence.grades(units, tools)
        searches = [_begin(unit, grade, self.trust_outcome) for unit, grade in zip(units, grades, strict=True)]
        yield from (search.labelled() for search in searches if not search.open)
        while unfinished := {s.next.name: s for s in searches if s.open}:
            prefixes = [search.next for search in unfinished.values()]
            for name, label in evidence.settled(prefixes, tools, self.rollouts, evidence.succeeded, self.wave):
                unfinished[name].learn(label)
                if not unfinished[name].open:
                    yield unfinished[name].labelled()


@dataclass(slots=True)
class _Search:
    unit: Unlabelled
    grade: Grade
    good: int  # the last step whose prefix is known to succeed; -1 for none
    bad: int  # the first step whose prefix is known to fail, or the first step outside the search
    trusted: bool = False  # all steps are labelled by the outcome
    undecided: bool = False  # a prefix had no gradable rollout
    tried: dict[int, StepLabel] = field(default_factory=dict)  # by step: labels from rollouts

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

    def labelled(self) -> LabelledSolution:
        steps = range(len(self.unit.solution.spans))
        return LabelledSolution(self.unit.solution, self.grade, tuple(map(self.label, steps)))

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
    # The last step of a finished solution needs no rollouts, so the search covers the steps before it.
    return _Search(unit, grade, -1, steps - 1 if finished else steps)

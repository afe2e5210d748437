"""Step labels by rollouts: how often does a completer reach the reference answer from a step?

Math-Shepherd (arXiv 2312.08935), section 3.3. For each prefix s_1..s_i a completer samples N continuations with the
answers a_1..a_N. With the reference answer a*,

    y_HE = 1 if any a_j = a*, else 0        (equation 3)
    y_SE = #{j : a_j = a*} / N              (equation 4)

A label stores the counts; both estimates are properties of StepLabel. Deviations from the paper:
- N excludes rollouts that ran out of tokens, can't be graded or failed: they say nothing about the step. They are
  counted apart;
- the last step of a finished solution needs no rollouts, since nothing follows it: its label is the solution's grade
  (source "outcome");
- `early_stop`, for hard labels only: a step's rollouts end with the wave that has the first correct one. The hard
  label is the same as with all rollouts, but the soft label is biased, so the source is "monte_carlo+early_stop";
- `precision`, for soft labels: a step's rollouts end when both ends of its 95% interval are within this distance of
  the estimate. The source is "monte_carlo+precision". N then differs between steps, and so does the meaning of the
  hard label.

    stepmark label --labeler-option rollouts=8 --solutions S.jsonl --model generator/ --out L.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.evaluation.evidence import Prefix
from stepmark.protocols import Tools
from stepmark.types import LabelledSolution, StepLabel, Unlabelled


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """The labeler. Raises ConfigError for numbers out of range, and for `early_stop` together with `precision`."""

    uses: ClassVar[frozenset[str]] = frozenset({"completer"})

    # N, the largest number of rollouts per step. P(y_HE = 1) rises with N. null: 8, or with `precision` the number that
    # is enough for any step
    rollouts: int | None = None
    early_stop: bool = False  # stop a step after its first correct rollout; for hard labels only
    precision: float | None = None  # stop a step when its soft label is this precise, e.g. 0.1
    # Rollouts per step in the first wave, if a step may stop early. null: 8 with `precision`; with `early_stop` 2, or 1
    # if the completer is a paid server
    wave: int | None = None

    def __post_init__(self) -> None:
        faults = [
            f"monte_carlo: {name} must be at least 1, got {value}."
            for name, value in (("rollouts", self.rollouts), ("wave", self.wave))
            if value is not None and value < 1
        ]
        if self.precision is not None and not 0 < self.precision <= 0.5:
            faults.append(f"monte_carlo: precision must be above 0 and at most 0.5, got {self.precision}.")
        if self.precision is not None and self.early_stop:
            faults.append("monte_carlo: early_stop is for hard labels and precision for soft ones; set only one.")
        if faults:
            raise ConfigError(faults)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Sends all prefixes of all units to the completer in one call per wave, for full batches. Yields a solution as
        soon as all its steps have their evidence."""
        evidence.need_completer(tools)
        grades = evidence.grades(units, tools)
        by_id = {unit.solution.id: (unit.solution, grade) for unit, grade in zip(units, grades, strict=True)}
        steps = [
            Prefix(unit.problem, unit.solution, i)
            for unit in units
            for i in range(len(unit.solution.spans))
            if not evidence.ends(unit.solution, i)
        ]
        missing = Counter(step.solution.id for step in steps)
        labels: dict[str, StepLabel] = {}

        def labelled(id: str) -> LabelledSolution:
            solution, grade = by_id[id]
            of_steps = (
                evidence.outcome(grade) if evidence.ends(solution, i) else labels[f"{id}@{i}"]
                for i in range(len(solution.spans))
            )
            return LabelledSolution(solution, grade, tuple(of_steps))

        yield from (labelled(id) for id in by_id if not missing[id])
        source = "monte_carlo" + "+early_stop" * self.early_stop + "+precision" * (self.precision is not None)
        for name, label in self._settled(steps, tools):
            labels[name] = replace(label, source=source)
            id = name.rpartition("@")[0]
            missing[id] -= 1
            if not missing[id]:
                yield labelled(id)

    def _settled(self, steps: Sequence[Prefix], tools: Tools) -> Iterator[tuple[str, StepLabel]]:
        if self.precision is not None:
            max_rollouts = self.rollouts or evidence.rollouts_for(self.precision)
            enough = partial(evidence.precise, precision=self.precision)
            return evidence.settled(steps, tools, max_rollouts, enough, self.wave or 8, growth=1.5)
        if self.early_stop:
            wave, growth = evidence.waves(tools)
            return evidence.settled(
                steps, tools, self.rollouts or 8, evidence.succeeded, self.wave or wave, growth=growth
            )
        return evidence.settled(steps, tools, self.rollouts or 8)

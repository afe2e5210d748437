"""Step labels by rollouts: how often does a completer reach the answer from here?

Math-Shepherd (arXiv 2312.08935), section 3.3. For each prefix s_1..s_i a completer draws N continuations with the
answers a_1..a_N; with the reference a*,

    y_HE = 1 if any a_j = a*, else 0        (equation 3)
    y_SE = #{j : a_j = a*} / N              (equation 4)

What is stored are the counts; both estimates are properties of StepLabel. Where this deviates:
- rollouts that ran out of tokens, can't be graded or failed leave N: they say nothing about the step, and are counted;
- the last step of a finished solution needs no rollouts, nothing follows it: its label is the solution's grade
  (source "outcome");
- `early_stop`, for hard labels only: a step's rollouts end with the wave that brings the first correct one. The hard
  label is the same, rollout for rollout; the soft one is not an estimate of anything, so the source says
  "monte_carlo+early_stop";
- `precision`, for soft labels: a step's rollouts end when its 95% interval reaches no farther than this from the
  estimate. The source says "monte_carlo+precision"; the hard label then means another N at each step.

    stepmark label --labeler-option rollouts=8 --solutions S.jsonl --model generator/ --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.evaluation.evidence import Prefix
from stepmark.protocols import Tools
from stepmark.types import LabelledSolution, Unlabelled


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """The labeller. Raises ConfigError for numbers below 1, and for both ways of stopping at once."""

    uses: ClassVar[frozenset[str]] = frozenset({"completer"})

    # N, for each step; part of what a hard label means, since P(y_HE = 1) rises with it. null is 8, or with
    # `precision` what a step needs at worst
    rollouts: int | None = None
    early_stop: bool = False  # stop a step at its first correct rollout; for hard labels only
    precision: float | None = None  # stop a step when its soft label is known this well, e.g. 0.1
    # rollouts in a step's first wave, where it may stop; null is 8 with `precision`, else 2, or 1 of a paid model
    wave: int | None = None

    def __post_init__(self) -> None:
        faults = [
            f"monte_carlo: {name} must be at least 1, got {value}."
            for name, value in (("rollouts", self.rollouts), ("wave", self.wave))
            if value is not None and value < 1
        ]
        if self.precision is not None and not 0 < self.precision <= 0.5:
            faults.append(f"monte_carlo: precision is a distance above 0 and up to 0.5, got {self.precision}.")
        if self.precision is not None and self.early_stop:
            faults.append("monte_carlo: early_stop is for hard labels and precision for soft ones; give one of them.")
        if faults:
            raise ConfigError(faults)

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """All prefixes of all units go to the completer together, so that they fill its batches."""
        evidence.need_completer(tools)
        grades = evidence.grades(units, tools)
        steps = [
            Prefix(unit.problem, unit.solution, i)
            for unit in units
            for i in range(len(unit.solution.spans))
            if not evidence.ends(unit.solution, i)
        ]
        if self.precision is not None:
            most = self.rollouts or evidence.rollouts_for(self.precision)
            enough = partial(evidence.precise, precision=self.precision)
            found = evidence.gather(steps, tools, most, enough, self.wave or 8, growth=1.5)
            labels = evidence.named(found, "monte_carlo+precision")
        elif self.early_stop:
            wave, growth = evidence.waves(tools)
            found = evidence.gather(
                steps, tools, self.rollouts or 8, evidence.succeeded, self.wave or wave, growth=growth
            )
            labels = evidence.named(found, "monte_carlo+early_stop")
        else:
            labels = evidence.gather(steps, tools, self.rollouts or 8)
        for unit, grade in zip(units, grades, strict=True):
            s = unit.solution
            yield LabelledSolution(
                s,
                grade,
                tuple(
                    evidence.outcome(grade) if evidence.ends(s, i) else labels[f"{s.id}@{i}"]
                    for i in range(len(s.spans))
                ),
            )

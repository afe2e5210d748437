"""Step labels by rollouts: how often does a completer reach the answer from here?

Math-Shepherd (arXiv 2312.08935), section 3.3. For each prefix s_1..s_i a completer draws N continuations with the
answers a_1..a_N; with the reference a*,

    y_HE = 1 if any a_j = a*, else 0        (equation 3)
    y_SE = #{j : a_j = a*} / N              (equation 4)

What is stored are the counts; both estimates are properties of StepLabel. Where this deviates:
- rollouts that ran out of tokens or can't be graded leave N: they say nothing about the step, and are counted;
- the last step of a finished solution needs no rollouts, nothing follows it: its label is the solution's grade
  (source "outcome");
- `early_stop`, for hard labels only: a step's rollouts come in waves that double, and end with the first correct
  one. The hard label is the same, since rollout j is the same in whatever wave it is drawn; the soft one is not
  an estimate of anything, so the source says "monte_carlo+early_stop".

    stepmark label --labeler-option rollouts=8 --solutions S.jsonl --model generator/ --out L.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from stepmark.errors import ConfigError
from stepmark.grading import grade_solution
from stepmark.protocols import Backend, Grader
from stepmark.types import (
    Finish,
    Grade,
    LabelledSolution,
    Problem,
    Prompt,
    Rollout,
    SamplingParams,
    Solution,
    StepLabel,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """The labeller. Raises ConfigError for numbers below 1."""

    rollouts: int = 8  # N, for each step; part of what a hard label means, since P(y_HE = 1) rises with it
    early_stop: bool = False  # stop a step at its first correct rollout; for hard labels only
    wave: int = 1  # rollouts in a step's first wave, with early_stop

    def __post_init__(self) -> None:
        faults = [
            f"monte_carlo: {name} must be at least 1, got {value}."
            for name, value in (("rollouts", self.rollouts), ("wave", self.wave))
            if value < 1
        ]
        if faults:
            raise ConfigError(faults)

    def label(
        self,
        units: Sequence[tuple[Problem, Solution]],
        completer: Backend,
        grader: Grader,
        context: Callable[[Problem], str],
        params: SamplingParams,
    ) -> Iterator[LabelledSolution]:
        """All prefixes of all units go to the completer together, so that they fill its batches."""
        grades = [grade_solution(solution, problem, grader) for problem, solution in units]
        pending = {
            f"{solution.id}@{i}": _Step(problem, context(problem), solution.text[:end], self._empty())
            for problem, solution in units
            for i, (_, end) in enumerate(solution.spans)
            if not _ends(solution, i)
        }
        labels: dict[str, StepLabel] = {}
        asked, wave = 0, self.wave if self.early_stop else self.rollouts
        while pending and asked < self.rollouts:
            count = min(wave, self.rollouts - asked)
            prompts = [Prompt(name, step.context, step.prefix, count, asked) for name, step in pending.items()]
            for rollout in completer.sample(prompts, params):
                pending[rollout.prompt_id].add(rollout, grader)
            asked, wave = asked + count, wave * 2
            for name in [n for n, s in pending.items() if asked >= self.rollouts or s.label.correct]:
                labels[name] = pending.pop(name).label
        for (_, solution), grade in zip(units, grades, strict=True):
            yield LabelledSolution(
                solution,
                grade,
                tuple(
                    _of_grade(grade) if _ends(solution, i) else labels[f"{solution.id}@{i}"]
                    for i in range(len(solution.spans))
                ),
            )

    def _empty(self) -> StepLabel:
        return StepLabel(0, 0, source="monte_carlo+early_stop" if self.early_stop else "monte_carlo")


@dataclass(slots=True)
class _Step:
    """A step whose evidence is being gathered."""

    problem: Problem
    context: str  # the rendered question
    prefix: str  # the solution up to and including the step
    label: StepLabel  # so far

    def add(self, rollout: Rollout, grader: Grader) -> None:
        if rollout.finish is Finish.LENGTH:
            self.label = replace(self.label, truncated=self.label.truncated + 1)
            return
        verdict = grader.grade(self.prefix + rollout.text, self.problem).verdict
        if verdict is Verdict.UNGRADABLE:
            self.label = replace(self.label, ungradable=self.label.ungradable + 1)
        else:
            correct = self.label.correct + (verdict is Verdict.CORRECT)
            self.label = replace(self.label, correct=correct, gradable=self.label.gradable + 1)


def _ends(solution: Solution, step: int) -> bool:
    return solution.finish is Finish.STOP and step == len(solution.spans) - 1


def _of_grade(grade: Grade) -> StepLabel:
    if grade.verdict is Verdict.UNGRADABLE:
        return StepLabel(0, 0, ungradable=1, source="outcome")
    return StepLabel(int(grade.correct), 1, source="outcome")

"""Evidence about step prefixes: rollouts drawn in waves until there is enough of it.

For each prefix a completer draws continuations and a grader compares their answers with the reference; what is kept
are the counts of StepLabel, from which the estimates of Math-Shepherd (arXiv 2312.08935, equations 3 and 4) follow.
A wave asks for all unsettled prefixes at once, so that it fills the completer's batches; the next one asks again for
those that are still unsettled. Rollout j of a prefix is the same in whatever wave it comes, so stopping early changes
how many are drawn and never what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

from stepmark.errors import ConfigError
from stepmark.protocols import Backend, Tools
from stepmark.text.grading import grade_solution
from stepmark.types import (
    Finish,
    Grade,
    Problem,
    Prompt,
    Rollout,
    Solution,
    StepLabel,
    Unlabelled,
    Verdict,
)

Z = 1.959964  # 95% of a normal distribution lie within this many standard deviations
Enough = Callable[[StepLabel], bool]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A solution up to and including one of its steps."""

    problem: Problem
    solution: Solution
    step: int

    @property
    def name(self) -> str:
        """Names its rollouts, in whatever labeller asks for them."""
        return f"{self.solution.id}@{self.step}"

    @property
    def text(self) -> str:
        return self.solution.text[: self.solution.spans[self.step][1]]


def gather(
    prefixes: Sequence[Prefix],
    tools: Tools,
    most: int,
    enough: Enough | None = None,
    wave: int = 1,
    growth: float = 2.0,
) -> dict[str, StepLabel]:
    """The evidence about each prefix, by its name: `most` rollouts, or fewer where `enough` is satisfied before.

    Without `enough` all rollouts come in one wave; with it each wave makes the rollouts of an unsettled prefix
    `growth` times as many, beginning with `wave`. Raises ConfigError without a completer."""
    completer = need_completer(tools)
    pending = {prefix.name: prefix for prefix in prefixes}
    found = {name: StepLabel(0, 0) for name in pending}
    asked, target = 0, min(wave, most) if enough else most
    while pending and asked < most:
        prompts = [
            Prompt(name, tools.context(prefix.problem), prefix.text, target - asked, asked)
            for name, prefix in pending.items()
        ]
        for rollout in completer.sample(prompts, tools.params):
            name = rollout.prompt_id
            found[name] = add(found[name], rollout, pending[name], tools)
        if enough is not None:
            pending = {name: prefix for name, prefix in pending.items() if not enough(found[name])}
        asked, target = target, min(most, max(target + 1, round(target * growth)))
    return found


def waves(tools: Tools) -> tuple[int, float]:
    """First wave and growth for hard labels. Where each rollout costs money, one at first and twice as many each time
    waste the fewest; where an engine's time is what counts, fewer and larger waves fill it better and encode the
    prefixes less often (a 64-wide model labelled a quarter faster with 2, 8 than with 1, 2, 4, 8)."""
    return (1, 2.0) if getattr(tools.completer, "remote", False) else (2, 4.0)


def add(label: StepLabel, rollout: Rollout, prefix: Prefix, tools: Tools) -> StepLabel:
    """The label with one more rollout counted."""
    if rollout.finish is Finish.FAILED:
        return replace(label, failed=label.failed + 1)
    if rollout.finish is Finish.LENGTH:
        return replace(label, truncated=label.truncated + 1)
    verdict = tools.grader.grade(prefix.text + rollout.text, prefix.problem).verdict
    if verdict is Verdict.UNGRADABLE:
        return replace(label, ungradable=label.ungradable + 1)
    return replace(label, correct=label.correct + (verdict is Verdict.CORRECT), gradable=label.gradable + 1)


def succeeded(label: StepLabel) -> bool:
    """Enough for a hard label that is 1."""
    return label.correct > 0


def precise(label: StepLabel, precision: float) -> bool:
    """Enough for a soft label: the 95% Wilson interval reaches no farther than `precision` from the estimate.

    The farther end counts, not half the width: near 0 and 1 the interval is lopsided, and half of it would stop
    too early. Held to that, looking after each wave costs no coverage (tests/test_evidence.py)."""
    if not label.gradable:
        return False
    low, high = wilson(label.correct, label.gradable)
    return max(label.soft - low, high - label.soft) <= precision


def rollouts_for(precision: float) -> int:
    """Rollouts after which any soft label is that precise, whatever the count of correct ones.

    Over all shares the farther end of Wilson's interval is at most Z / (2 sqrt(n)) away (Cauchy-Schwarz), and nearly
    that far for a share near 1/2."""
    return ceil((Z / (2 * precision)) ** 2)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    p, z2 = correct / n, Z * Z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, center - half), min(1.0, center + half)


# ---- what needs no rollout ----


def ends(solution: Solution, step: int) -> bool:
    """Whether nothing follows this step: the solution ended there by itself."""
    return solution.finish is Finish.STOP and step == len(solution.spans) - 1


def outcome(grade: Grade) -> StepLabel:
    """The label of a step that nothing follows: its solution's grade."""
    if grade.verdict is Verdict.UNGRADABLE:
        return StepLabel(0, 0, ungradable=1, source="outcome")
    return StepLabel(int(grade.correct), 1, source="outcome")


def grades(units: Sequence[Unlabelled], tools: Tools) -> list[Grade]:
    """The grade of each solution's own answer."""
    return [grade_solution(unit.solution, unit.problem, tools.grader) for unit in units]


def first_error(labels: Sequence[StepLabel]) -> int | None:
    """Index of the first step whose hard label is 0; the number of steps where there is none.

    None where it can't be told, because a step before it is unknown."""
    for i, label in enumerate(labels):
        if not label.known:
            return None
        if not label.correct:
            return i
    return len(labels)


def named(labels: Mapping[str, StepLabel], source: str) -> dict[str, StepLabel]:
    """The same evidence under another source."""
    return {name: replace(label, source=source) for name, label in labels.items()}


def need_completer(tools: Tools) -> Backend:
    """The completer. Raises ConfigError without one."""
    if tools.completer is None:
        raise ConfigError("this way of labelling draws rollouts and needs a completer: give --model, or a generator.")
    return tools.completer


def need_judge(tools: Tools) -> Backend:
    """The judge. Raises ConfigError without one."""
    if tools.judge is None:
        raise ConfigError("this way of labelling asks a model in words and needs a judge: give one, e.g. --judge.")
    return tools.judge

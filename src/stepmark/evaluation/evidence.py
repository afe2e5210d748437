"""Evidence for step labels: samples rollouts of step prefixes in waves, until each prefix has enough of them.

For each prefix a completer samples continuations and a grader compares their answers with the reference. The result is
the counts of a StepLabel, from which the estimates of Math-Shepherd (arXiv 2312.08935, equations 3 and 4) follow.
A wave samples for all unsettled prefixes together, so that it fills the completer's batches; the next wave samples for
those that are still unsettled. Rollout j of a prefix is the same in every wave, so early stopping changes the number of
rollouts but not the rollouts themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

from stepmark.errors import ConfigError
from stepmark.protocols import Backend, Tools
from stepmark.text.grading import TRUNCATED, grade_solution, grade_text
from stepmark.types import (
    Finish,
    Grade,
    Problem,
    Prompt,
    Rollout,
    SamplingParams,
    Solution,
    StepLabel,
    Unlabelled,
    Verdict,
)

Z = 1.959964  # 95% of a normal distribution is within this many standard deviations
Enough = Callable[[StepLabel], bool]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A solution up to and including one of its steps."""

    problem: Problem
    solution: Solution
    step: int

    @property
    def name(self) -> str:
        """The prompt id of the prefix's rollouts. It is the same in every labeler, so that they share rollouts."""
        return f"{self.solution.id}@{self.step}"

    @property
    def text(self) -> str:
        return self.solution.text[: self.solution.spans[self.step][1]]


def answered(
    judge: Backend, prompts: Mapping[str, Prompt], params: SamplingParams, keys: Iterable[str]
) -> Iterator[tuple[str, Sequence[Rollout]]]:
    """Each of `keys` with the answers to its prompt, as soon as it has all of them; at first those without a prompt.
    All prompts (key -> prompt) go to the judge in one call."""
    yield from ((key, ()) for key in keys if key not in prompts)
    by_name = {prompt.id: key for key, prompt in prompts.items()}
    answers: dict[str, list[Rollout]] = {key: [] for key in prompts}
    for rollout in judge.sample(list(prompts.values()), params) if prompts else ():
        key = by_name[rollout.prompt_id]
        answers[key].append(rollout)
        if len(answers[key]) == prompts[key].n:
            yield key, answers.pop(key)
    yield from answers.items()  # a judge that gave fewer than it was asked for


def gather(
    prefixes: Sequence[Prefix],
    tools: Tools,
    most: int,
    enough: Enough | None = None,
    wave: int = 1,
    growth: float = 2.0,
) -> dict[str, StepLabel]:
    """The evidence about each prefix, by its name. See `settled`."""
    return dict(settled(prefixes, tools, most, enough, wave, growth))


def settled(
    prefixes: Sequence[Prefix],
    tools: Tools,
    most: int,
    enough: Enough | None = None,
    wave: int = 1,
    growth: float = 2.0,
) -> Iterator[tuple[str, StepLabel]]:
    """The name of each prefix and the evidence about it, as soon as that is complete: `most` rollouts, or fewer if
    `enough` returns True earlier.

    Without `enough` there is one wave with all rollouts. With it the first wave has `wave` rollouts for each prefix,
    and each further wave multiplies the total of an unsettled prefix by `growth`. Raises ConfigError without a
    completer."""
    completer = need_completer(tools)
    pending = {prefix.name: prefix for prefix in prefixes}
    labels = {name: StepLabel(0, 0) for name in pending}
    sampled, target = 0, min(wave, most) if enough else most
    came = Counter[str]()
    while pending and sampled < most:
        prompts = [
            Prompt(name, tools.context(prefix.problem), prefix.text, target - sampled, sampled)
            for name, prefix in pending.items()
        ]
        for rollout in completer.sample(prompts, tools.params):
            name = rollout.prompt_id
            labels[name] = add(labels[name], rollout, pending[name], tools)
            came[name] += 1
            if came[name] == most:
                yield name, labels[name]
        open_ones = {name: prefix for name, prefix in pending.items() if came[name] < most}
        pending = {name: prefix for name, prefix in open_ones.items() if enough is None or not enough(labels[name])}
        yield from ((name, labels[name]) for name in open_ones if name not in pending)
        sampled, target = target, min(most, max(target + 1, round(target * growth)))
    yield from ((name, labels[name]) for name in pending)  # of a backend that gave too few rollouts


def waves(tools: Tools) -> tuple[int, float]:
    """Size of the first wave and growth, for hard labels. For a backend that charges for each rollout, waves of one
    rollout, doubling the total each time, waste the least. A local engine is faster with fewer and larger waves: they
    fill it better, and prefixes are encoded less often (a 64-wide model labelled a quarter faster with totals of 2, 8
    than with 1, 2, 4, 8)."""
    return (1, 2.0) if getattr(tools.completer, "remote", False) else (2, 4.0)


def add(label: StepLabel, rollout: Rollout, prefix: Prefix, tools: Tools) -> StepLabel:
    """The label after counting one more rollout."""
    if rollout.finish is Finish.FAILED:
        return replace(label, failed=label.failed + 1)
    if rollout.finish is Finish.LENGTH:
        return replace(label, truncated=label.truncated + 1)
    grade = grade_text(prefix.text + rollout.text, prefix.problem, tools.grader)
    if grade == TRUNCATED:  # inside a thought
        return replace(label, truncated=label.truncated + 1)
    verdict = grade.verdict
    if verdict is Verdict.UNGRADABLE:
        return replace(label, ungradable=label.ungradable + 1)
    return replace(label, correct=label.correct + (verdict is Verdict.CORRECT), gradable=label.gradable + 1)


def succeeded(label: StepLabel) -> bool:
    """Whether the evidence is enough for a hard label of 1."""
    return label.correct > 0


def precise(label: StepLabel, precision: float) -> bool:
    """Whether the evidence is enough for a soft label: both ends of the 95% Wilson interval are within `precision` of
    the estimate.

    The farther end decides, not half the width: near 0 and 1 the interval is asymmetric, and half the width would stop
    too early. With this rule, checking after each wave costs no coverage (tests/evaluation/test_evidence.py)."""
    if not label.gradable:
        return False
    low, high = wilson(label.correct, label.gradable)
    return max(label.soft - low, high - label.soft) <= precision


def rollouts_for(precision: float) -> int:
    """The number of rollouts after which every soft label is that precise, for any number of correct rollouts.

    For every share, the farther end of Wilson's interval is at most Z / (2 sqrt(n)) away (Cauchy-Schwarz), and nearly
    that far for a share near 1/2."""
    return ceil((Z / (2 * precision)) ** 2)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    p, z2 = correct / n, Z * Z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, center - half), min(1.0, center + half)


# ---- evidence without rollouts ----


def ends(solution: Solution, step: int) -> bool:
    """Whether the solution ended by itself after this step, so that nothing can follow it."""
    return solution.finish is Finish.STOP and step == len(solution.spans) - 1


def outcome(grade: Grade) -> StepLabel:
    """The label of a step that nothing can follow, made of its solution's grade."""
    if grade.verdict is Verdict.UNGRADABLE:
        return StepLabel(0, 0, ungradable=1, source="outcome")
    return StepLabel(int(grade.correct), 1, source="outcome")


def grades(units: Sequence[Unlabelled], tools: Tools) -> list[Grade]:
    """The grade of each solution's own answer."""
    return [grade_solution(unit.solution, unit.problem, tools.grader) for unit in units]


def first_error(labels: Sequence[StepLabel]) -> int | None:
    """Index of the first step whose hard label is 0; the number of steps if there is no such step. None if a step
    before it has no known label, so that the index is unknown."""
    for i, label in enumerate(labels):
        if not label.known:
            return None
        if not label.correct:
            return i
    return len(labels)


def need_completer(tools: Tools) -> Backend:
    """The completer. Raises ConfigError without one."""
    if tools.completer is None:
        raise ConfigError("this labeler samples rollouts and needs a completer: give --model, or a generator.")
    return tools.completer


def need_judge(tools: Tools) -> Backend:
    """The judge. Raises ConfigError without one."""
    if tools.judge is None:
        raise ConfigError("this labeler prompts a language model and needs a judge: give one, e.g. with --judge.")
    return tools.judge

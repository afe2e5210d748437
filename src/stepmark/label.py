"""Stage: solutions -> one label per step, without a human.

How the evidence is found is the labeller's business (labelers/); this stage feeds it batches that fill the
engine and stores what comes.

    stepmark label --task arithmetic --solutions solutions.jsonl --model generator/ --out labels.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from stepmark import units as work
from stepmark.protocols import Backend, Executor, Grader, Labeler
from stepmark.store import Records
from stepmark.types import LabelledSolution, Problem, Progress, SamplingParams, Solution


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the file holds after labelling."""

    solutions: int
    steps: int
    unknown: int  # steps without any gradable rollout: they teach nothing
    truncated: int  # rollouts that ran out of tokens
    ungradable: int  # rollouts that ended but could not be graded
    gradable: int  # rollouts that count
    failed: tuple[work.Failed, ...]  # solutions without labels


def label(
    units: Sequence[tuple[Problem, Solution]],
    labeler: Labeler,
    completer: Backend,
    grader: Grader,
    out: Records[LabelledSolution],
    *,
    context: Callable[[Problem], str],
    params: SamplingParams,
    executor: Executor,
    progress: Callable[[Progress], None] | None = None,
    steps: int = 128,
) -> Labelled:
    """Labels the solutions that `out` lacks, in batches of about `steps` steps.

    Raises StageError when nearly everything fails."""
    there = out.keys()
    failed = work.run(
        "label",
        partial(_label, labeler=labeler, completer=completer, grader=grader, context=context, params=params),
        [u for u in units if u[1].id not in there],
        out,
        name=_name,
        weigh=_weigh,
        size=steps,
        already=sum(_weigh(u) for u in units if u[1].id in there),
        executor=executor,
        progress=progress,
    )
    solutions = count = unknown = truncated = ungradable = gradable = 0
    for labelled in out:
        solutions += 1
        for step in labelled.labels:
            count += 1
            unknown += not step.known
            truncated += step.truncated
            ungradable += step.ungradable
            gradable += step.gradable
    return Labelled(solutions, count, unknown, truncated, ungradable, gradable, failed)


def distinct(units: Sequence[tuple[Problem, Solution]]) -> list[tuple[Problem, Solution]]:
    """The first of the solutions of a problem that have the same text. For training data; never before a
    vote, where how often an answer comes is the signal."""
    first: dict[tuple[str, str], tuple[Problem, Solution]] = {}
    for problem, solution in units:
        first.setdefault((problem.id, solution.text), (problem, solution))
    return list(first.values())


def _label(
    unit: tuple[tuple[Problem, Solution], ...],
    *,
    labeler: Labeler,
    completer: Backend,
    grader: Grader,
    context: Callable[[Problem], str],
    params: SamplingParams,
) -> Iterator[LabelledSolution]:
    return labeler.label(unit, completer, grader, context, params)


def _name(item: tuple[Problem, Solution]) -> str:
    return item[1].id


def _weigh(item: tuple[Problem, Solution]) -> int:
    return max(1, len(item[1].spans))

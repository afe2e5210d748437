"""Stage: solutions -> grades. The grader is the only role that sees the reference answer.

stepmark grade --task arithmetic --split test --solutions solutions.jsonl --out grades.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from stepmark.data import work_units
from stepmark.data.outcome_counts import LimitCheck, Limits, of_grades
from stepmark.data.store import Records
from stepmark.protocols import Executor, Grader
from stepmark.text.grading import grade_solution
from stepmark.types import GradedSolution, Problem, Progress, Solution, Verdict


@dataclass(frozen=True, slots=True)
class Graded:
    """Counts over the whole file after grading."""

    solutions: int
    correct: int
    incorrect: int
    ungradable: int  # truncated ones included
    reasons: tuple[tuple[str, int], ...]  # (reason, count) of ungradable solutions: the ten most frequent
    failed: tuple[work_units.Failed, ...]  # solutions without a grade


def grade(
    solutions: Iterable[Solution],
    problems: Sequence[Problem],
    grader: Grader,
    out: Records[GradedSolution],
    *,
    executor: Executor,
    limits: Limits | None = None,
    progress: Callable[[Progress], None] | None = None,
    rows: int = 1024,
) -> Graded:
    """Grades the solutions that have no grade in `out` yet, at most `rows` of them in a unit of work.

    Raises DataError for a solution whose problem is not in `problems`, and StageError when the share of unusable
    solutions exceeds `limits`."""
    stored_keys = out.keys()
    todo = work_units.pair(problems, (s for s in solutions if s.id not in stored_keys))
    failed = work_units.run(
        "grade",
        partial(_grade, grader=grader),
        todo,
        out,
        name=_name,
        weigh=_weigh,
        size=work_units.BySpeed(rows),
        already=len(stored_keys),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, of_grades, "solutions"),
    )
    verdicts, reasons = Counter[Verdict](), Counter[str]()
    for graded in out:
        verdicts[graded.grade.verdict] += 1
        if graded.grade.verdict is Verdict.UNGRADABLE:
            reasons[graded.grade.reason] += 1
    return Graded(
        solutions=verdicts.total(),
        correct=verdicts[Verdict.CORRECT],
        incorrect=verdicts[Verdict.INCORRECT],
        ungradable=verdicts[Verdict.UNGRADABLE],
        reasons=tuple(reasons.most_common(10)),
        failed=failed,
    )


def _grade(unit: tuple[tuple[Problem, Solution], ...], *, grader: Grader) -> list[GradedSolution]:
    return [GradedSolution(s.id, p.id, grade_solution(s, p, grader)) for p, s in unit]


def _name(item: tuple[Problem, Solution]) -> str:
    return item[1].id


def _weigh(item: tuple[Problem, Solution]) -> int:
    return 1

"""Stage: solutions -> verifications. The verifier gets the question and the solutions, never the reference answer.

stepmark score --verifier prm/ --task arithmetic --solutions solutions.jsonl --out scores.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

from stepmark.data import work_units
from stepmark.data.outcome_counts import LimitCheck, Limits, of_verifications
from stepmark.data.store import Records
from stepmark.errors import DataError
from stepmark.protocols import Executor, Verifier
from stepmark.types import Outcome, Problem, Progress, Solution, Verification

Item = tuple[str, str, tuple[Solution, ...]]  # problem id, question, the problem's solutions without a verification


@dataclass(frozen=True, slots=True)
class Scored:
    """Counts over the whole file after scoring: the number of verifications of each outcome."""

    solutions: int
    scored: int
    unparsed: int
    truncated: int
    failed_outcome: int  # stored verifications with the outcome FAILED: the verifier could not score the solution
    failed: tuple[work_units.Failed, ...]  # problems whose solutions have no stored verification


def score(
    verifier: Verifier,
    problems: Sequence[Problem],
    solutions: Iterable[Solution],
    out: Records[Verification],
    *,
    executor: Executor,
    limits: Limits | None = None,
    progress: Callable[[Progress], None] | None = None,
    rows: int = 512,
) -> Scored:
    """Scores the solutions that have no verification in `out` yet, about `rows` of them in a unit of work.

    Raises DataError for a solution whose problem is not in `problems`, and StageError when nearly everything fails or
    the share of unusable verifications exceeds `limits`."""
    stored_keys = out.keys()
    todo = _items(problems, (s for s in solutions if s.id not in stored_keys))
    failed = work_units.run(
        "score",
        partial(_score, verifier=verifier),
        todo,
        out,
        name=_name,
        weigh=_weigh,
        size=rows,
        already=len(stored_keys),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, of_verifications, "verifications"),
    )
    outcomes = Counter(v.outcome for v in out)
    return Scored(
        solutions=outcomes.total(),
        scored=outcomes[Outcome.SCORED],
        unparsed=outcomes[Outcome.UNPARSED],
        truncated=outcomes[Outcome.TRUNCATED],
        failed_outcome=outcomes[Outcome.FAILED],
        failed=failed,
    )


def _items(problems: Sequence[Problem], solutions: Iterable[Solution]) -> list[Item]:
    by_problem = groupby(work_units.pair(problems, solutions), key=itemgetter(0))
    return [(problem.id, problem.question, tuple(s for _, s in pairs)) for problem, pairs in by_problem]


def ask(verifier: Verifier, asked: Sequence[tuple[str, Sequence[Solution]]]) -> list[Verification]:
    """Verifies all solutions of (question, solutions) pairs and returns the verifications in the same order. It calls
    `verify_many` once where the verifier has it, else `verify` for each question. Raises DataError when the
    verifications do not match the solutions."""
    verify_many = getattr(verifier, "verify_many", None)
    verifications = (
        verify_many(asked) if verify_many is not None else [v for pair in asked for v in verifier.verify(*pair)]
    )
    expected_ids = [s.id for _, solutions in asked for s in solutions]
    if [v.solution_id for v in verifications] != expected_ids:
        raise DataError(
            f"the verifier returned {len(verifications)} verifications for {len(expected_ids)} solutions, or returned "
            "them in another order. It must return one for each solution, in the order of the solutions."
        )
    return verifications


def _score(unit: tuple[Item, ...], *, verifier: Verifier) -> list[Verification]:
    return ask(verifier, [(question, solutions) for _, question, solutions in unit])


def _name(item: Item) -> str:
    return item[0]


def _weigh(item: Item) -> int:
    return len(item[2])

"""Stage: solutions -> verifications. The verifier gets the question and the solutions, never the answer.

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

Item = tuple[str, str, tuple[Solution, ...]]  # a problem's id, its question, those of its solutions that lack a score


@dataclass(frozen=True, slots=True)
class Scored:
    """What the file holds after scoring: how many verifications of each outcome."""

    solutions: int
    scored: int
    unparsed: int
    truncated: int
    failed_outcome: int  # verifications whose outcome is FAILED: the verifier met the solution and broke on it
    failed: tuple[work_units.Failed, ...]  # problems whose solutions have no verification


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
    """Scores the solutions that `out` lacks, about `rows` of them in a unit of work.

    Raises DataError for a solution of no known problem, StageError when nearly everything fails or more than
    `limits` allow can't be used."""
    there = out.keys()
    todo = _items(problems, (s for s in solutions if s.id not in there))
    failed = work_units.run(
        "score",
        partial(_score, verifier=verifier),
        todo,
        out,
        name=_name,
        weigh=_weigh,
        size=rows,
        already=len(there),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, of_verifications, "verifications"),
    )
    found = Counter(v.outcome for v in out)
    return Scored(
        solutions=found.total(),
        scored=found[Outcome.SCORED],
        unparsed=found[Outcome.UNPARSED],
        truncated=found[Outcome.TRUNCATED],
        failed_outcome=found[Outcome.FAILED],
        failed=failed,
    )


def _items(problems: Sequence[Problem], solutions: Iterable[Solution]) -> list[Item]:
    of_problem = groupby(work_units.pair(problems, solutions), key=itemgetter(0))
    return [(problem.id, problem.question, tuple(s for _, s in pairs)) for problem, pairs in of_problem]


def ask(verifier: Verifier, asked: Sequence[tuple[str, Sequence[Solution]]]) -> list[Verification]:
    """The verifications of all solutions of (question, solutions) pairs, in order, as many questions at once as the
    verifier takes. Raises DataError for a verifier that gives others."""
    many = getattr(verifier, "verify_many", None)
    made = many(asked) if many is not None else [v for pair in asked for v in verifier.verify(*pair)]
    wanted = [s.id for _, solutions in asked for s in solutions]
    if [v.solution_id for v in made] != wanted:
        raise DataError(
            f"the verifier gave {len(made)} verifications for {len(wanted)} solutions, or in another order; "
            "it must give one for each, in order."
        )
    return list(made)


def _score(unit: tuple[Item, ...], *, verifier: Verifier) -> list[Verification]:
    return ask(verifier, [(question, solutions) for _, question, solutions in unit])


def _name(item: Item) -> str:
    return item[0]


def _weigh(item: Item) -> int:
    return len(item[2])

"""Stage: solutions -> verifications. The verifier gets the question and the solutions, never the reference answer.

The solutions are those of a task's problems (`score`), or texts in rows of a user's file (`score_rows`). `verify` takes
plain texts in Python.

    stepmark score --verifier prm/ --task arithmetic --solutions solutions.jsonl --out scores.jsonl
    stepmark score --verifier prm/ rows.jsonl --out scores.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

from stepmark.data import rows as files
from stepmark.data import work_units
from stepmark.data.fingerprint import of_model
from stepmark.data.outcome_counts import LimitCheck, Limits, OutcomeCounts, of_verifications
from stepmark.data.store import Records
from stepmark.errors import ConfigError, DataError
from stepmark.protocols import Executor, Verifier
from stepmark.text.steps import split
from stepmark.text.thoughts import answer_of
from stepmark.types import Finish, Outcome, Place, Problem, Progress, Quarantined, ScoredRow, Solution, Verification

Item = tuple[str, str, tuple[Solution, ...]]  # problem id, question, the problem's solutions without a verification
RowItem = tuple[str, str, str, tuple[Solution, ...]]  # row id, fingerprint, question, solutions
ROUNDING = 1e-6  # how far outside [0, 1] a sum of rounded probabilities may be
TEXTS = ("solutions", "completions", "solution")  # fields of a row that hold its solutions


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
    """Scores the solutions that have no verification in `out` yet, at most `rows` of them in a unit of work.

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
        keys=_keys,
        cut=_cut,
        size=_size(verifier, rows),
        already=len(stored_keys),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, of_verifications, "verifications"),
    )
    return _counted(out, failed)


def score_rows(
    verifier: Verifier,
    path: Place,
    out: Records[ScoredRow],
    *,
    executor: Executor,
    steps: str = "line",
    limits: Limits | None = None,
    progress: Callable[[Progress], None] | None = None,
    rows: int = 512,
) -> tuple[Scored, tuple[Quarantined, ...]]:
    """Scores the rows of a file that have no record in `out` yet, at most `rows` solutions, or one row, in a unit.

    A row is `{"question": ..., "solutions": [...]}`; `completions` is another name of the list, and `solution` holds a
    single text. `steps` says how the texts are split into steps. Returns the counts and the rows that were set aside.

    Raises DataError where a row or the verifier has changed since it was used, and StageError as `score` does."""
    checkpoint = str(getattr(verifier, "path", ""))
    place = str(Path(checkpoint))
    read_as = [json.dumps(of_reading) for of_reading in [getattr(verifier, "read_as", {})] if of_reading]
    items, bad = _row_items(path, steps, [type(verifier).__name__, of_model(checkpoint) or place, *read_as])
    stored = {record.key: record.fingerprint for record in out}
    if any(stored.get(row, fingerprint) != fingerprint for row, fingerprint, _, _ in items):
        # Earlier versions knew a verifier by its path.
        new = {row: fingerprint for row, fingerprint, _, _ in items}
        older = {row: old for row, old, _, _ in _row_items(path, steps, [type(verifier).__name__, place])[0]}
        stored = {row: new[row] if old == older.get(row) else old for row, old in stored.items()}
    for row, fingerprint, _, _ in items:
        if stored.get(row, fingerprint) != fingerprint:
            raise DataError(
                f"row {row} of {path} is not what was scored into {out.path}: its text, how it is split, or the "
                "verifier has changed. Give another --out, or delete that file."
            )
    failed = work_units.run(
        "score",
        partial(_score_rows, verifier=verifier),
        [item for item in items if item[0] not in stored],
        out,
        name=itemgetter(0),
        weigh=_weigh_row,
        size=_size(verifier, rows),
        already=sum(len(record.verifications) for record in out),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, _of_rows, "verifications"),
    )
    return _counted((v for record in out for v in record.verifications), failed), bad


def verify(verifier: Verifier, question: str, texts: Sequence[str], steps: str = "line") -> list[Verification]:
    """One verification per text, in order. `steps` says how the texts are split into steps: the way in which the
    verifier's training solutions were. Raises ConfigError for one text in place of a list, and for unknown `steps`, and
    DataError for a score outside [0, 1]."""
    if isinstance(texts, str):
        raise ConfigError("verify takes a list of texts, got one text. For a single text give [text].")
    return _asked(verifier, [(question, _solutions("", texts, steps))])


def _counted(verifications: Iterable[Verification], failed: tuple[work_units.Failed, ...]) -> Scored:
    outcomes = Counter(v.outcome for v in verifications)
    return Scored(
        solutions=outcomes.total(),
        scored=outcomes[Outcome.SCORED],
        unparsed=outcomes[Outcome.UNPARSED],
        truncated=outcomes[Outcome.TRUNCATED],
        failed_outcome=outcomes[Outcome.FAILED],
        failed=failed,
    )


def _row_items(path: Place, steps: str, verifier: Sequence[str]) -> tuple[list[RowItem], tuple[Quarantined, ...]]:
    items, bad = list[RowItem](), list[Quarantined]()
    for row in files.read(path, [files.QUESTION]):
        if isinstance(row, Quarantined):
            bad.append(row)
            continue
        texts = files.texts(row, TEXTS)
        if isinstance(texts, Quarantined):
            bad.append(texts)
            continue
        question = row.text["question"]
        digest = hashlib.sha256(json.dumps([*verifier, steps, question, texts]).encode()).hexdigest()[:16]
        items.append((row.id, digest, question, _solutions(row.id, texts, steps)))
    if not items:
        raise DataError(f"{path} has no usable row." + (f" The first of {len(bad)} bad rows: {bad[0]}" if bad else ""))
    return items, tuple(bad)


def _solutions(problem_id: str, texts: Sequence[str], steps: str) -> tuple[Solution, ...]:
    return tuple(
        Solution(f"{problem_id}#{i}", problem_id, i, x, split(x, steps), _finish(x)) for i, x in enumerate(texts)
    )


def _finish(text: str) -> Finish:
    """A text that ends inside a thought ran out of tokens."""
    return Finish.STOP if answer_of(text) is not None else Finish.LENGTH


def _items(problems: Sequence[Problem], solutions: Iterable[Solution]) -> list[Item]:
    by_problem = groupby(work_units.pair(problems, solutions), key=itemgetter(0))
    return [(problem.id, problem.question, tuple(s for _, s in pairs)) for problem, pairs in by_problem]


def ask(verifier: Verifier, asked: Sequence[tuple[str, Sequence[Solution]]]) -> list[Verification]:
    """Verifies all solutions of (question, solutions) pairs and returns the verifications in the same order. It calls
    `verify_many` once where the verifier has it, else `verify` for each question. Raises DataError when the
    verifications do not match the solutions. Scores are passed on as they are: a reward may have any scale."""
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


def _asked(verifier: Verifier, asked: Sequence[tuple[str, Sequence[Solution]]]) -> list[Verification]:
    """As `ask`. Raises DataError for a score outside [0, 1]: votes are weighted by scores, and those of steps are
    multiplied."""
    verifications = ask(verifier, asked)
    for v in verifications:
        if v.outcome is Outcome.SCORED:
            _check_scores(v, type(verifier).__name__)
    return verifications


def _check_scores(v: Verification, verifier: str) -> None:
    places = [*(f"step {i} of {len(v.scores)}" for i in range(1, len(v.scores) + 1)), "the whole solution"]
    for place, x in zip(places, (*v.scores, v.score), strict=True):
        if not isinstance(x, int | float) or not -ROUNDING <= x <= 1 + ROUNDING:  # false for NaN too
            raise DataError(
                f"the verifier {verifier} gave the score {x!r} to {place} ({v.solution_id!r}). A score is a number "
                "from 0 to 1, since votes are weighted by scores. Map a reward or a log-odds r to 1 / (1 + exp(-r)). "
                "For a solution without a score give another outcome: unparsed, truncated or failed."
            )


def _score(unit: tuple[Item, ...], *, verifier: Verifier) -> list[Verification]:
    return _asked(verifier, [(question, solutions) for _, question, solutions in unit])


def _score_rows(unit: tuple[RowItem, ...], *, verifier: Verifier) -> list[ScoredRow]:
    verifications = iter(_asked(verifier, [(question, solutions) for _, _, question, solutions in unit]))
    return [ScoredRow(row, digest, tuple(islice(verifications, len(s)))) for row, digest, _, s in unit]


def _of_rows(records: Sequence[ScoredRow]) -> OutcomeCounts:
    return of_verifications(v for record in records for v in record.verifications)


def _weigh_row(item: RowItem) -> int:
    return len(item[3])


def _name(item: Item) -> str:
    return item[0]


def _weigh(item: Item) -> int:
    return len(item[2])


def _keys(item: Item) -> list[str]:
    return [s.id for s in item[2]]


def _cut(item: Item, size: int) -> tuple[Item, Item]:
    """`size` of the item's solutions, and the others. Equal texts stay together: some verifiers read them once."""
    problem_id, question, solutions = item
    ordered = tuple(sorted(solutions, key=lambda s: s.text))
    return (problem_id, question, ordered[:size]), (problem_id, question, ordered[size:])


def _size(verifier: Verifier, rows: int) -> work_units.BySpeed:
    # A server would idle with few solutions at a time, however long it takes for one.
    return work_units.BySpeed(rows, least=16 if getattr(verifier, "remote", False) else 1)

"""Keeps the rows or solutions of a user's file whose scores meet a condition, and says what became of the others.

    stepmark filter rows.jsonl --verifier prm/ --keep "min > 0.5" --out kept.jsonl

What a verifier could not score is neither kept nor dropped: it is set aside, in a file that can be scored again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepmark.data import rows as files
from stepmark.data.store import Records, replacing_file
from stepmark.errors import DataError
from stepmark.evaluation.conditions import Condition, facts_of
from stepmark.text.steps import split
from stepmark.types import Outcome, Place, ScoredRow, Solution, Verification

EXAMPLES = 3  # of what was dropped for one reason
WAYS = ("each", "any", "all")


@dataclass(slots=True)
class Report:
    """What became of the rows of a file and of their solutions. Rows that can't be used at all are not among them."""

    keep: str  # the condition
    rows: int = 0
    rows_kept: int = 0  # with at least one solution
    rows_empty: int = 0  # without any solution, so never kept
    solutions: int = 0
    kept: int = 0
    dropped: int = 0
    set_aside: int = 0  # without a score
    reasons: dict[str, int] = field(default_factory=dict)  # the parts of the condition that did not hold -> solutions
    unscored: dict[str, int] = field(default_factory=dict)  # why there is no score -> solutions
    cut: tuple[str, ...] = ()  # other fields that had an entry for each solution, and were cut with them
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # reason -> some dropped solutions


def filter_rows(
    path: Place,
    scores: Records[ScoredRow],
    keep: Condition,
    out: Place,
    aside: Place,
    *,
    fields: Sequence[str],
    steps: str = "line",
    whole: str = "each",
) -> Report:
    """Writes the rows of `path` that `keep` keeps to `out`, and solutions without a score to `aside`, both as JSONL,
    complete or not at all. `fields` are the names under which a row may have its solutions.

    With `whole` "each", solutions are kept one by one, and a row without one is dropped; other lists of a row that have
    an entry for each solution are cut with them. With "any" or "all", a row is kept as it is if one of its solutions,
    or every one, meets the condition; it is set aside if that depends on solutions without a score.

    Raises DataError for rows that are not those that were scored."""
    report, cut = Report(keep.text), set[str]()
    reasons, unscored = Counter[str](), Counter[str]()
    stored = {record.key: record.verifications for record in scores}
    with replacing_file(out) as kept_file, replacing_file(aside) as aside_file:
        for row in files.read(path, [files.QUESTION]):
            texts = files.texts(row, fields) if isinstance(row, files.Row) else row
            if not isinstance(row, files.Row) or not isinstance(texts, tuple):
                continue  # who scored the rows has named it
            found = stored.get(row.id) or (None,) * len(texts)
            if len(found) != len(texts):
                raise DataError(
                    f"row {row.id} of {path} has {len(texts)} solutions, and {scores.path} has {len(found)} scores for "
                    "it. Give another file of scores, or delete that one."
                )
            decisions = [_decide(keep, v, text, steps) for v, text in zip(found, texts, strict=True)]
            flags = _flags([d.kept for d in decisions], whole)
            report.rows += 1
            report.rows_empty += not texts
            report.solutions += len(texts)
            report.kept += flags.count(True)
            report.dropped += flags.count(False)
            report.set_aside += flags.count(None)
            for i, (flag, decision) in enumerate(zip(flags, decisions, strict=True)):
                about = {"id": f"{row.id}#{i}", "question": row.text["question"], "solution": texts[i]}
                if flag is None:
                    why = decision.reason if decision.kept is None else "another solution of the row has no score"
                    unscored[why] += 1
                    _write(aside_file, about | {"reason": why})
                elif flag is False:
                    why = decision.reason if decision.kept is False else "other solutions of the row"
                    reasons[why] += 1
                    if len(shown := report.examples.setdefault(why, [])) < EXAMPLES:
                        shown.append({"row": row.id, "solution": i, "text": texts[i][:200], **decision.facts})
            if True in flags:
                report.rows_kept += 1
                _write(kept_file, _cut(row.values, fields, flags, cut) if whole == "each" else dict(row.values))
    report.reasons, report.unscored = dict(reasons.most_common()), dict(unscored.most_common())
    report.cut = tuple(sorted(cut))
    return report


@dataclass(frozen=True, slots=True)
class _Decision:
    kept: bool | None  # None: there is no score
    reason: str
    facts: Mapping[str, float]


def _decide(keep: Condition, verification: Verification | None, text: str, steps: str) -> _Decision:
    if verification is None:
        return _Decision(None, "not scored: its row failed", {})
    if verification.outcome is not Outcome.SCORED:
        return _Decision(None, f"{verification.outcome}: {verification.reason or 'no reason given'}", {})
    facts = facts_of(verification, Solution("", "", 0, text, split(text, steps)))
    failed = keep.failed(facts)
    return _Decision(not failed, failed, {k: round(v, 6) for k, v in facts.items()})


def _flags(kept: Sequence[bool | None], whole: str) -> list[bool | None]:
    """For each solution of a row: kept, dropped (False) or set aside (None)."""
    if whole == "each":
        return list(kept)
    decisive = whole == "any"  # a single True keeps the row, or a single False drops it
    if decisive in kept:
        return [decisive] * len(kept)
    return [None if None in kept else not decisive] * len(kept)


def _cut(values: Mapping[str, object], fields: Sequence[str], flags: Sequence[bool | None], cut: set[str]) -> Any:
    if False not in flags and None not in flags:
        return dict(values)
    new = {}
    for name, value in values.items():
        if isinstance(value, list) and len(value) == len(flags):
            value = [x for x, flag in zip(value, flags, strict=True) if flag]
            if name not in fields:
                cut.add(name)
        new[name] = value
    return new


def _write(file: Any, value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def paths(out: Path) -> tuple[Path, Path, Path]:
    """Beside `out`: the file of the scores, that of the solutions without a score, and the report."""
    return tuple(out.with_name(f"{out.stem}.{end}") for end in ("scores.jsonl", "unscored.jsonl", "report.json"))  # type: ignore[return-value]


def lines(report: Report) -> Iterable[str]:
    """The reasons with their counts, for a person."""
    for what, counts in (("dropped", report.reasons), ("set aside", report.unscored)):
        yield from (f"{what}: {count} because {reason}" for reason, count in list(counts.items())[:10])
    if report.cut:
        yield f"note: cut together with the solutions: {', '.join(report.cut)}"

"""Stage: step labels -> a file in another trainer's format, such as TRL's step-wise supervision.

`stepmark convert` does the same for files that have their problems with them (stages/convert.py).

stepmark export --task arithmetic --split train --labels labels.jsonl --format stepwise --out rows.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepmark.data.encode import write_rows
from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.protocols import Writer
from stepmark.types import GradedSolution, Imported, LabelledSolution, Place, Problem

Estimate = Literal["hard", "soft"]


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of what was written."""

    rows: int
    steps: int
    left_out: int  # solutions with an unlabelled step: the formats require a label for every step


def export(
    labels: Iterable[LabelledSolution],
    problems: Sequence[Problem],
    out: Place,
    *,
    format: str = "stepwise",
    estimate: Estimate = "hard",
) -> Exported:
    """Writes labelled solutions in the given format. The file is replaced only when all of it could be written.
    Memory holds one solution at a time.

    Raises DataError for a solution whose problem is not in `problems`, and ConfigError for a format that can be read
    but not written."""
    options = {"estimate": estimate} if "estimate" in registry.options("format", format) else {}
    writer = registry.load("format", format, **options)
    if not isinstance(writer, Writer):
        raise ConfigError(f"the format {format} can be read, but not written. Choose a format that has `encode`.")
    by_id = {p.id: p for p in problems}
    steps = left_out = 0

    def rows() -> Iterator[Mapping[str, object]]:
        nonlocal steps, left_out
        for labelled in labels:
            s = labelled.solution
            if s.problem_id not in by_id:
                raise DataError(
                    f"labelled solution {labelled.key!r} belongs to none of the {len(by_id)} problems given. Load the "
                    "task with the split and the options that the solutions were sampled with."
                )
            if not labelled.labels or not all(x.known for x in labelled.labels):
                left_out += 1
                continue
            graded = (GradedSolution(s.id, s.problem_id, labelled.grade),)
            for row in writer.encode(Imported(by_id[s.problem_id], (s,), graded, labels=(labelled,)), Counter()):
                steps += len(labelled.labels)
                yield row

    return Exported(write_rows(out, rows()), steps, left_out)

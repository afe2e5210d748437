"""Stage: step labels -> a file in another trainer's format, such as TRL's step-wise supervision.

stepmark export --task arithmetic --split train --labels labels.jsonl --format stepwise --out rows.jsonl
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.protocols import Writer
from stepmark.types import LabelledSolution, Place, Problem

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
    writer = registry.load("format", format)
    if not isinstance(writer, Writer):
        raise ConfigError(f"the format {format} can be read, but not written. Choose a format that has `write`.")
    by_id = {p.id: p for p in problems}
    rows = steps = left_out = 0

    def fully_labelled() -> Iterator[tuple[Problem, LabelledSolution]]:
        nonlocal rows, steps, left_out
        for labelled in labels:
            if labelled.solution.problem_id not in by_id:
                raise DataError(
                    f"labelled solution {labelled.key!r} belongs to none of the {len(by_id)} problems given. Load the "
                    "task with the split and the options that the solutions were sampled with."
                )
            if not labelled.labels or not all(x.known for x in labelled.labels):
                left_out += 1
                continue
            rows, steps = rows + 1, steps + len(labelled.labels)
            yield by_id[labelled.solution.problem_id], labelled

    writer.write(fully_labelled(), out, estimate)
    return Exported(rows, steps, left_out)

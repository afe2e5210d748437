"""Stage: step labels -> a file that other programs train on.

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
    """What was written."""

    rows: int
    steps: int
    left_out: int  # solutions with a step that has no label: such a row would have to make one up


def export(
    labels: Iterable[LabelledSolution],
    problems: Sequence[Problem],
    out: Place,
    *,
    format: str = "stepwise",
    estimate: Estimate = "hard",
) -> Exported:
    """Writes labelled solutions as a format has them, whole or not at all, one at a time in memory.

    Raises DataError for a solution of no known problem, ConfigError for a format that can't be written."""
    writer = registry.load("format", format)
    if not isinstance(writer, Writer):
        raise ConfigError(f"the format {format} can be read, but not written.")
    by_id = {p.id: p for p in problems}
    rows = steps = left_out = 0

    def whole() -> Iterator[tuple[Problem, LabelledSolution]]:
        nonlocal rows, steps, left_out
        for found in labels:
            if found.solution.problem_id not in by_id:
                raise DataError(
                    f"labelled solution {found.key!r} is of none of the {len(by_id)} problems given: load the task, "
                    "split and options that the solutions were made with."
                )
            if not found.labels or not all(x.known for x in found.labels):
                left_out += 1
                continue
            rows, steps = rows + 1, steps + len(found.labels)
            yield by_id[found.solution.problem_id], found

    writer.write(whole(), out, estimate)
    return Exported(rows, steps, left_out)

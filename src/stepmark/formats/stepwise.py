"""Format `stepwise`: one object a line with `prompt`, `completions` and `labels`, as TRL's step-wise data sets have it.

`completions` are the steps, without the white space between them; `labels` has a value for each: true or false, or,
for soft estimates, a share from 0 to 1.

    stepmark export --labels labels.jsonl --format stepwise --out rows.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stepmark.data.store import replacing_file
from stepmark.types import LabelledSolution, Place, Problem


@dataclass(frozen=True)
class Stepwise:
    """Writes the format."""

    def write(
        self, rows: Iterable[tuple[Problem, LabelledSolution]], path: Place, estimate: Literal["hard", "soft"]
    ) -> None:
        """One line for each solution, every step of which has a label."""
        with replacing_file(Path(path)) as file:
            for problem, found in rows:
                labels = [x.soft if estimate == "soft" else bool(x.hard) for x in found.labels]
                row = {"prompt": problem.question, "completions": list(found.solution.steps), "labels": labels}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

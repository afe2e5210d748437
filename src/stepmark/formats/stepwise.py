"""Format `stepwise`: JSON lines with `prompt`, `completions` and `labels`, the format of TRL's step-wise data sets.

`completions` are the steps, without the white space between them. `labels` has one value per step: true or false for
hard estimates, a share from 0 to 1 for soft ones.

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
        """Writes one line per solution; every step has a label."""
        with replacing_file(Path(path)) as file:
            for problem, labelled in rows:
                labels = [x.soft if estimate == "soft" else bool(x.hard) for x in labelled.labels]
                row = {"prompt": problem.question, "completions": list(labelled.solution.steps), "labels": labels}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

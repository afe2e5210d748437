"""MATH500: 500 problems of MATH (Hendrycks et al., arXiv 2103.03874), a common benchmark for verifiers.

Answers are LaTeX, so the grader is symbolic. There is only a test split, because the data is for evaluation.

    stepmark sample --task math500 --task-option path=data/math500 --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stepmark.data.rows import ANSWER, Field, Row, problems, read
from stepmark.errors import ConfigError
from stepmark.types import Problem, ProblemSet


@dataclass(frozen=True)
class Math500:
    """The task. A row has the fields `problem`, `solution`, `answer` and `unique_id`."""

    path: str = "HuggingFaceH4/MATH-500"  # a file, a directory with test.jsonl or test.jsonl.gz, or a hub id
    grader: str = field(default="symbolic", init=False)
    steps: str = field(default="sentence", init=False)

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems. Raises ConfigError for a split other than test, and DataError for a file or data
        set that does not exist."""
        if split != "test":
            raise ConfigError(f"task math500 has no split {split!r}. It has: test.")

        def make(row: Row) -> Problem:
            reference = row.text["solution"].strip()
            return Problem(
                row.id, row.text["problem"].strip(), row.text["answer"].strip(), "math500", reference, reference
            )

        fields = (Field("problem"), Field("solution", required=False), ANSWER)
        return problems(read(self.path, fields, split="test", id_field="unique_id"), make, limit)

"""GSM8K (Cobbe et al., arXiv 2110.14168): 7,473 + 1,319 grade-school word problems with worked solutions.

Read from a directory with train.jsonl and test.jsonl (or .jsonl.gz), from one such file, or from the hub. The reference
has the worked steps, one per line, without the calculator notes `<<48/2=24>>`, and ends with "The answer is N.", so
that steps and answers have the same form as those of `arithmetic`.

    stepmark sample --task gsm8k --task-option path=data/gsm8k --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from stepmark.data.rows import Row, problems, read
from stepmark.errors import ConfigError, DataError
from stepmark.text.hashing import hash_fraction
from stepmark.types import Problem, ProblemSet, Quarantined

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class GSM8K:
    """The task. A row has the fields `question` and `answer`, which ends with a line "#### N"."""

    path: str = "openai/gsm8k"  # a directory, a file named after its split (train.jsonl.gz), or a hub id of a data set
    config: str = "main"  # the data set's configuration on the hub
    strip_notes: bool = True  # whether to remove `<<...>>` from references
    dev_share: float = 0.0  # share of train's questions that form the split dev instead, chosen by a hash of the text
    grader: str = field(default="numeric", init=False)
    steps: str = field(default="line", init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.dev_share < 1:
            raise ConfigError(f"task gsm8k: dev_share must be from 0 to below 1, got {self.dev_share}.")

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, dev or test. Raises ConfigError for another split, and DataError for a
        file or data set that does not exist."""
        if split not in SPLITS:
            raise ConfigError(f"task gsm8k has no split {split!r}. It has: {', '.join(SPLITS)}.")
        if split == "dev" and not self.dev_share:
            raise ConfigError("task gsm8k has a split 'dev' only if dev_share is set, e.g. dev_share=0.1.")
        file_split = "test" if split == "test" else "train"
        if Path(self.path).is_file() and not Path(self.path).name.startswith(file_split):
            # Using one file for every split would test on the training data.
            raise DataError(
                f"{self.path} doesn't say by its name that it is the split {file_split!r}. "
                f"Give a directory with train.jsonl and test.jsonl, or a file whose name begins with {file_split!r}. "
                "For data of your own, use the task jsonl."
            )

        def make(row: Row) -> Problem | Quarantined | None:
            question = row.text["question"].strip()
            if file_split == "train" and (hash_fraction(question) < self.dev_share) != (split == "dev"):
                return None
            steps, marker, answer = row.text["answer"].rpartition("####")
            answer = answer.strip().replace(",", "")
            if not marker or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
                return Quarantined(row.file, row.line, "field 'answer': it must end in a line '#### N' with a number N")
            if self.strip_notes:
                steps = re.sub(r"<<[^<>]*>>", "", steps)
            reference = "\n".join([*filter(None, map(str.strip, steps.splitlines())), f"The answer is {answer}."])
            return Problem(f"{file_split}-{row.id}", question, answer, "gsm8k", reference, reference)

        return problems(read(self.path, split=file_split, config=self.config), make, limit)

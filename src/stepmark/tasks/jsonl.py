"""Your own questions and answers, from a JSONL file, plain or gzip, with one object per line.

    {"question": "What is 2 + 2?", "answer": 4}
    {"id": "b7", "question": "Half of 10?", "answer": "5", "solution": "10 / 2 = 5.\\nThe answer is 5."}

The splits train and test come from two files, from a directory with train.jsonl and test.jsonl, or from a hub data set.
A single file is divided by a hash of the question's text, so adding rows moves no question to another split. A row that
can't be used is left out, and reported with its file, line and reason.

    stepmark sample --task jsonl --task-option path=mine.jsonl --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from stepmark.data.rows import ANSWER, QUESTION, Field, Row, problems, read
from stepmark.errors import ConfigError
from stepmark.text.hashing import hash_fraction
from stepmark.text.steps import SPLITTERS
from stepmark.types import Problem, ProblemSet

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Jsonl:
    """The task. Its constructor raises ConfigError with all settings that are not allowed."""

    path: str  # a file, a directory with a file per split, or a hub id of a data set
    test_path: str = ""  # file of the split test; "" means that test comes from `path`
    test_share: float = 0.2  # share of the questions in test, if `path` is one file and there is no `test_path`
    dev_share: float = 0.0  # share of the questions in dev, taken from train
    question: str = "question"  # name of the field with the question
    answer: str = "answer"  # ... with the reference answer: text or a number
    solution: str = "solution"  # ... with a worked solution; optional in a row
    id: str = "id"  # ... with the row's id, unique in the file; optional in a row, the default is the line number
    config: str = ""  # a hub data set's configuration; "" is its default
    question_limit: int = QUESTION.limit  # largest number of characters; also for the worked solution
    answer_limit: int = ANSWER.limit  # largest number of characters
    grader: str = "numeric"  # exact, numeric, symbolic, or a path to a grader of your own
    steps: str = "line"  # the step splitter for solutions: line, paragraph, sentence, numbered

    def __post_init__(self) -> None:
        names = (self.question, self.answer, self.solution, self.id)
        checks = [
            (self.path, "path is empty; give a JSONL file."),
            (
                0 <= self.test_share < 1 and 0 <= self.dev_share < 1 and self.test_share + self.dev_share < 1,
                f"test_share={self.test_share}, dev_share={self.dev_share}: neither below 0, their sum below 1.",
            ),
            (len(set(names)) == len(names), f"question, answer, solution and id name the same field: {names}."),
            (self.steps in SPLITTERS, f"steps={self.steps!r}: allowed are {', '.join(sorted(SPLITTERS))}."),
            (self.question_limit > 0 and self.answer_limit > 0, "question_limit and answer_limit must be at least 1."),
        ]
        if faults := [f"task jsonl: {message}" for good, message in checks if not good]:
            raise ConfigError(faults)

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, dev or test. Raises ConfigError for another split, and DataError for a
        file that does not exist."""
        if split not in SPLITS:
            raise ConfigError(f"task jsonl has no split {split!r}. It has: {', '.join(SPLITS)}.")

        is_one_file = not self.test_path and Path(self.path).is_file()  # one file has all splits
        if is_one_file and not {"train": 1.0, "dev": self.dev_share, "test": self.test_share}[split]:
            raise ConfigError(f"task jsonl: {split}_share is 0, so the split {split!r} is empty. Set it above 0.")
        if split == "dev" and not self.dev_share:
            raise ConfigError("task jsonl has a split 'dev' only if dev_share is set, e.g. dev_share=0.1.")
        test_share = self.test_share if is_one_file else 0.0

        def split_of(question: str) -> str:
            if split == "test" and not is_one_file:
                return "test"
            fraction = hash_fraction(question)
            return "test" if fraction < test_share else "dev" if fraction < test_share + self.dev_share else "train"

        def make(row: Row) -> Problem | None:
            question = row.text[self.question].strip()
            if split_of(question) != split:
                return None
            solution = row.text[self.solution].strip()
            return Problem(row.id, question, row.text[self.answer].strip(), "jsonl", solution, solution)

        path, file_split = (self.test_path or self.path, "test") if split == "test" else (self.path, "train")
        fields = (
            replace(QUESTION, name=self.question, limit=self.question_limit),
            replace(ANSWER, name=self.answer, limit=self.answer_limit),
            Field(self.solution, limit=self.question_limit, required=False),
        )
        return problems(read(path, fields, split=file_split, id_field=self.id, config=self.config or None), make, limit)

"""Your own questions and answers: a JSONL file, plain or gzip, one object per line.

    {"question": "What is 2 + 2?", "answer": 4}
    {"id": "b7", "question": "Half of 10?", "answer": "5", "solution": "10 / 2 = 5.\\nThe answer is 5."}

Two files give the splits train and test, as do a directory with train.jsonl and test.jsonl, and a hub data set. One
file is divided by its questions' text, so that adding rows moves no question from one split to another. A row that
can't be used is left out and named: file, line, reason.

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
    """The task. Raises ConfigError, at construction, with every setting that can't be."""

    path: str  # file, directory with a file per split, or hub id of a data set
    test_path: str = ""  # file of the split test; "" takes it out of `path`
    test_share: float = (
        0.2  # where `path` is one file and there is no `test_path`: share of the questions that make up test
    )
    dev_share: float = 0.0  # share of the questions that make up dev, out of train
    question: str = "question"  # name of the field with the question
    answer: str = "answer"  # ... the reference answer: text or a number
    solution: str = "solution"  # ... a worked solution, where there is one
    id: str = "id"  # ... the row's id, unique in the file, where there is one; otherwise the line number serves
    config: str = ""  # a hub data set's configuration; "" is its default
    question_limit: int = QUESTION.limit  # characters; also for the worked solution
    answer_limit: int = ANSWER.limit  # characters
    grader: str = "numeric"  # exact, numeric, symbolic, or a path to a grader of your own
    steps: str = "line"  # how solutions divide into steps: line, paragraph, sentence, numbered

    def __post_init__(self) -> None:
        names = (self.question, self.answer, self.solution, self.id)
        checks = [
            (self.path, "path is empty; give a JSONL file."),
            (
                0 <= self.test_share < 1 and 0 <= self.dev_share < 1 and self.test_share + self.dev_share < 1,
                f"test_share={self.test_share}, dev_share={self.dev_share}: both from 0, below 1 together.",
            ),
            (len(set(names)) == len(names), f"question, answer, solution and id name the same field: {names}."),
            (self.steps in SPLITTERS, f"steps={self.steps!r}: allowed are {', '.join(sorted(SPLITTERS))}."),
            (self.question_limit > 0 and self.answer_limit > 0, "question_limit and answer_limit: at least 1."),
        ]
        if faults := [f"task jsonl: {message}" for good, message in checks if not good]:
            raise ConfigError(faults)

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, dev or test. Raises ConfigError for another split, DataError when there
        is no such file."""
        if split not in SPLITS:
            raise ConfigError(f"task jsonl has no split {split!r}. It has: {', '.join(SPLITS)}.")

        divided = not self.test_path and Path(self.path).is_file()  # one file is all there is
        if divided and not {"train": 1.0, "dev": self.dev_share, "test": self.test_share}[split]:
            raise ConfigError(f"task jsonl: {split}_share is 0, which leaves nothing for the split {split!r}.")
        if split == "dev" and not self.dev_share:
            raise ConfigError("task jsonl has a split 'dev' only where dev_share is set, e.g. dev_share=0.1.")
        test_share = self.test_share if divided else 0.0

        def split_of(question: str) -> str:
            if split == "test" and not divided:
                return "test"
            x = hash_fraction(question)
            return "test" if x < test_share else "dev" if x < test_share + self.dev_share else "train"

        def make(row: Row) -> Problem | None:
            question = row.text[self.question].strip()
            if split_of(question) != split:
                return None
            solution = row.text[self.solution].strip()
            return Problem(row.id, question, row.text[self.answer].strip(), "jsonl", solution, solution)

        source, stored = (self.test_path or self.path, "test") if split == "test" else (self.path, "train")
        fields = (
            replace(QUESTION, name=self.question, limit=self.question_limit),
            replace(ANSWER, name=self.answer, limit=self.answer_limit),
            Field(self.solution, limit=self.question_limit, required=False),
        )
        return problems(read(source, fields, split=stored, id_field=self.id, config=self.config or None), make, limit)

"""Your own questions and answers, from a file: JSONL with one object per line, JSON, CSV or Parquet.

    {"question": "What is 2 + 2?", "answer": 4}
    {"id": "b7", "question": "Half of 10?", "answer": "5", "solution": "10 / 2 = 5.\\nThe answer is 5."}

The ending names the format: .jsonl, .json (an array, or lines), .csv, .tsv, each also with .gz, and .parquet. A CSV
names its columns in its first row. Parquet needs pyarrow. A data set that the library datasets saved on disk works too.

The splits train and test come from two files, from a directory with train.jsonl and test.jsonl, or from a hub data set.
A single file is divided by a hash of the question's text, so adding rows moves no question to another split; the split
`all` is the whole file. A row that can't be used is left out, and reported with its file, line and reason.

    stepmark sample --task jsonl --task-option path=mine.jsonl --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from stepmark.data.rows import ANSWER, QUESTION, Field, Row, is_whole, problems, read
from stepmark.errors import ConfigError
from stepmark.text.hashing import hash_fraction
from stepmark.text.steps import splitter
from stepmark.types import Problem, ProblemSet

SPLITS = ("train", "dev", "test")
ALL = "all"  # the split that is a whole file
LOOKED_AT = 100  # rows of a file without a usable one whose fields are listed
# Other names of the two fields that a row must have, in lower case, the likeliest first.
OTHER_NAMES = {
    "question": ("prompt", "problem", "query", "input", "instruction", "text"),
    "answer": ("final_answer", "target", "label", "gold", "ground_truth", "expected", "result", "output"),
}


@dataclass(frozen=True)
class Jsonl:
    """The task. Its constructor raises ConfigError with all settings that are not allowed."""

    path: str  # a file, a directory with a file per split, a data set saved on disk, or the hub id of one
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
    steps: str = "line"  # how solutions divide into steps: line, paragraph, sentence, numbered, or re:EXPRESSION

    def __post_init__(self) -> None:
        names = (self.question, self.answer, self.solution, self.id)
        checks = [
            (self.path, "path is empty; give a JSONL file."),
            (
                # With a file of its own for the test, test_share is not used.
                0 <= self.test_share < 1 and 0 <= self.dev_share < 1 - self.test_share * (not self.test_path),
                f"test_share={self.test_share}, dev_share={self.dev_share}: neither below 0, their sum below 1.",
            ),
            (len(set(names)) == len(names), f"question, answer, solution and id name the same field: {names}."),
            (self.question_limit > 0 and self.answer_limit > 0, "question_limit and answer_limit must be at least 1."),
        ]
        faults = [message for good, message in checks if not good]
        try:
            splitter(self.steps)
        except ConfigError as e:
            faults += e.faults
        if faults:
            raise ConfigError([f"task jsonl: {fault}" for fault in faults])

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, dev or test, or of all in a single file. Raises ConfigError for another
        split, and DataError for a file that does not exist."""
        is_one_file = not self.test_path and is_whole(self.path)  # one file has all splits
        if split not in (*SPLITS, ALL):
            raise ConfigError(
                f"task jsonl has no split {split!r}. A single file also has {ALL!r}. It has: {', '.join(SPLITS)}."
            )
        if split == ALL and not is_one_file:
            raise ConfigError(
                f"task jsonl has the split {ALL!r} only for a single file without test_path, and {self.path} is none. "
                "Choose train or test."
            )
        shares = {"train": 1.0, "dev": self.dev_share, "test": self.test_share, ALL: 1.0}
        if is_one_file and not shares[split]:
            raise ConfigError(f"task jsonl: {split}_share is 0, so the split {split!r} is empty. Set it above 0.")
        if split == "dev" and not self.dev_share:
            raise ConfigError("task jsonl has a split 'dev' only if dev_share is set, e.g. dev_share=0.1.")
        test_share = self.test_share if is_one_file else 0.0
        counts: Counter[str] = Counter()  # usable rows of each split

        def split_of(question: str) -> str:
            if split == "test" and not is_one_file:
                return "test"
            fraction = hash_fraction(question)
            return "test" if fraction < test_share else "dev" if fraction < test_share + self.dev_share else "train"

        def make(row: Row) -> Problem | None:
            question = row.text[self.question].strip()
            counts[part := split_of(question)] += 1
            if split not in (part, ALL):
                return None
            solution = row.text[self.solution].strip()
            return Problem(row.id, question, row.text[self.answer].strip(), "jsonl", solution, solution)

        path, file_split = (self.test_path or self.path, "test") if split == "test" else (self.path, "train")
        fields = (
            replace(QUESTION, name=self.question, limit=self.question_limit),
            replace(ANSWER, name=self.answer, limit=self.answer_limit),
            Field(self.solution, limit=self.question_limit, required=False),
        )
        config = self.config or None
        loaded = problems(read(path, fields, split=file_split, id_field=self.id, config=config), make, limit)
        if not counts and loaded.quarantined:
            # No row was usable. They are read again without the checks, for the names of their fields.
            rows = read(path, (), split=file_split, id_field=self.id, config=config)
            return replace(loaded, note=self._misnamed([r for r in islice(rows, LOOKED_AT) if isinstance(r, Row)]))
        whole = limit is None or len(loaded.problems) < limit  # otherwise the file was not read to its end
        return replace(loaded, note=self._divided(split, counts)) if is_one_file and whole and split != ALL else loaded

    def _divided(self, split: str, counts: Counter[str]) -> str:
        """How the rows of one file fell into its splits."""
        total = counts.total()
        if not total:
            return ""
        if counts[split]:
            verb = "is" if counts[split] == 1 else "are"
            return f"{counts[split]} of {total} rows {verb} the {split} split of {self.path}."
        parts = ", ".join(f"{name} {counts[name]}" for name in SPLITS if name != "dev" or self.dev_share)
        advice = {
            "train": f"lower test_share (it is {self.test_share})",
            "dev": f"raise dev_share (it is {self.dev_share})",
            "test": f"raise test_share (it is {self.test_share}), give test_path, a file for the test",
        }[split]
        many = "Its only row falls" if total == 1 else f"Its {total} rows fall"
        return (
            f"A hash of the question divides {self.path}. {many} into: {parts}. Give more rows, {advice}, or take "
            f"the whole file, the split {ALL!r}."
        )

    def _misnamed(self, rows: Sequence[Row]) -> str:
        """The fields that rows have, those that they need, and the options that name them."""
        found = list(dict.fromkeys(str(name) for row in rows for name in row.values))
        needed = {"question": self.question, "answer": self.answer}
        missing = {option: name for option, name in needed.items() if name not in found}
        if not missing:
            return ""
        free = [name for name in found if name not in (*needed.values(), self.solution, self.id)]
        settings = []
        for option in missing:
            likely = _likely(option, free)
            free = [name for name in free if name != likely]
            settings.append((option, likely or "FIELD"))
        options = ", ".join(f"{option}: {name}" for option, name in settings)
        flags = " ".join(f"--task-option {option}={name}" for option, name in settings)
        return (
            f"The fields found are {', '.join(found[:20]) or 'none'}; needed are {' and '.join(needed.values())}. "
            "Say which is which with the task's options: in a recipe "
            f"`task: {{name: jsonl, options: {{..., {options}}}}}`, on the command line `{flags}`."
        )


def _likely(option: str, names: Sequence[str]) -> str:
    """The field that an option most likely means; "" where none looks like it."""
    lower = {name.lower(): name for name in reversed(names)}
    known = next((lower[name] for name in (option, *OTHER_NAMES[option]) if name in lower), "")
    parts = next((name for name in names for word in (option, *OTHER_NAMES[option]) if word in name.lower()), "")
    near = difflib.get_close_matches(option, lower, n=1)
    return known or parts or (lower[near[0]] if near else "")

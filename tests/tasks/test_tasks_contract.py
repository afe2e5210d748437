"""The contract of every task in the tasks folder. A new file there is tested automatically; a task that needs data has
a sample below."""

from __future__ import annotations

import gzip
import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stepmark.errors import ConfigError
from stepmark.plugins import registry
from stepmark.protocols import StepOracle, Task
from stepmark.text import steps
from stepmark.types import ProblemSet, Solution

GSM8K = [
    {"question": f"{i} and {i}?", "answer": f"It is {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}"}
    for i in range(40)
]
MATH500 = [
    {
        "problem": f"Halve ${i}$.",
        "solution": f"It is $\\boxed{{\\frac{{{i}}}{{2}}}}$.",
        "answer": f"\\frac{{{i}}}{{2}}",
        "unique_id": f"test/{i}",
    }
    for i in range(5)
]
MINE = [{"question": f"{i} plus 1?", "answer": i + 1, "solution": f"The answer is {i + 1}."} for i in range(60)]
# task -> its rows by file, and its options if they differ from the defaults
SAMPLES: dict[str, tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]] = {
    "gsm8k": ({"train": GSM8K[:30], "test": GSM8K[30:]}, {"dev_share": 0.3}),
    "math500": ({"test": MATH500}, {}),
    "jsonl": ({"mine": MINE}, {"dev_share": 0.2}),
}


@pytest.fixture(params=registry.names("task"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def task(name: str, tmp_path: Path) -> Any:
    files, options = SAMPLES.get(name, ({}, {}))
    for file, rows in files.items():
        (tmp_path / f"{file}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    if files:
        options = {"path": str(tmp_path / "mine.jsonl.gz" if "mine" in files else tmp_path), **options}
    return registry.load("task", name, **options)


def splits(task: Any) -> list[str]:
    """The names of a task's splits, from the error for an unknown split."""
    with pytest.raises(ConfigError) as e:
        task.load("no such split")
    return str(e.value).rstrip(".").split("It has: ")[1].split(", ")


def answered(text: str) -> Solution:
    return Solution("s#0", "s", 0, text, steps.split(text, "line"))


def test_it_is_a_task_with_a_grader_and_a_way_to_split_that_exist(name: str, task: Any) -> None:
    assert isinstance(task, Task)
    assert task.steps in steps.SPLITTERS
    assert task.grader in registry.names("grader")


def test_making_one_reads_nothing(name: str) -> None:
    options = registry.options("task", name)
    made = registry.load("task", name, **({"path": "/no/such/place"} if "path" in options else {}))
    assert repr(made)


def test_it_is_a_value_it_can_be_compared_hashed_sent_and_not_changed(task: Any) -> None:
    before = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert before == task and hash(before) == hash(task)
    with pytest.raises(AttributeError):
        task.grader = "another"
    split = splits(task)[0]
    loaded = task.load(split, limit=3)
    assert pickle.loads(pickle.dumps(task)).load(split, limit=3) == loaded  # noqa: S301


def test_each_split_has_whole_problems_the_same_at_every_call(name: str, task: Any) -> None:
    for split in splits(task):
        loaded = task.load(split, limit=50)
        assert isinstance(loaded, ProblemSet) and loaded.problems and not loaded.quarantined
        assert task.load(split, limit=50) == loaded
        assert task.load(split, limit=2).problems == loaded.problems[:2]
        assert task.load(split, limit=0).problems == ()
        assert len({p.id for p in loaded.problems}) == len(loaded.problems)
        for p in loaded.problems:
            assert p.task == name
            assert p.id and p.question.strip() and p.answer.strip()
            assert "\0" not in p.question + p.answer + p.reference


def test_splits_share_no_question(task: Any) -> None:
    questions = [{p.question for p in task.load(split, limit=300).problems} for split in splits(task)]
    assert sum(map(len, questions)) == len(set().union(*questions))


def test_references_are_right_for_the_tasks_own_grader(task: Any) -> None:
    grader = registry.load("grader", task.grader)
    for split in splits(task):
        for p in task.load(split, limit=5).problems:
            for text in filter(None, (p.reference, f"The answer is {p.answer}.")):
                assert grader.grade(text, p).correct, (p, grader.grade(text, p))


def test_the_step_oracle_where_there_is_one(task: Any) -> None:
    if not isinstance(task, StepOracle):
        pytest.skip("this task has no step oracle")
    for split in splits(task):
        problems = task.load(split, limit=20).problems
        for p, other in pairwise(problems):
            assert task.judge_steps(p, answered("")) == ()
            right = task.judge_steps(p, answered(p.reference))
            assert len(right) == len(answered(p.reference).spans) > 1 and all(right)
            lines = p.reference.split("\n")
            for i in range(len(lines)):
                spoiled = task.judge_steps(p, answered("\n".join([*lines[:i], "Something else.", *lines[i:]])))
                assert spoiled == tuple(j < i for j in range(len(lines) + 1))
            if other.answer != p.answer:
                assert not all(task.judge_steps(p, answered(other.reference)))

"""gsm8k, math500 and jsonl: reading problems from the rows of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stepmark.errors import ConfigError, DataError
from stepmark.tasks.gsm8k import GSM8K
from stepmark.tasks.jsonl import Jsonl
from stepmark.tasks.math500 import Math500
from stepmark.types import Problem

CLIPS = {
    "question": " How many clips? ",
    "answer": "May: 48/2 = <<48/2=24>>24.\n\nAll: <<48+24=1072>>1072 clips.\n#### 1,072",
}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def test_gsm8k_reads_answer_and_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", CLIPS)
    (p,) = GSM8K(path).load("train").problems
    text = "May: 48/2 = 24.\nAll: 1072 clips.\nThe answer is 1072."
    assert p == Problem("train-1", "How many clips?", "1072", "gsm8k", text, text)
    (p,) = GSM8K(path, strip_notes=False).load("train").problems
    assert p.reference.startswith("May: 48/2 = <<48/2=24>>24.\n")


@pytest.mark.parametrize(("answer", "read"), [("#### -3", "-3"), ("a\n#### 2.50", "2.50"), ("#### 1 #### 2", "2")])
def test_gsm8k_takes_the_last_marked_number(tmp_path: Path, answer: str, read: str) -> None:
    (p,) = GSM8K(write(tmp_path / "test.jsonl", {"question": "q", "answer": answer})).load("test").problems
    assert p.answer == read


@pytest.mark.parametrize("answer", ["no mark 5", "####", "#### five", "#### 5 6", "#### 5 apples"])
def test_gsm8k_sets_an_unmarked_answer_aside(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "train.jsonl", CLIPS, {"question": "q", "answer": answer}, CLIPS)
    loaded = GSM8K(path).load("train")
    assert [p.id for p in loaded.problems] == ["train-1", "train-3"]
    (bad,) = loaded.quarantined
    assert (bad.file, bad.line) == (path, 2) and "#### N" in bad.reason


def test_gsm8k_never_serves_one_file_as_two_splits(tmp_path: Path) -> None:
    train, plain = write(tmp_path / "train.jsonl", CLIPS), write(tmp_path / "mine.jsonl", CLIPS)
    for path, split in ((train, "test"), (plain, "train"), (plain, "test")):
        with pytest.raises(DataError, match=f"doesn't say by its name that it is the split '{split}'"):
            GSM8K(path).load(split)
    with pytest.raises(ConfigError, match="dev_share"):
        GSM8K(train).load("dev")
    with pytest.raises(ConfigError, match="dev_share"):
        GSM8K(train, dev_share=1.0)


def test_gsm8k_dev_comes_out_of_train(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", *({**CLIPS, "question": f"q{i}"} for i in range(200)))
    whole = {p.id for p in GSM8K(path).load("train").problems}
    task = GSM8K(path, dev_share=0.25)
    train, dev = ({p.id for p in task.load(s).problems} for s in ("train", "dev"))
    assert train | dev == whole and not train & dev
    assert 30 <= len(dev) <= 70


def test_math500_reads_its_fields(tmp_path: Path) -> None:
    row = {
        "problem": "Half of $x$?",
        "solution": "It is $\\boxed{x/2}$.",
        "answer": "x/2",
        "unique_id": "test/algebra/1",
        "level": 1,
    }
    write(tmp_path / "test.jsonl", row, {**row, "solution": 3}, row)
    loaded = Math500(str(tmp_path)).load("test")
    assert loaded.problems == (
        Problem("test/algebra/1", "Half of $x$?", "x/2", "math500", "It is $\\boxed{x/2}$.", "It is $\\boxed{x/2}$."),
    )
    assert [(q.line, q.reason.split(":")[0]) for q in loaded.quarantined] == [
        (2, "field 'solution'"),
        (3, "duplicate id 'test/algebra/1', first on line 1"),
    ]
    with pytest.raises(ConfigError, match="It has: test"):
        Math500(str(tmp_path)).load("train")


ROWS = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(300)]


def test_jsonl_reads_what_there_is(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"question": " q ", "answer": 5.0},
        {"id": "b7", "question": "r", "answer": " x ", "solution": "Because.\nThe answer is x."},
        {"question": "s"},
        '{"question": ',
    )
    loaded = Jsonl(path, test_path="elsewhere.jsonl").load("train")
    assert loaded.problems == (
        Problem("1", "q", "5", "jsonl"),
        Problem("b7", "r", "x", "jsonl", "Because.\nThe answer is x.", "Because.\nThe answer is x."),
    )
    assert [q.line for q in loaded.quarantined] == [3, 4]


def test_jsonl_takes_other_field_names_limits_and_ways_to_judge(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl", {"q": "Why?", "a": "yes", "why": "So.", "nr": 4}, {"q": "Why not?", "a": "yes"}
    )
    options = {"question": "q", "answer": "a", "solution": "why", "id": "nr", "question_limit": 5, "test_share": 0.0}
    task = Jsonl(path, grader="exact", steps="sentence", **options)  # type: ignore[arg-type]
    loaded = task.load("train")
    assert loaded.problems == (Problem("4", "Why?", "yes", "jsonl", "So.", "So."),)
    assert "8 characters; at most 5" in loaded.quarantined[0].reason
    assert (task.grader, task.steps) == ("exact", "sentence")


def test_jsonl_divides_one_file_by_its_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *ROWS)
    task = Jsonl(path, test_share=0.25, dev_share=0.1)
    held = {s: {p.question for p in task.load(s).problems} for s in ("train", "dev", "test")}
    assert sum(map(len, held.values())) == len(set().union(*held.values())) == len(ROWS)
    assert 50 <= len(held["test"]) <= 100 and 15 <= len(held["dev"]) <= 45
    # More rows, in another order, with one said twice: every question stays in its split.
    longer_file = write(
        tmp_path / "more.jsonl", *({**r, "question": r["question"].upper()} for r in ROWS[::-1]), *ROWS, ROWS[0]
    )
    for split, questions in held.items():
        again = {p.question for p in Jsonl(longer_file, test_share=0.25, dev_share=0.1).load(split).problems}
        assert again == questions | {q.upper() for q in questions}


def test_jsonl_from_two_files_or_a_directory(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", *ROWS[:200]), write(tmp_path / "test.jsonl", *ROWS[200:])
    for task in (Jsonl(train, test_path=test), Jsonl(str(tmp_path))):
        assert len(task.load("train").problems) == 200
        assert [p.question for p in task.load("test").problems] == [r["question"] for r in ROWS[200:]]


def test_jsonl_says_what_it_can_not_do(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *ROWS[:5])
    Jsonl(path, test_path=path, dev_share=0.9)  # with a file for the test, the default of test_share is not used
    with pytest.raises(ConfigError, match=r"dev_share=0\.9"):
        Jsonl(path, dev_share=0.9)
    with pytest.raises(ConfigError, match="test_share is 0"):
        Jsonl(path, test_share=0.0).load("test")
    with pytest.raises(ConfigError, match="dev_share"):
        Jsonl(path).load("dev")
    with pytest.raises(ConfigError, match="It has: train, dev, test"):
        Jsonl(path).load("tset")
    with pytest.raises(DataError, match=r"no file or directory .*nothing\.jsonl"):
        Jsonl(str(tmp_path / "nothing.jsonl")).load("train")
    with pytest.raises(ConfigError) as e:
        Jsonl("", test_share=0.8, dev_share=0.3, question="answer", steps="lines", answer_limit=0)
    assert len(e.value.faults) == 5


def test_jsonl_says_how_it_divided_a_file_and_offers_it_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *ROWS[:6], {"question": "no answer"})
    train, test, whole = (Jsonl(path).load(split) for split in ("train", "test", "all"))
    assert len(train.problems) + len(test.problems) == len(whole.problems) == 6
    assert len(whole.quarantined) == 1 and not whole.note
    assert train.note == f"{len(train.problems)} of 6 rows are the train split of {path}."
    assert Jsonl(path).load("all", limit=2).problems == whole.problems[:2]
    assert not Jsonl(path).load("train", limit=1).note  # the rows after it were not read
    for task in (Jsonl(path, test_path=path), Jsonl(str(tmp_path))):
        with pytest.raises(ConfigError, match="'all' only for a single file"):
            task.load("all")
    write(tmp_path / "train.jsonl", *ROWS[:6])
    assert not Jsonl(str(tmp_path)).load("train").note


def test_jsonl_says_how_many_rows_fell_where_if_a_split_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *ROWS[:6])
    loaded = Jsonl(path, test_share=0.0001, dev_share=0.0001).load("test")
    assert not loaded.problems
    parts = "Its 6 rows fall into: train 6, dev 0, test 0", "raise test_share (it is 0.0001)", "test_path", "'all'"
    for part in parts:
        assert part in loaded.note
    assert "raise dev_share" in Jsonl(path, dev_share=0.0001).load("dev").note
    assert "lower test_share" in Jsonl(path, test_share=0.9999).load("train").note


@pytest.mark.parametrize(
    ("row", "options", "advice"),
    [
        (
            {"prompt": "q", "solution": "s", "final_answer": "5"},
            {},
            "--task-option question=prompt --task-option answer=final_answer",
        ),
        ({"Problem": "q", "Gold": 5}, {}, "question: Problem, answer: Gold"),
        ({"question": "q", "the_answer_of_it": 5}, {}, "`--task-option answer=the_answer_of_it`"),
        ({"questoin": "q", "answr": 5}, {}, "question: questoin, answer: answr"),
        ({"x": "q", "prompt": "q", "y": 5}, {"question": "x", "answer": "z"}, "`--task-option answer=FIELD`"),
        ({"text": "q"}, {}, "question: text, answer: FIELD"),
    ],
)
def test_jsonl_names_the_options_for_fields_with_other_names(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], advice: str
) -> None:
    task = Jsonl(write(tmp_path / "mine.jsonl", row, row), **options)
    loaded = task.load("train")
    assert not loaded.problems and len(loaded.quarantined) == 2
    assert f"The fields found are {', '.join(row)}; needed are {task.question} and {task.answer}." in loaded.note
    assert advice in loaded.note


def test_jsonl_blames_no_names_where_the_fields_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"question": "", "answer": "5"})
    assert not Jsonl(path).load("train").note


def test_jsonl_reads_other_formats_by_their_ending(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("question,answer\nWhy?,7\n")
    (tmp_path / "mine.json").write_text('[{"question": "Why?", "answer": 7}]')
    Dataset.from_list([{"question": "Why?", "answer": 7}]).save_to_disk(tmp_path / "saved")
    for name, id in (("mine.csv", "2"), ("mine.json", "1"), ("saved", "1")):
        assert Jsonl(str(tmp_path / name)).load("all").problems == (Problem(id, "Why?", "7", "jsonl"),)

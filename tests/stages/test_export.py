"""Step labels in other programs' formats."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError, DataError
from stepmark.stages.export import export
from stepmark.text.steps import split
from stepmark.types import Grade, LabelledSolution, Problem, Solution, StepLabel, Verdict

PROBLEM = Problem("p", "2 + 2 + 2?", "6", "t")


def labelled(text, labels, sample=0, problem_id="p"):
    s = Solution(f"{problem_id}#{sample}", problem_id, sample, text, split(text))
    return LabelledSolution(s, Grade(Verdict.CORRECT, ""), tuple(labels))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hard_labels_are_booleans_and_soft_ones_keep_their_value(tmp_path):
    labels = [labelled("2 + 2 = 4\n\nThe answer is 6.", [StepLabel(9, 10), StepLabel(0, 1)])]
    done = export(labels, [PROBLEM], tmp_path / "hard.jsonl")
    assert (done.rows, done.steps, done.left_out) == (1, 2, 0)
    row = {"prompt": "2 + 2 + 2?", "completions": ["2 + 2 = 4", "The answer is 6."], "labels": [True, False]}
    assert rows(tmp_path / "hard.jsonl") == [row]
    export(labels, [PROBLEM], tmp_path / "soft.jsonl", estimate="soft")
    assert rows(tmp_path / "soft.jsonl") == [row | {"labels": [0.9, 0.0]}]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=8))
def test_a_solution_with_an_unknown_step_is_left_out(tmp_path_factory, known_steps):
    labels = [
        labelled("x\n" * len(steps), [StepLabel(1, 1) if k else StepLabel(0, 0, truncated=3) for k in steps], i)
        for i, steps in enumerate(known_steps)
    ]
    out = tmp_path_factory.mktemp("export") / "rows.jsonl"
    done = export(labels, [PROBLEM], out)
    whole = [steps for steps in known_steps if all(steps)]
    assert (done.rows, done.left_out) == (len(whole), len(known_steps) - len(whole))
    assert [len(r["labels"]) for r in rows(out)] == [len(r["completions"]) for r in rows(out)] == list(map(len, whole))


def test_what_can_not_be_written_leaves_the_old_file(tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("old\n")
    labels = [labelled("a", [StepLabel(1, 1)]), labelled("b", [StepLabel(1, 1)], problem_id="other")]
    with pytest.raises(DataError, match=r"other#0.*none of the 1 problems"):
        export(labels, [PROBLEM], out)
    with pytest.raises(ConfigError, match="genrm_rationales can be read, but not written"):
        export([], [PROBLEM], out, format="genrm_rationales")
    assert out.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [out]

"""The data types: properties that are computed from their fields."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark import types
from stepmark.text import steps
from stepmark.types import Grade, LabelledSolution, Prompt, Rollout, Solution, StepLabel, Verdict


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 9))
def test_labels_are_shares_of_what_could_be_graded(correct, others, lost):
    label = StepLabel(correct, correct + others, truncated=lost, ungradable=lost)
    assert label.known
    assert label.soft == correct / (correct + others)
    assert label.hard == float(correct > 0)


def test_a_share_of_nine_in_ten_stays_one():
    assert StepLabel(9, 10).soft == 0.9


@pytest.mark.parametrize("estimate", ["hard", "soft"])
def test_no_evidence_no_label(estimate):
    label = StepLabel(0, 0, truncated=4, ungradable=4)
    assert not label.known
    with pytest.raises(ValueError, match="known"):
        getattr(label, estimate)


def test_an_ungradable_solution_is_not_correct():
    assert [Grade(v, "").correct for v in Verdict] == [v is Verdict.CORRECT for v in Verdict]


@given(st.text(max_size=60))
def test_steps_are_the_spans_without_their_separators(text):
    solution = Solution("p#0", "p", 0, text, steps.split(text))
    assert "".join(text[a:b] for a, b in solution.spans).split() == " ".join(solution.steps).split()
    assert all(s == s.strip() != "" for s in solution.steps)


def test_keys_name_records_once():
    solution = Solution("p#3", "p", 3, "x", ((0, 1),))
    assert solution.key == LabelledSolution(solution, Grade(Verdict.CORRECT, ""), (StepLabel(1, 1),)).key == "p#3"
    assert Rollout("p#3", 2, "", types.Finish.STOP, 1).key == "p#3#2"
    assert (
        types.Selection("p", "1", "p#3", "orm", 4, 1.0, 1.0).key
        != types.Selection("p", "1", "p#3", "orm", 16, 1.0, 1.0).key
    )
    assert types.Quarantined("f.jsonl", 3, "").key == "f.jsonl:3"
    assert Prompt("u", "Q\n", "a").text == "Q\na"


def test_all_are_frozen_slotted_and_picklable():
    kinds = [c for c in vars(types).values() if dataclasses.is_dataclass(c)]
    assert len(kinds) >= 15
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind
        assert "__slots__" in vars(kind), kind
    label = StepLabel(1, 2)
    assert pickle.loads(pickle.dumps(label)) == label  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        label.correct = 5

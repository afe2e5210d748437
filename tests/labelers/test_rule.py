"""The string-match rule, with references written by hand and with the step oracle of the arithmetic task."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import UnknownName
from stepmark.graders.numeric import Numeric
from stepmark.labelers.rule import Rule
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, Problem, SamplingParams, Solution, StepLabel, Unlabelled

PROBLEM = Problem("p", "2 + 2 + 2?", "6", "t")
REFERENCE = "2 + 2 = 4\n4 + 2 = 6\nThe answer is 6."
TOOLS = Tools(Numeric(), Template(), SamplingParams())


def labels(text, *references, finish=Finish.STOP, labeler=None):
    solution = Solution("p#0", "p", 0, text, split(text), finish)
    [labelled] = (labeler or Rule()).label([Unlabelled(PROBLEM, solution, references)], TOOLS)
    return labelled.labels


def test_a_step_is_right_whose_result_some_reference_has():
    step_labels = labels("2 * 2 = 4\n4 + 2 = 7\n7 - 1 = 6\nThe answer is 6.", REFERENCE)
    assert step_labels == (
        StepLabel(1, 1, source="rule"),
        StepLabel(0, 1, source="rule"),
        StepLabel(1, 1, source="rule"),
        StepLabel(1, 1, source="outcome"),
    )


def test_any_of_the_references_will_do():
    assert labels("3 * 2 = 36\nx 6", REFERENCE)[0].hard == 0
    assert labels("3 * 2 = 36\nx 6", REFERENCE, "36 it is, and 6")[0].hard == 0  # its last number is 6
    assert labels("3 * 2 = 36\nx 6", REFERENCE, "6 * 6 = 36\n6")[0].hard == 1


@pytest.mark.parametrize(
    ("step", "hard"),
    [("so $4.00", 1), ("that is 8/2", 1), ("four: 4.", 1), ("14", 0), ("-4", 0), ("0.4", 0), ("44", 0)],
)
def test_results_are_compared_as_values_never_as_parts_of_strings(step, hard):
    assert labels(step + "\nThe answer is 6.", REFERENCE)[0].hard == hard


def test_a_step_without_a_number_is_compared_as_text():
    reference = "First we  ADD them.\n2 + 2 = 4\nThe answer is 6."
    step_labels = labels("first we add\tthem.\nthen we rest\nThe answer is 6.", reference)
    assert [x.hard for x in step_labels] == [1, 0, 1]


def test_text_can_be_compared_throughout():
    step_labels = labels("2 + 2  = 4\n3 + 1 = 4\nThe answer is 6.", REFERENCE, labeler=Rule(match="text"))
    assert [x.hard for x in step_labels] == [1, 0, 1]


def test_references_split_as_asked():
    prose = "We get 2 + 2 = 4. Then 4 + 2 = 6. The answer is 6."
    assert labels("it is 4\nThe answer is 6.", prose)[0].hard == 0
    assert labels("it is 4\nThe answer is 6.", prose, labeler=Rule(steps="sentence"))[0].hard == 1
    with pytest.raises(UnknownName, match="sentence"):
        Rule(steps="sentences")


def test_without_references_steps_are_unknown_not_wrong():
    assert labels("2 + 2 = 4\nThe answer is 6.") == (StepLabel(0, 0, source="rule"), StepLabel(1, 1, source="outcome"))
    assert not labels("2 + 2 = 4\nThe answer is 6.", "", " \n ")[0].known


def test_the_cut_off_end_of_an_unfinished_solution_is_unknown():
    assert [x.known and x.hard for x in labels("a 5\nb 4\n4 +", REFERENCE, finish=Finish.LENGTH)] == [0, 1, False]


@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=3))
def test_any_text_is_labelled_and_a_solution_agrees_with_itself(text, references):
    step_labels = labels(text, *references)
    assert len(step_labels) == len(split(text))
    assert all(x.hard == 1 for x in labels(text, *references, text)[:-1])


def test_on_arithmetic_it_agrees_with_the_oracle_but_where_a_wrong_step_meets_a_right_number():
    """Demonstrations with planted errors. Each result has one derivation, so a correct step always matches."""
    task = registry.load("task", "arithmetic", noise=0.5)
    right = wrong = matched = 0
    for p in task.load("train", 150).problems:
        solution = Solution("p#0", p.id, 0, p.demonstration, split(p.demonstration))
        [labelled] = Rule().label([Unlabelled(p, solution, (p.reference,))], TOOLS)
        for label, flag in zip(labelled.labels, task.judge_steps(p, solution), strict=True):
            assert label.hard or not flag
            right, wrong, matched = right + flag, wrong + (not flag), matched + (label.hard and not flag)
    assert right > 100
    assert wrong > 100
    assert matched < 0.2 * wrong


def test_references_split_as_the_solutions_do_unless_told_otherwise():
    """One paragraph of sentences. As lines it is one step, and its result is the answer."""
    text = "First 2 + 2 = 4. Then 4 + 2 = 6. The answer is 6."
    solution = Solution("p#0", "p", 0, text, split(text, "sentence"))
    unit = Unlabelled(PROBLEM, solution, (text,))
    tools = dataclasses.replace(TOOLS, steps="sentence")
    [by_sentence], [by_line] = (list(Rule(steps=splitter).label([unit], tools)) for splitter in (None, "line"))
    assert [x.hard for x in by_sentence.labels] == [1, 1, 1]
    assert [x.hard for x in by_line.labels] == [0, 1, 1]

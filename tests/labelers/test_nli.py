"""Entailment labels: the pairs, and the steps that stay unknown. tests/models/test_entailment.py tests the model."""

from itertools import pairwise

import pytest

from stepmark.errors import ConfigError
from stepmark.graders.numeric import Numeric
from stepmark.labelers.nli import Nli
from stepmark.models.entailment import probabilities
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, SamplingParams, Solution, StepLabel, Unlabelled

TOOLS = Tools(Numeric(), Template(), SamplingParams())


def unit(problem, text, *references, finish=Finish.STOP, sample=0):
    return Unlabelled(
        problem, Solution(f"{problem.id}#{sample}", problem.id, sample, text, split(text), finish), references
    )


def labels(labeler, unlabelled):
    [labelled] = labeler.label([unlabelled], TOOLS)
    return labelled.labels


@pytest.fixture(scope="module")
def cases(problems):
    """Each problem's demonstration, with the references of this problem and of the next one."""
    return [unit(p, p.demonstration, p.reference, other.reference) for p, other in pairwise(problems[:13])]


def best(path, case, premise):
    """For each step but the last: the probabilities that a step, or a prefix, of a reference entails it."""
    premises = [
        text[0 if premise == "prefix" else start : end].strip()
        for text in case.references
        for start, end in split(text)
    ]
    return [probabilities(path, [(text, step) for text in premises]) for step in case.solution.steps[:-1]]


@pytest.mark.parametrize("premise", ["step", "prefix"])
def test_a_step_is_right_where_its_best_premise_reaches_the_threshold(entailer, cases, premise):
    probabilities_of = {case.solution.id: best(entailer, case, premise) for case in cases}
    tops = sorted(max(p for p in ps if p is not None) for steps in probabilities_of.values() for ps in steps)
    gap = max(range(len(tops) // 4, len(tops)), key=lambda i: tops[i] - tops[i - 1])
    threshold = (tops[gap] + tops[gap - 1]) / 2  # far from all probabilities, so that rounding has no effect
    seen = []
    for labelled in Nli(entailer, threshold=threshold, premise=premise).label(cases, TOOLS):
        for label, ps in zip(labelled.labels[:-1], probabilities_of[labelled.key], strict=True):
            if max(p for p in ps if p is not None) >= threshold:
                assert label == StepLabel(1, 1, source="nli")
            elif None in ps:
                assert label == StepLabel(0, 0, ungradable=1, source="nli")
            else:
                assert label == StepLabel(0, 1, source="nli")
            seen.append(label.hard if label.known else None)
        assert labelled.labels[-1].source == "outcome"
    assert 1.0 in seen
    assert 0.0 in seen


def test_the_label_that_counts_can_be_named_by_its_index(entailer, cases):
    by_name, by_index = (labels(Nli(entailer, entailment=i), cases[0]) for i in (None, 1))
    assert by_name == by_index
    with pytest.raises(ConfigError, match="no label 3"):
        labels(Nli(entailer, entailment=3), cases[0])


def test_a_pair_that_is_too_long_is_flagged_never_cut(entailer, problems):
    long = " ".join(["2"] * 60)
    step_labels = labels(Nli(entailer), unit(problems[0], f"{long}\n2\nThe answer is 1.", problems[0].reference))
    assert step_labels[0] == StepLabel(0, 0, ungradable=1, source="nli")
    assert step_labels[1].known


def test_at_most_so_many_references_are_read(entailer, problems, cases):
    p = problems[0]
    one, other = cases[0].references
    assert labels(Nli(entailer, references=1), unit(p, one, other, one)) == labels(Nli(entailer), unit(p, one, other))


def test_without_references_or_cut_off_a_step_is_unknown(entailer, problems):
    p = problems[0]
    assert labels(Nli("no/such/model"), unit(p, "x\nThe answer is 1."))[0] == StepLabel(0, 0, source="nli")
    cut = labels(Nli(entailer), unit(p, p.reference, p.reference, finish=Finish.LENGTH))
    assert [x.known for x in cut] == [True] * (len(cut) - 1) + [False]


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        Nli("m", threshold=0, references=0, steps="words")
    assert len(caught.value.faults) == 3

"""Binary search for the first wrong step, with completers that fail from a known step on."""

from dataclasses import dataclass, field
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import ConfigError
from stepmark.evaluation.evidence import first_error
from stepmark.graders.numeric import Numeric
from stepmark.labelers.first_error import FirstError
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, Grade, Problem, Rollout, SamplingParams, Solution, StepLabel, Unlabelled, Verdict

PROBLEM = Problem("p", "How many?", "6", "t")
RIGHT, WRONG = "The answer is 6.", "The answer is 7."
CUT = ("The answer is", Finish.LENGTH)


@dataclass
class Counting:
    """A backend that records the prompts of each call."""

    script: ScriptedBackend
    calls: list = field(default_factory=list)

    def sample(self, prompts, params):
        self.calls.append([(p.id, p.n) for p in prompts])
        yield from self.script.sample(prompts, params)

    @property
    def rollouts(self):
        return sum(n for call in self.calls for _, n in call)


def unit(steps, ending=WRONG, finish=Finish.STOP, sample=0):
    """A solution of `steps` steps, the last of which is `ending`."""
    text = "\n".join([*(f"step {i}" for i in range(steps - 1)), ending]) if steps else ""
    return Unlabelled(PROBLEM, Solution(f"p#{sample}", "p", sample, text, split(text), finish))


def lost_at(error, answers=(RIGHT,)):
    """A completer that gives `answers` if its prefix has at most `error` steps, and a wrong answer otherwise."""
    return lambda text: answers if text.count("\n") - 1 <= error else [WRONG]


def label(labeler, units, script, grader=None):
    completer = Counting(script if isinstance(script, ScriptedBackend) else ScriptedBackend(script))
    tools = Tools(grader or Numeric(), Template(), SamplingParams(), completer)
    by_key = {x.key: x.labels for x in labeler.label(units, tools)}
    return [by_key[u.solution.id] for u in units], completer


@given(st.integers(1, 40), st.data(), st.integers(1, 9), st.integers(1, 4))
def test_it_finds_the_place_with_a_prefix_for_each_halving(steps, data, rollouts, wave):
    error = data.draw(st.integers(0, steps - 1))
    [labels], completer = label(FirstError(rollouts, wave=wave), [unit(steps)], lost_at(error))
    assert first_error(labels) == error
    assert [x.hard for x in labels] == [1.0] * error + [0.0] * (steps - error)
    tried = {name for call in completer.calls for name, _ in call}
    assert len(tried) <= ceil(log2(steps)) if steps > 1 else not tried
    for i, x in enumerate(labels):
        if f"p#0@{i}" in tried:
            first = min(wave, rollouts)
            assert x == StepLabel(first * (i < error), first if i < error else rollouts, source="first_error")
        elif i == steps - 1:
            assert x == StepLabel(0, 1, source="outcome")
        else:
            assert x == StepLabel(
                *((1, 1, 0, 0, "inferred:later_success") if i < error else (0, 1, 0, 0, "inferred:earlier_error"))
            )


@given(st.integers(0, 7), st.integers(1, 8))
def test_one_success_of_up_to_so_many_rollouts_is_enough(late, rollouts):
    [labels], completer = label(FirstError(rollouts), [unit(2)], lost_at(1, [WRONG] * late + [RIGHT] + [WRONG] * 8))
    assert labels[0].hard == float(late < rollouts)
    assert completer.rollouts == min(rollouts, 2 ** ceil(log2(late + 1)))


@given(st.lists(st.sampled_from([RIGHT, WRONG, CUT]), min_size=1, max_size=9), st.integers(1, 12), st.integers(1, 8))
def test_where_completers_do_not_recover_the_labels_are_those_of_all_rollouts(answers, steps, rollouts):
    """Both labelers draw the same rollouts, so the labels can differ only where they are inferred."""
    script = ScriptedBackend(lost_at(steps // 2, answers))
    [by_search], search_completer = label(FirstError(rollouts), [unit(steps)], script)
    [by_rollouts], rollout_completer = label(MonteCarlo(rollouts), [unit(steps)], script)
    for from_search, from_rollouts in zip(by_search, by_rollouts, strict=True):
        if from_search.known and from_rollouts.known:
            assert from_search.hard == from_rollouts.hard
    assert search_completer.rollouts <= rollout_completer.rollouts


@given(st.lists(st.lists(st.sampled_from([RIGHT, WRONG, CUT]), min_size=3, max_size=3), min_size=1, max_size=9))
def test_whatever_completers_say_ones_come_first_and_what_was_tried_keeps_its_counts(answers):
    script = ScriptedBackend(lambda text: answers[text.count("\n") - 2])
    [labels], completer = label(FirstError(3), [unit(len(answers) + 1)], script)
    known = [x.hard for x in labels if x.known]
    assert known == sorted(known, reverse=True)
    tried = {int(name.rpartition("@")[2]) for call in completer.calls for name, _ in call}
    for i, x in enumerate(labels):
        drawn = x.gradable + x.truncated
        if i in tried:
            assert x.source == "first_error"
            assert (x.correct, x.truncated) == (answers[i][:drawn].count(RIGHT), answers[i][:drawn].count(CUT))
            assert x.correct or drawn == 3
        else:
            assert x.inferred or not x.known or x.source == "outcome"


def test_what_could_not_be_graded_has_not_failed():
    """Steps 0-5 and a wrong ending: the first prefix, at step 2, has only truncated rollouts."""
    [labels], completer = label(FirstError(4), [unit(7)], lambda text: [CUT])
    assert [x.known for x in labels] == [False] * 6 + [True]
    assert sorted(x.truncated for x in labels) == [0] * 6 + [4]
    assert completer.rollouts == 4
    assert first_error(labels) is None


def test_what_was_found_before_an_unknown_one_stays_found():
    answers = {2: [RIGHT], 4: [CUT]}
    [labels], _ = label(FirstError(2), [unit(7)], lambda text: answers[text.count("\n") - 2])
    assert [x.known and x.hard for x in labels] == [1.0, 1.0, 1.0, False, False, False, 0.0]
    assert labels[4].truncated == 2
    assert first_error(labels) is None


class TestACorrectSolution:
    def test_vouches_for_its_steps_and_costs_nothing(self):
        [labels], completer = label(FirstError(), [unit(5, RIGHT)], lost_at(2))
        assert labels == (StepLabel(1, 1, source="inferred:outcome"),) * 4 + (StepLabel(1, 1, source="outcome"),)
        assert completer.rollouts == 0
        assert first_error(labels) == 5

    def test_is_searched_like_any_other_where_its_outcome_is_not_trusted(self):
        [labels], completer = label(FirstError(trust_outcome=False), [unit(5, RIGHT)], lost_at(2))
        assert [x.hard for x in labels] == [1.0, 1.0, 0.0, 0.0, 1.0]
        assert labels[4].source == "outcome"
        assert not any(x.source == "inferred:outcome" for x in labels)
        assert completer.rollouts
        assert first_error(labels) == 2


def test_an_unfinished_solution_is_searched_to_its_end():
    [labels], _ = label(FirstError(2), [unit(4, "step", Finish.LENGTH)], lost_at(9))
    assert [x.hard for x in labels] == [1.0] * 4
    assert labels[3] == StepLabel(1, 1, source="first_error")


def test_an_ungradable_ending_is_unknown_and_says_nothing_about_the_steps_before():
    class Fussy:
        def grade(self, text, problem):
            broken = text.endswith("?")
            return Grade(Verdict.UNGRADABLE, "broken") if broken else Numeric().grade(text, problem)

    [labels], _ = label(FirstError(2), [unit(4, "why?")], lost_at(9), Fussy())
    assert [x.known and x.hard for x in labels] == [1.0, 1.0, 1.0, False]
    assert labels[3] == StepLabel(0, 0, ungradable=1, source="outcome")


def test_rollouts_that_never_came_are_no_failure_of_the_step():
    class Down:
        def sample(self, prompts, params):
            for p in prompts:
                yield from (Rollout(p.id, i, "", Finish.FAILED, 0, reason="no") for i in range(p.first, p.first + p.n))

    tools = Tools(Numeric(), Template(), SamplingParams(), Down())
    [labelled] = FirstError(4).label([unit(4)], tools)
    assert [x.known for x in labelled.labels] == [False, False, False, True]
    assert sum(x.failed for x in labelled.labels) == 4


def test_all_solutions_go_through_a_halving_together():
    units = [unit(15, sample=i) for i in range(14)]
    script = lost_at(6)
    _, alone = label(FirstError(1), units[:1], script)
    labels, completer = label(FirstError(1), units, script)
    assert len(completer.calls) == len(alone.calls) <= 4
    assert [len(call) for call in completer.calls] == [14] * len(alone.calls)
    assert {first_error(x) for x in labels} == {6}
    assert {x[0].source for x in labels} == {"inferred:later_success"}


def test_settings_below_one_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        FirstError(rollouts=0, wave=0)
    assert len(caught.value.faults) == 2

"""Step labels by rollouts: the counts of Math-Shepherd's equations 3 and 4, with scripted completers."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import ConfigError
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, Grade, Problem, SamplingParams, Solution, StepLabel, Unlabelled, Verdict

PROBLEM = Problem("p", "2 + 2 + 2?", "6", "t")
RIGHT, WRONG = "The answer is 6.", "The answer is 7."
CUT = ("The answer is 6", Finish.LENGTH)


def solution(text, finish=Finish.STOP):
    return Solution("p#0", "p", 0, text, split(text), finish)


def labelled(labeler, script, solution, grader=None):
    tools = Tools(grader or Numeric(), Template(), SamplingParams(), script)
    [result] = labeler.label([Unlabelled(PROBLEM, solution)], tools)
    return result


@dataclass
class Counting:
    """A backend that records the prompts' ids, first indices and counts, and the rollouts that it gave."""

    script: ScriptedBackend
    asked: list = field(default_factory=list)
    given: list = field(default_factory=list)

    def sample(self, prompts, params):
        self.asked += [(p.id, p.first, p.n) for p in prompts]
        for rollout in self.script.sample(prompts, params):
            self.given.append(rollout)
            yield rollout


def test_counts_are_those_of_the_script():
    text = "2 + 2 = 4\n4 + 2 = 6\nThe answer is 6."
    question = "2 + 2 + 2?\n"
    script = ScriptedBackend(
        {
            question + "2 + 2 = 4\n": [RIGHT, WRONG, CUT, RIGHT],
            question + "2 + 2 = 4\n4 + 2 = 6\n": [WRONG, WRONG, CUT, CUT],
        }
    )
    result = labelled(MonteCarlo(rollouts=8), script, solution(text))
    assert result.labels == (
        StepLabel(correct=4, gradable=6, truncated=2),
        StepLabel(correct=0, gradable=4, truncated=4),
        StepLabel(correct=1, gradable=1, source="outcome"),
    )
    assert [label.hard for label in result.labels] == [1.0, 0.0, 1.0]
    assert result.labels[0].soft == 4 / 6
    assert result.grade.verdict is Verdict.CORRECT


def test_ungradable_rollouts_leave_the_denominator():
    class Fussy:
        def grade(self, text, problem):
            return Grade(Verdict.UNGRADABLE, "broken") if "7" in text else Numeric().grade(text, problem)

    script = ScriptedBackend(default=[RIGHT, WRONG])
    result = labelled(MonteCarlo(rollouts=4), script, solution("a\n" + RIGHT), Fussy())
    assert result.labels[0] == StepLabel(correct=2, gradable=2, ungradable=2)
    assert result.labels[0].soft == 1.0


def test_an_unfinished_solution_has_no_outcome_but_its_last_step_is_tried():
    script = Counting(ScriptedBackend(default=[RIGHT]))
    result = labelled(MonteCarlo(rollouts=3), script, solution("a\nb", Finish.LENGTH))
    assert result.grade.verdict is Verdict.UNGRADABLE
    assert [label.source for label in result.labels] == ["monte_carlo"] * 2
    assert len(script.asked) == 2


def test_an_ungradable_ending_is_no_evidence():
    class Broken:
        def grade(self, text, problem):
            return Grade(Verdict.UNGRADABLE, "timed out")

    result = labelled(MonteCarlo(rollouts=2), ScriptedBackend(default=[RIGHT]), solution("x"), Broken())
    assert result.labels == (StepLabel(0, 0, ungradable=1, source="outcome"),)
    assert not result.labels[0].known


def test_a_solution_without_steps_has_no_labels():
    assert labelled(MonteCarlo(), ScriptedBackend(), solution("")).labels == ()


@pytest.mark.parametrize("options", [{}, {"early_stop": True, "wave": 1}])
def test_a_solution_comes_when_its_own_rollouts_have_come(options):
    """So a kill does not cost the labels of those before it, and the progress moves."""
    asked = Counting(ScriptedBackend(default=[RIGHT]))
    ends_at_once = Solution("p#9", "p", 9, RIGHT, split(RIGHT))
    solutions = [Solution(f"p#{i}", "p", i, "a\nb", split("a\nb"), Finish.LENGTH) for i in range(3)]
    units = [Unlabelled(PROBLEM, s) for s in [*solutions, ends_at_once]]
    tools = Tools(Numeric(), Template(), SamplingParams(), asked)
    came = [(x.key, len(asked.given)) for x in MonteCarlo(rollouts=4, **options).label(units, tools)]
    assert came[0] == ("p#9", 0)
    assert [key for key, _ in came[1:]] == ["p#0", "p#1", "p#2"]
    assert [given for _, given in came[1:]] == ([8, 16, 24] if not options else [6] * 3)


@given(st.lists(st.sampled_from([RIGHT, WRONG, CUT]), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 4))
def test_early_stop_changes_no_hard_label_and_never_asks_twice(said, rollouts, wave):
    given_solution = solution("a\nb\n" + RIGHT)
    whole = labelled(MonteCarlo(rollouts), ScriptedBackend(default=said), given_solution)
    script = Counting(ScriptedBackend(default=said))
    early = labelled(MonteCarlo(rollouts, early_stop=True, wave=wave), script, given_solution)
    assert [x.known and x.hard for x in early.labels] == [x.known and x.hard for x in whole.labels]
    for step in ("p#0@0", "p#0@1"):
        indices = [i for name, first, n in script.asked if name == step for i in range(first, first + n)]
        assert indices == list(range(len(indices)))
        assert len(indices) <= rollouts
    assert {x.source for x in early.labels} == {"monte_carlo+early_stop", "outcome"}


def test_early_stop_saves_rollouts_where_the_first_is_right():
    script = Counting(ScriptedBackend(default=[RIGHT]))
    labelled(MonteCarlo(rollouts=64, early_stop=True, wave=1), script, solution("a\nb\n" + RIGHT))
    assert sum(n for _, _, n in script.asked) == 2


def test_settings_below_one_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        MonteCarlo(rollouts=0, wave=0)
    assert len(caught.value.faults) == 2

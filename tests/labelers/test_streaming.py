"""Labelers that ask a model give out a solution's labels as soon as its own rollouts are there, so that a kill loses
only what is unfinished."""

import pytest

from stepmark.graders.numeric import Numeric
from stepmark.labelers.first_error import FirstError
from stepmark.labelers.judge import Judge
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.labelers.rationale import Rationales
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, Problem, Rollout, SamplingParams, Solution, Unlabelled

TEXT = "1 + 1 = 3\n3 + 1 = 4\nThe answer is 4."


class Slow:
    """Writes one rollout after another and counts them."""

    def __init__(self):
        self.written = 0

    def sample(self, prompts, params):
        for prompt in prompts:
            for index in range(prompt.first, prompt.first + prompt.n):
                self.written += 1
                yield Rollout(prompt.id, index, "Step 1: correct\nThe answer is 3.", Finish.STOP, 9)


@pytest.mark.parametrize(
    "labeler",
    [MonteCarlo(rollouts=2), FirstError(rollouts=2, wave=2), Judge(votes=2), Rationales("unguided", n=2)],
    ids=lambda labeler: type(labeler).__name__,
)
def test_a_solution_is_given_out_while_others_go_on(labeler):
    units = [
        Unlabelled(Problem(f"p{i}", f"{i}: 1 + 1 + 1?", "3", "t"), Solution(f"p{i}#0", f"p{i}", 0, TEXT, split(TEXT)))
        for i in range(5)
    ]
    backend = Slow()
    tools = Tools(Numeric(), Template(), SamplingParams(), completer=backend, judge=backend)
    written = [(labelled.solution.id, backend.written) for labelled in labeler.label(units, tools)]
    assert {id for id, _ in written} == {unit.solution.id for unit in units}
    assert written[0][1] < 0.7 * backend.written
    assert sum(count < backend.written for _, count in written) >= 4


@pytest.mark.parametrize("labeler", [Judge(), Rationales("unguided")], ids=lambda labeler: type(labeler).__name__)
def test_a_judge_that_gives_too_few_answers_loses_no_solution(labeler):
    class Silent(Slow):
        def sample(self, prompts, params):
            return iter(())

    unit = Unlabelled(Problem("p", "1 + 1 + 1?", "3", "t"), Solution("p#0", "p", 0, TEXT, split(TEXT)))
    tools = Tools(Numeric(), Template(), SamplingParams(), judge=Silent())
    assert [labelled.solution.id for labelled in labeler.label([unit], tools)] == ["p#0"]

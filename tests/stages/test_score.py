"""Scores that no vote can be weighted by are refused, with the solution, the score and what is allowed."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

import stepmark
from stepmark.data.store import Records
from stepmark.errors import DataError
from stepmark.executors.serial import SerialExecutor
from stepmark.stages.score import score, verify
from stepmark.types import Outcome, Problem, Verification

TEXTS = ["1 + 1 = 2\nThe answer is 2.", "1 + 1 = 3"]


@dataclass(frozen=True)
class Fixed:
    scores: tuple
    score: object = 0.5
    outcome: Outcome = Outcome.SCORED

    def verify(self, question, solutions):
        return [Verification(s.id, self.scores, self.score, "min", self.outcome, "why") for s in solutions]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, 1.7, 12, "0.5", None])
def test_a_score_that_is_no_number_from_0_to_1_is_refused(bad):
    with pytest.raises(DataError) as e:
        verify(Fixed((0.5, bad)), "1 + 1?", TEXTS)
    assert f"the verifier Fixed gave the score {bad!r} to step 2 of 2 ('#0'). A score is a number from 0 to 1" in str(
        e.value
    )
    with pytest.raises(DataError, match="to the whole solution"):
        verify(Fixed((0.5,), bad), "1 + 1?", TEXTS)


@pytest.mark.parametrize("good", [0, 1, 0.0, 1.0, 1 + 1e-9, -1e-9, 0.3])
def test_other_scores_pass_as_they_are(good):
    assert verify(Fixed((good,), good), "1 + 1?", TEXTS)[1].scores == (good,)


def test_what_is_not_scored_needs_no_score():
    assert verify(Fixed((), math.nan, Outcome.FAILED), "1 + 1?", TEXTS)[0].outcome is Outcome.FAILED


def test_one_such_score_costs_its_own_problem_alone(tmp_path, solve):
    """A user's verifier in a file, and the stage with all its checks."""
    (tmp_path / "mine.py").write_text(
        "from stepmark.types import Verification\n"
        "class Mine:\n"
        "    def verify(self, question, solutions):\n"
        "        x = float(question)\n"
        "        return [Verification(s.id, (x,), x, 'last') for s in solutions]\n"
    )
    verifier = stepmark.load_verifier(Path(tmp_path / "mine.py"))
    problems = [Problem(f"p{i}", question, "1", "t") for i, question in enumerate(("0.2", "nan", "0.9", "7"))]
    solutions = [solve("a", p.id) for p in problems]
    with Records(tmp_path / "out.jsonl", Verification) as out:
        done = score(verifier, problems, solutions, out, executor=SerialExecutor())
        assert sorted(v.score for v in out) == [0.2, 0.9]
    assert [(f.item, "0 to 1" in f.reason) for f in done.failed] == [("p1", True), ("p3", True)]

"""Choosing one problem's answer, and joining stored records into candidates."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seeds import SEED
from stepmark.errors import ConfigError, DataError, UnknownName
from stepmark.evaluation.rank import candidates, rank
from stepmark.types import (
    Candidate,
    Finish,
    Grade,
    GradedSolution,
    Outcome,
    Solution,
    Verdict,
    Verification,
)


def pool(*rows: tuple[str | None, tuple[float, ...]], finished: bool = True) -> list[Candidate]:
    return [Candidate(f"p#{i}", answer, finished, {"prm": scores}) for i, (answer, scores) in enumerate(rows)]


THREE = pool(("5", (0.75, 0.25)), ("5", (0.25,)), ("7", (0.875, 0.625)))


def test_the_best_candidate_by_its_worst_step_wins():
    best = rank(THREE, "prm")
    assert (best.problem_id, best.answer, best.solution_id) == ("p", "7", "p#2")
    assert (best.method, best.n, best.weight) == ("prm", 3, 0.625)
    assert best.share == pytest.approx(0.625 / 0.875)


def test_plain_voting_counts_and_names_the_first_solution_of_the_answer():
    best = rank(THREE, "self_consistency")
    assert (best.answer, best.solution_id, best.weight, best.share) == ("5", "p#0", 2.0, pytest.approx(2 / 3))


def test_plain_voting_needs_no_scores():
    assert rank([Candidate("p#0", "1")], "self_consistency").answer == "1"


def test_a_weighted_vote_adds_the_scores_of_equal_answers():
    best = rank(THREE, "self_consistency+prm")
    assert (best.answer, best.weight, best.share) == ("7", 0.625, pytest.approx(0.625 / 1.125))
    three = pool(("5", (0.4,)), ("7", (0.6,)), ("5", (0.3,)))
    best = rank(three, "self_consistency+prm")
    assert (best.answer, best.solution_id, best.weight) == ("5", "p#0", pytest.approx(0.7))


def test_the_aggregation_can_be_named_or_given():
    rows = pool(("5", (0.1, 0.9)), ("7", (0.4, 0.5)))
    assert rank(rows, "prm").answer == "7"
    assert rank(rows, "prm:last").answer == "5"
    assert rank(rows, "prm", "mean").answer == "5"
    assert rank(rows, "prm", max).answer == "5"
    assert rank(rows, "self_consistency+prm:last").answer == "5"


@pytest.mark.parametrize("method", ["prm", "self_consistency", "self_consistency+prm"])
def test_what_did_not_end_or_has_no_answer_cannot_win(method):
    rows = [
        Candidate("p#0", "9", False, {"prm": (1.0,)}),
        Candidate("p#1", "9", False, {"prm": (1.0,)}),
        Candidate("p#2", None, True, {"prm": (1.0,)}),
        Candidate("p#3", "1", True, {"prm": (0.0,)}),
    ]
    assert (rank(rows, method).answer, rank(rows, method).share) == ("1", 1.0)
    none = rank(rows[:3], method)
    assert (none.answer, none.solution_id, none.weight, none.n) == (None, None, 0.0, 3)
    assert rank([], method, problem_id="p").problem_id == "p"


@pytest.mark.parametrize("unscored", [(), (math.nan,), (0.9, math.inf)])
def test_what_could_not_be_scored_loses_to_every_score_and_adds_no_vote(unscored):
    rows = pool(("9", unscored), ("9", unscored), ("1", (0.01,)), ("1", (0.0,)))
    assert rank(rows, "prm").solution_id == "p#2"
    assert rank(rows, "self_consistency+prm").answer == "1"
    assert {rank(pool(("9", unscored), ("1", (0.0,))), "prm", seed=seed).answer for seed in range(20)} == {"1"}
    assert rank(rows[:2], "prm").answer == "9"


@pytest.mark.robust
def test_ties_are_broken_at_random_and_the_same_way_for_the_same_seed():
    rows = pool(("5", (0.5,)), ("7", (0.5,)), ("7", (0.5,)), ("8", (0.4,)))
    seeds = range(600 * SEED, 600 * SEED + 600)
    chosen = [rank(rows, "prm", seed=seed).answer for seed in seeds]
    assert chosen == [rank(rows, "prm", seed=seed).answer for seed in seeds]
    assert 120 < chosen.count("5") < 280  # one candidate of three
    assert set(chosen) == {"5", "7"}
    votes = [rank(rows[:2], "self_consistency", seed=seed).answer for seed in seeds]
    assert 220 < votes.count("5") < 380


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=8), st.randoms())
def test_the_order_of_candidates_does_not_matter(rows, rng: random.Random):
    ordered = pool(*((a, (s,)) for a, s in rows))
    shuffled = rng.sample(ordered, len(ordered))
    for method in ("prm", "self_consistency", "self_consistency+prm"):
        a, b = rank(ordered, method), rank(shuffled, method, problem_id="p")
        assert (a.answer, a.weight, a.share) == (b.answer, pytest.approx(b.weight), pytest.approx(b.share))


def test_unknown_names_say_what_there_is():
    with pytest.raises(UnknownName, match="mean 'prm'"):
        rank(THREE, "prn")
    with pytest.raises(UnknownName, match="mean 'prod'"):
        rank(THREE, "prm:produ")
    with pytest.raises(ConfigError, match="NAME"):
        rank(THREE, "self_consistency+")


def solution(problem: str, i: int, finish: Finish = Finish.STOP) -> Solution:
    return Solution(f"{problem}#{i}", problem, i, "x", ((0, 1),), finish)


def graded(s: Solution, answer: str | None) -> GradedSolution:
    return GradedSolution(s.id, s.problem_id, Grade(Verdict.INCORRECT, "", answer))


def test_records_are_joined_by_problem_in_order_of_sampling():
    a1, a0, b0 = solution("a", 1, Finish.LENGTH), solution("a", 0), solution("b", 0)
    grades = [graded(b0, None), graded(a0, "1"), graded(a1, "2"), graded(solution("z", 0), "3")]
    verified = [
        Verification("a#0", (0.1, 0.2), 0.1, "min"),
        Verification("a#1", (0.9,), 0.0, "min", Outcome.TRUNCATED, "cut"),
        Verification("b#0", (), 0.0, "min", Outcome.FAILED, "broke"),
    ]
    assert candidates([a1, b0, a0], grades, {"prm": verified}) == {
        "a": [Candidate("a#0", "1", True, {"prm": (0.1, 0.2)}), Candidate("a#1", "2", False, {"prm": ()})],
        "b": [Candidate("b#0", None, True, {"prm": ()})],
    }


def test_a_solution_without_grade_or_verification_is_an_error_that_names_it():
    rows = [solution("a", 0), solution("a", 1)]
    grades = [graded(s, "1") for s in rows]
    with pytest.raises(DataError, match=r"1 of 2 solutions have no grade; the first is 'a#1'"):
        candidates(rows, grades[:1])
    with pytest.raises(DataError, match=r"2 of 2 solutions have no verification by prm"):
        candidates(rows, grades, {"prm": []})

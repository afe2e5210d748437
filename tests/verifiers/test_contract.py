"""One suite over every verifier kind in the folder (conftest.py): built, trained, loaded, checked by the protocol."""

import dataclasses
import pickle
import shutil

import pytest

import stepmark
from stepmark.protocols import Verifier
from stepmark.text.steps import split
from stepmark.types import Finish, Outcome, Solution, Verification


def test_it_is_a_frozen_dataclass_whose_constructor_does_no_work(kind, make, trains):
    verifier = make(kind, path="/nowhere/at/all")
    assert isinstance(verifier, Verifier)
    assert dataclasses.is_dataclass(verifier)
    assert type(verifier).__dataclass_params__.frozen
    assert pickle.loads(pickle.dumps(verifier)) == verifier  # noqa: S301
    learns = callable(getattr(verifier, "fit", None)) or callable(getattr(verifier, "build", None))
    assert learns == trains


@pytest.mark.robust
def test_one_verification_per_solution_in_order(verifier, graded):
    problem = graded[0][0]
    solutions = [x.solution for _, x in graded]
    verifications = verifier.verify(problem.question, solutions)
    assert [v.solution_id for v in verifications] == [s.id for s in solutions]
    for v, s in zip(verifications, solutions, strict=True):
        assert isinstance(v, Verification)
        assert v.outcome is Outcome.SCORED
        assert len(v.scores) in (1, len(s.spans))
        assert all(type(x) is float and 0 <= x <= 1 for x in v.scores)
        assert type(v.score) is float
    assert verifier.verify(problem.question, []) == []


def test_plain_texts_are_scored_as_solutions_are(verifier, graded):
    question = graded[0][0].question
    texts = ["so it is 7\nThe answer is 8.", "", "a. B\nc"]
    for how in ("line", "sentence"):
        plain = stepmark.verify(verifier, question, texts, how)
        solutions = [Solution(f"#{i}", "", i, text, split(text, how)) for i, text in enumerate(texts)]
        assert plain == verifier.verify(question, solutions)
    assert [v.outcome for v in plain] == [Outcome.SCORED, Outcome.FAILED, Outcome.SCORED]


@pytest.mark.robust
def test_batch_and_order_change_no_score(verifier, graded):
    question = graded[0][0].question
    solutions = [x.solution for _, x in graded[:8]]
    together = verifier.verify(question, solutions)
    backwards = verifier.verify(question, solutions[::-1])[::-1]
    for s, a, b in zip(solutions, together, backwards, strict=True):
        [alone] = verifier.verify(question, [s])
        assert a.scores == pytest.approx(alone.scores, abs=1e-5)
        assert b.scores == pytest.approx(alone.scores, abs=1e-5)


def test_only_finished_solutions_are_scored(verifier, solve):
    solutions = [solve("a\nb", finish=Finish.LENGTH), solve(""), solve(" \n"), solve("a\nb")]
    verifications = verifier.verify("Q?", solutions)
    assert [v.outcome for v in verifications] == [Outcome.TRUNCATED, Outcome.FAILED, Outcome.FAILED, Outcome.SCORED]
    for v in verifications[:3]:
        assert (v.scores, v.score) == ((), 0.0)
        assert v.reason


@pytest.mark.robust
def test_text_that_looks_like_tags_adds_no_scores(verifier, solve):
    for text in (
        "a <step><good>\nb<eos>\n<step>",
        "a\nVerification: Is the answer correct? Yes\n<good>",
        "\x00\n\u2028\n😀",
    ):
        [verification] = verifier.verify("<step> <good>?", [solve(text)])
        assert verification.outcome is Outcome.SCORED
        assert len(verification.scores) in (1, len(solve(text).spans))


@pytest.mark.robust
def test_pickling_and_copying_change_no_score(place, verifier, graded, tmp_path):
    problem, example = graded[3]
    [before] = verifier.verify(problem.question, [example.solution])
    sent = pickle.loads(pickle.dumps(verifier))  # noqa: S301
    assert sent == verifier
    assert sent.verify(problem.question, [example.solution]) == [before]
    again = stepmark.load_verifier(place)
    assert again.verify(problem.question, [example.solution]) == [before]
    # Beside the original, so that relative paths to other verifiers stay valid.
    copied = shutil.copytree(place, place.with_name(f"{place.name}_copy"), dirs_exist_ok=True)
    [after] = stepmark.load_verifier(copied).verify(problem.question, [example.solution])
    assert after.scores == pytest.approx(before.scores, abs=1e-6)


def test_training_again_returns_at_once(kind, make, teach, graded, below, place):
    before = {p: p.stat().st_mtime_ns for p in place.iterdir() if p.is_file() and p.name != "training.json"}
    teach(make(kind, **below), graded, place)
    assert {p: p.stat().st_mtime_ns for p in before} == before

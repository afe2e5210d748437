"""One suite over every verifier kind in the folder: made from a checkpoint, trained, loaded, held to the protocol.

A kind that trains in the loop has `build`; one with a closed way to its numbers has `fit`; one that is used as it is
stands in UNTRAINED, with settings under which it can say something. Options that only some kinds take are given where
they are taken."""

import dataclasses
import pickle
import shutil

import pytest

import stepmark
from stepmark import plugins
from stepmark.protocols import Verifier
from stepmark.train import TrainSettings, train
from stepmark.types import Finish, Outcome, Verdict, Verification

UNTRAINED = {
    "judge": {
        "backend": "scripted",
        "options": {"default": ("Is the answer correct (Yes/No)? Yes", "Is the answer correct (Yes/No)? No")},
        "votes": 3,
    }
}
QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu")


def make(kind, tiny, **more):
    """The kind with its own defaults, on the tiny model where it takes a path."""
    taken = plugins.options("verifier", kind)
    given = {"path": tiny, "device": "cpu", **UNTRAINED.get(kind, {}), **more}
    return plugins.load("verifier", kind, **{k: v for k, v in given.items() if k in taken})


@pytest.fixture(scope="module")
def examples(examples, labelled):
    """The shared ones, and for each question another solution with the other grade."""
    others = {Verdict.CORRECT: Verdict.INCORRECT, Verdict.INCORRECT: Verdict.CORRECT}
    return [
        *examples,
        *(
            labelled(p, "so it is 7\nThe answer is 8.", [1.0, 0.0], others[x.grade.verdict], sample=1)
            for p, x in examples
        ),
    ]


@pytest.fixture(scope="module", params=plugins.names("verifier"))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def below(kind, tiny, examples, tmp_path_factory):
    """Verifiers for a kind that blends several."""
    if "verifiers" not in plugins.options("verifier", kind):
        return {}
    places = [tmp_path_factory.mktemp("below") / name for name in ("linear", "orm")]
    for at in places:
        train(make(at.name, tiny), examples, at, QUICK)
    return {"verifiers": [str(at) for at in places]}


@pytest.fixture(scope="module")
def place(kind, tiny, examples, below, tmp_path_factory):
    if kind in UNTRAINED:
        pytest.skip(f"{kind} is not trained, so it has no directory")
    out = tmp_path_factory.mktemp("contract") / kind
    train(make(kind, tiny, **below), examples, out, QUICK)
    return out


@pytest.fixture(scope="module")
def verifier(request, kind, tiny):
    return make(kind, tiny) if kind in UNTRAINED else stepmark.load_verifier(request.getfixturevalue("place"))


def test_it_is_a_frozen_dataclass_that_does_nothing_when_made(kind):
    made = make(kind, "/nowhere/at/all")
    assert isinstance(made, Verifier)
    assert dataclasses.is_dataclass(made)
    assert type(made).__dataclass_params__.frozen
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301
    learns = callable(getattr(made, "fit", None)) or callable(getattr(made, "build", None))
    assert learns == (kind not in UNTRAINED)


def test_one_verification_per_solution_in_order(verifier, examples):
    problem = examples[0][0]
    given = [x.solution for _, x in examples]
    found = verifier.verify(problem.question, given)
    assert [v.solution_id for v in found] == [s.id for s in given]
    for v, s in zip(found, given, strict=True):
        assert isinstance(v, Verification)
        assert v.outcome is Outcome.SCORED
        assert len(v.scores) in (1, len(s.spans))
        assert all(type(x) is float and 0 <= x <= 1 for x in v.scores)
        assert type(v.score) is float
    assert verifier.verify(problem.question, []) == []


def test_company_and_order_change_no_score(verifier, examples):
    question = examples[0][0].question
    given = [x.solution for _, x in examples[:8]]
    together = verifier.verify(question, given)
    backwards = verifier.verify(question, given[::-1])[::-1]
    for s, a, b in zip(given, together, backwards, strict=True):
        [alone] = verifier.verify(question, [s])
        assert a.scores == pytest.approx(alone.scores, abs=1e-5)
        assert b.scores == pytest.approx(alone.scores, abs=1e-5)


def test_only_whole_solutions_are_scored(verifier, solve):
    given = [solve("a\nb", finish=Finish.LENGTH), solve(""), solve(" \n"), solve("a\nb")]
    found = verifier.verify("Q?", given)
    assert [v.outcome for v in found] == [Outcome.TRUNCATED, Outcome.FAILED, Outcome.FAILED, Outcome.SCORED]
    for v in found[:3]:
        assert (v.scores, v.score) == ((), 0.0)
        assert v.reason


def test_text_that_looks_like_tags_adds_no_scores(verifier, solve):
    for text in (
        "a <step><good>\nb<eos>\n<step>",
        "a\nVerification: Is the answer correct? Yes\n<good>",
        "\x00\n\u2028\n😀",
    ):
        [found] = verifier.verify("<step> <good>?", [solve(text)])
        assert found.outcome is Outcome.SCORED
        assert len(found.scores) in (1, len(solve(text).spans))


def test_it_comes_back_the_same_pickled_and_copied(place, verifier, examples, tmp_path):
    problem, example = examples[3]
    [before] = verifier.verify(problem.question, [example.solution])
    sent = pickle.loads(pickle.dumps(verifier))  # noqa: S301
    assert sent == verifier
    assert sent.verify(problem.question, [example.solution]) == [before]
    again = stepmark.load_verifier(place)
    assert again.verify(problem.question, [example.solution]) == [before]
    # Beside the first, so that what a kind builds on is as far away as it was.
    copied = shutil.copytree(place, place.with_name(f"{place.name}_copy"), dirs_exist_ok=True)
    [after] = stepmark.load_verifier(copied).verify(problem.question, [example.solution])
    assert after.scores == pytest.approx(before.scores, abs=1e-6)


def test_training_again_returns_at_once(kind, tiny, examples, below, place):
    before = {p: p.stat().st_mtime_ns for p in place.iterdir() if p.is_file() and p.name != "training.json"}
    train(make(kind, tiny, **below), examples, place, QUICK)
    assert {p: p.stat().st_mtime_ns for p in before} == before

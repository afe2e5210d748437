"""Every verifier kind in the folder, made and trained once for all suites that run over them.

A kind that trains in the loop has `build`; one with a closed way to its numbers has `fit`; one that is used as it is
stands in UNTRAINED, with settings under which it can say something. Options that only some kinds take are given where
they are taken."""

import pytest

import stepmark
from stepmark.plugins import registry
from stepmark.stages.train import TrainSettings, train
from stepmark.types import Verdict

UNTRAINED = {
    "judge": {
        "backend": "scripted",
        "options": {"default": ("Is the answer correct (Yes/No)? Yes", "Is the answer correct (Yes/No)? No")},
        "votes": 3,
    }
}
QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu")


@pytest.fixture(scope="session")
def make(tiny):
    """kind -> it with its own defaults, on the tiny model where it takes a path."""

    def made(kind, **more):
        taken = registry.options("verifier", kind)
        given = {"path": tiny, "device": "cpu", **UNTRAINED.get(kind, {}), **more}
        return registry.load("verifier", kind, **{k: v for k, v in given.items() if k in taken})

    return made


@pytest.fixture(scope="session")
def teach():
    """verifier, examples, directory -> trained there, quickly."""
    return lambda verifier, examples, out: train(verifier, examples, out, QUICK)


@pytest.fixture(scope="session")
def graded(examples, labelled):
    """The shared examples, and for each question another solution with the other grade."""
    others = {Verdict.CORRECT: Verdict.INCORRECT, Verdict.INCORRECT: Verdict.CORRECT}
    return [
        *examples,
        *(
            labelled(p, "so it is 7\nThe answer is 8.", [1.0, 0.0], others[x.grade.verdict], sample=1)
            for p, x in examples
        ),
    ]


@pytest.fixture(scope="session", params=registry.names("verifier"))
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def trains(kind):
    return kind not in UNTRAINED


@pytest.fixture(scope="session")
def below(kind, make, teach, graded, tmp_path_factory):
    """Verifiers for a kind that blends several."""
    if "verifiers" not in registry.options("verifier", kind):
        return {}
    places = [tmp_path_factory.mktemp("below") / name for name in ("linear", "orm")]
    for at in places:
        teach(make(at.name), graded, at)
    return {"verifiers": [str(at) for at in places]}


@pytest.fixture(scope="session")
def place(kind, trains, make, teach, graded, below, tmp_path_factory):
    """Where the kind was trained. Skips for one that isn't."""
    if not trains:
        pytest.skip(f"{kind} is not trained, so it has no directory")
    out = tmp_path_factory.mktemp("contract") / kind
    teach(make(kind, **below), graded, out)
    return out


@pytest.fixture(scope="session")
def verifier(request, kind, trains, make):
    """The kind, ready to score."""
    return stepmark.load_verifier(request.getfixturevalue("place")) if trains else make(kind)

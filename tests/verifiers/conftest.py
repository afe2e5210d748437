"""Every verifier kind in the folder, built and trained once for all suites that run over the kinds.

A kind that trains in the training loop has `build`. A kind with a closed-form fit has `fit`. A kind that is not trained
is in UNTRAINED, with settings that let it score. Options that only some kinds accept go to those kinds only."""

import pytest

import stepmark
from seeds import SEED
from stepmark.plugins import registry
from stepmark.stages.train import TrainSettings, train
from stepmark.types import Verdict

UNTRAINED = {
    "judge": {
        "backend": "scripted",
        "options": {"default": ("Is the answer correct (Yes/No)? Yes", "Is the answer correct (Yes/No)? No")},
        "votes": 3,
    },
    "think_prm": {"backend": "scripted", "options": {"default": (r"\boxed{incorrect}",)}},
    "public": {"reading": "math_shepherd", "options": {"tag": "<step>", "good": "<good>", "bad": "<bad>"}},
}
QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu", seed=SEED)


@pytest.fixture(scope="session")
def make(tiny):
    """kind -> a verifier of that kind with its defaults, on the tiny model if it takes a path."""

    def build_kind(kind, **overrides):
        accepted = registry.options("verifier", kind)
        options = {"path": tiny, "device": "cpu", **UNTRAINED.get(kind, {}), **overrides}
        return registry.load("verifier", kind, **{k: v for k, v in options.items() if k in accepted})

    return build_kind


@pytest.fixture(scope="session")
def teach():
    """(verifier, examples, directory) -> the verifier trained quickly into the directory."""
    return lambda verifier, examples, out: train(verifier, examples, out, QUICK)


@pytest.fixture(scope="session")
def graded(examples, labelled):
    """The shared examples, and for each question another solution with the opposite grade."""
    opposite = {Verdict.CORRECT: Verdict.INCORRECT, Verdict.INCORRECT: Verdict.CORRECT}
    return [
        *examples,
        *(
            labelled(p, "so it is 7\nThe answer is 8.", [1.0, 0.0], opposite[x.grade.verdict], sample=1)
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
    """The option `verifiers` for a kind that blends several; {} for other kinds."""
    if "verifiers" not in registry.options("verifier", kind):
        return {}
    directories = [tmp_path_factory.mktemp("below") / name for name in ("linear", "orm")]
    for directory in directories:
        teach(make(directory.name), graded, directory)
    return {"verifiers": [str(directory) for directory in directories]}


@pytest.fixture(scope="session")
def place(kind, trains, make, teach, graded, below, tmp_path_factory):
    """The directory of the trained verifier. Skips kinds that are not trained."""
    if not trains:
        pytest.skip(f"{kind} is not trained, so it has no directory")
    out = tmp_path_factory.mktemp("contract") / kind
    teach(make(kind, **below), graded, out)
    return out


@pytest.fixture(scope="session")
def verifier(request, kind, trains, make):
    """The kind, ready to score."""
    return stepmark.load_verifier(request.getfixturevalue("place")) if trains else make(kind)

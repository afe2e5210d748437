"""The blend of several verifiers: the mean of their log-odds."""

import math

import pytest

import stepmark
from stepmark.errors import CheckpointError, ConfigError
from stepmark.run import recipe
from stepmark.stages.train import TrainSettings, train
from stepmark.types import Finish, Outcome, Verdict
from stepmark.verifiers.blend import BlendVerifier
from stepmark.verifiers.likelihood_corrected import LikelihoodCorrectedVerifier
from stepmark.verifiers.linear import LinearVerifier

QUICK = TrainSettings(tensorboard=False, device="cpu")


@pytest.fixture(scope="module")
def examples(examples, labelled):
    """The shared examples, and for each question another solution with the opposite grade."""
    opposite = {Verdict.CORRECT: Verdict.INCORRECT, Verdict.INCORRECT: Verdict.CORRECT}
    return [
        pair
        for p, x in examples
        for pair in ((p, x), labelled(p, "so it is 7", [1.0], opposite[x.grade.verdict], sample=1))
    ]


@pytest.fixture(scope="module")
def members(tmp_path_factory, examples):
    """Two linear verifiers that disagree: the second was fitted on half of the examples."""
    run = tmp_path_factory.mktemp("run")
    train(LinearVerifier(), examples, run / "a", QUICK)
    train(LinearVerifier(strength=50.0, buckets=64), examples[: len(examples) // 2], run / "b", QUICK)
    return run / "a", run / "b"


def test_the_score_is_the_mean_of_the_log_odds(members, examples, tmp_path):
    train(BlendVerifier(verifiers=[str(m) for m in members]), examples, tmp_path / "blend", QUICK)
    problem = examples[0][0]
    solutions = [x.solution for _, x in examples]
    a, b = (stepmark.load_verifier(m).verify(problem.question, solutions) for m in members)
    blended = stepmark.load_verifier(tmp_path / "blend").verify(problem.question, solutions)
    assert len({v.score for v in blended}) > 1
    for x, y, z in zip(a, b, blended, strict=True):
        assert x.score != y.score
        mean = (math.log(x.score / (1 - x.score)) + math.log(y.score / (1 - y.score))) / 2
        assert z.score == z.scores[0] == pytest.approx(1 / (1 + math.exp(-mean)))


def test_what_a_member_could_not_score_is_not_scored(members, examples, labelled, tmp_path):
    train(BlendVerifier(verifiers=tuple(map(str, members))), examples, tmp_path / "blend", QUICK)
    problem = examples[0][0]
    _, example = labelled(problem, "so it is\n", [1.0])
    truncated = example.solution
    truncated = type(truncated)(
        truncated.id, truncated.problem_id, truncated.sample, truncated.text, truncated.spans, Finish.LENGTH
    )
    [v] = stepmark.load_verifier(tmp_path / "blend").verify(problem.question, [truncated])
    assert v.outcome is Outcome.TRUNCATED
    assert (v.score, v.scores) == (0.0, ())


def test_likelihood_correction_works_on_a_verifier_without_a_model(members, examples, tiny, tmp_path):
    verifier = LikelihoodCorrectedVerifier(path=str(tiny), verifier=str(members[0]), device="cpu")
    train(verifier, examples, tmp_path / "corrected", QUICK)
    problem, labelled = examples[0]
    [v] = stepmark.load_verifier(tmp_path / "corrected", device="cpu").verify(problem.question, [labelled.solution])
    assert v.outcome is Outcome.SCORED


def test_it_needs_two_existing_verifiers(members, examples, tmp_path):
    with pytest.raises(ConfigError, match="at least two"):
        train(BlendVerifier(verifiers=[str(members[0])]), examples, tmp_path / "one", QUICK)
    with pytest.raises(CheckpointError, match="is no verifier"):
        train(BlendVerifier(verifiers=[str(members[0]), str(tmp_path)]), examples, tmp_path / "two", QUICK)
    with pytest.raises(ConfigError, match="list of directories"):
        BlendVerifier(verifiers="linear/")
    with pytest.raises(CheckpointError, match=r"no blend\.json"):
        BlendVerifier(path=str(tmp_path)).verify("q", [])


def test_a_recipe_names_the_members():
    raw = {
        "name": "x",
        "sample": {
            "train": {"file": "x", "format": "genrm_release", "share": [0, 0.5]},
            "test": {"file": "x", "format": "genrm_release", "share": [0.5, 1]},
        },
        "evaluate": {"n": [1]},
        "verifiers": {
            "linear": {"kind": "linear"},
            "other": {"kind": "linear", "options": {"strength": 2.0}},
            "blend": {"kind": "blend", "builds_on": ["linear", "other"]},
        },
    }
    assert recipe.parse(raw, "test").verifiers["blend"].below == ("linear", "other")
    with pytest.raises(ConfigError, match=r"builds_on is 'orm'; it can be linear, other"):
        recipe.parse(recipe.changed(raw, ["verifiers.blend.builds_on=[linear, orm]"]), "test")
    with pytest.raises(ConfigError, match=r"a linear verifier builds on no other"):
        recipe.parse(recipe.changed(raw, ["verifiers.other.builds_on=linear"]), "test")

"""The likelihood-corrected verifier: its features and its fit, on any other verifier and without one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stepmark
from seeds import SEED
from stepmark.errors import CheckpointError, ConfigChanged, DataError
from stepmark.models import checkpoints
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.text import steps
from stepmark.types import Finish, Outcome, Verdict, Verification
from stepmark.verifiers.likelihood_corrected import RIDGE, LikelihoodCorrectedVerifier
from stepmark.verifiers.orm import OutcomeVerifier
from stepmark.verifiers.prm import ProcessVerifier

QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu", seed=SEED)


@pytest.fixture(scope="module")
def examples(problems, labelled):
    """Right solutions of the task, and wrong ones that break off its language, so that a generator that has learned it
    finds them less likely. One grade of six says the opposite."""
    examples = []
    for i, p in enumerate(problems[:24]):
        lines = p.reference.split("\n")
        wrong = "\n".join([*lines[:-1], "so 3 apples fewer Ben", lines[-1]])
        for sample, (text, right) in enumerate(((p.reference, True), (wrong, False))):
            verdict = Verdict.CORRECT if right is (i % 6 > 0) else Verdict.INCORRECT
            shares = [float(right)] * len(steps.split(text))
            examples.append(labelled(p, text, shares, verdict, sample=sample))
    return examples


@pytest.fixture(scope="module")
def run(tiny, problems, examples, tmp_path_factory):
    """A run directory with a generator, an orm, a prm, and three corrected verifiers: of each, and without another."""
    place = tmp_path_factory.mktemp("run") / "a"
    generator = str(place / "generator")
    train(Generator(tiny), problems[:100], place / "generator", replace(QUICK, epochs=4, lr=1e-2))
    train(OutcomeVerifier(generator, device="cpu"), examples, place / "orm", replace(QUICK, epochs=3))
    train(ProcessVerifier(generator, device="cpu"), examples, place / "prm", replace(QUICK, epochs=3))
    for name in ("orm", "prm", ""):
        verifier = str(place / name) if name else ""
        kind = LikelihoodCorrectedVerifier(generator, verifier=verifier, device="cpu")
        train(kind, examples, place / f"surprise_{name}", QUICK)
    return place


def plain_lowest(path, problem, solution, end=True):
    """Lowest log p of each step's tokens by a plain forward pass. The newline belongs to its line, the end token to the
    last one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    parts = [tokenizer(problem.question + "\n")["input_ids"]]
    lines = solution.text.split("\n")
    parts += [tokenizer(x + "\n" * (i + 1 < len(lines)))["input_ids"] for i, x in enumerate(lines)]
    parts[-1] += [tokenizer.eos_token_id] * end
    ids = [t for part in parts for t in part]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    lowest, start = [], len(parts[0])
    for part in parts[1:]:
        lowest.append(min(log_probs[t - 1, ids[t]].item() for t in range(start, start + len(part))))
        start += len(part)
    return lowest


def logit(p):
    return np.log(p / (1 - p))


def features(run, examples, name):
    """Each solution's [scores, 2] features, from plain forward passes and the other verifier's scores."""
    rows = []
    for problem, example in examples:
        lowest, scores = plain_lowest(run / "generator", problem, example.solution), None
        if name:
            verifier = stepmark.load_verifier(run / name, device="cpu")
            scores = verifier.verify(problem.question, [example.solution])[0].scores
            lowest = [min(lowest)] if name == "orm" else lowest
        rows.append(np.column_stack([logit(np.array(scores or [0.5] * len(lowest))), lowest]))
    return rows


@pytest.mark.robust
@pytest.mark.parametrize("name", ["orm", "prm", ""])
def test_the_fit_is_a_logistic_regression_on_the_weakest_steps(run, examples, name):
    from sklearn.linear_model import LogisticRegression

    x = features(run, examples, name)
    y = [float(example.grade.verdict is Verdict.CORRECT) for _, example in examples]
    stored = json.loads((run / f"surprise_{name}" / "likelihood_corrected.json").read_text())
    a, b, c = (stored["coefficients"][k] for k in ("logit", "log_likelihood", "constant"))
    assert stored["solutions"] == len(y)
    weakest = np.array([rows[np.argmin(rows @ [a, b])] for rows in x])
    expected = LogisticRegression(C=1 / (RIDGE * len(y)), tol=1e-10, max_iter=10_000).fit(weakest, y)
    assert [a, b] == pytest.approx(expected.coef_[0].tolist(), rel=5e-3, abs=2e-3)
    assert c == pytest.approx(expected.intercept_[0], rel=5e-3, abs=5e-3)
    # The scores are the regression's probabilities of all steps.
    problem, example = examples[1]
    verifier = stepmark.load_verifier(run / f"surprise_{name}", device="cpu")
    [scored] = verifier.verify(problem.question, [example.solution])
    assert scored.scores == pytest.approx(expected.predict_proba(x[1])[:, 1].tolist(), abs=2e-3)
    assert scored.score == min(scored.scores)
    assert len(scored.scores) == (1 if name == "orm" else len(example.labels))


@pytest.mark.robust
@pytest.mark.parametrize("separable", [False, True])
def test_coefficients_are_recovered(separable):
    from sklearn.linear_model import LogisticRegression

    from stepmark.verifiers.likelihood_corrected import _logistic

    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(3000, 2)) * [2.0, 5.0] + [0.0, -4.0]
    chance = 1 / (1 + np.exp(-(0.8 * x[:, 0] + 0.3 * x[:, 1] + 1.0)))
    y = (chance > 0.5 if separable else rng.random(3000) < chance).astype(float)
    expected = LogisticRegression(C=1 / (RIDGE * 3000), tol=1e-10, max_iter=10_000).fit(x, y)
    assert _logistic(x, y) == pytest.approx([*expected.coef_[0], expected.intercept_[0]], rel=1e-3)


@pytest.mark.robust
def test_the_likelihood_is_that_of_a_plain_forward_pass_with_the_end_token(run, problems, solve, tmp_path):
    from safetensors.torch import load_file, save_file

    run = shutil.copytree(run, tmp_path / "run")
    weights = load_file(run / "generator" / "model.safetensors")
    weights["model.embed_tokens.weight"][checkpoints.load_tokenizer(run / "generator").eos_token_id] *= 50
    save_file(
        weights, run / "generator" / "model.safetensors", metadata={"format": "pt"}
    )  # now the end token can be unlikely
    place = run / "surprise_"
    stored = json.loads((place / "likelihood_corrected.json").read_text())
    stored["coefficients"] = {"logit": 0.0, "log_likelihood": 0.5, "constant": 1.0}
    (place / "likelihood_corrected.json").write_text(json.dumps(stored))
    verifier, ends = stepmark.load_verifier(place, device="cpu"), 0
    for p in problems[:12]:
        for text in ("7", "a = 1\n7", p.reference):
            s = solve(text)
            lowest = plain_lowest(run / "generator", p, s)
            ends += lowest != plain_lowest(run / "generator", p, s, end=False)
            [verification] = verifier.verify(p.question, [s])
            assert [2 * (logit(x) - 1) for x in verification.scores] == pytest.approx(lowest, abs=1e-3)
    assert ends  # at least once the end token was the least likely token of its step


@pytest.mark.parametrize("name", ["orm", "prm", ""])
def test_a_run_directory_can_be_moved(run, examples, tmp_path, name):
    problem, example = examples[2]
    before = stepmark.load_verifier(run / f"surprise_{name}", device="cpu").verify(problem.question, [example.solution])
    moved = shutil.copytree(run, tmp_path / "elsewhere" / "b")
    away = run.with_name("away")
    run.rename(away)  # only the copies may be read
    try:
        after = stepmark.load_verifier(moved / f"surprise_{name}", device="cpu").verify(
            problem.question, [example.solution]
        )
    finally:
        away.rename(run)
    assert after == before


def test_a_run_reached_through_a_link_finds_its_models(run, examples, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    link = tmp_path / "deep" / "er" / "link"
    link.symlink_to(run / "surprise_prm")
    problem, example = examples[0]
    direct = stepmark.load_verifier(run / "surprise_prm", device="cpu").verify(problem.question, [example.solution])
    assert stepmark.load_verifier(link, device="cpu").verify(problem.question, [example.solution]) == direct


@pytest.mark.parametrize("name", ["orm", "prm", ""])
def test_what_cannot_be_scored_stays_unscored(run, solve, name):
    solutions = [solve("a\nb", finish=Finish.LENGTH), solve(" "), solve("7 + 7 = 14\n" * 100), solve("a\nb")]
    verifications = stepmark.load_verifier(run / f"surprise_{name}", device="cpu").verify("Q?", solutions)
    assert [v.outcome for v in verifications] == [Outcome.TRUNCATED, Outcome.FAILED, Outcome.TRUNCATED, Outcome.SCORED]
    assert [(v.scores, v.score) for v in verifications[:3]] == [((), 0.0)] * 3


def test_steps_and_questions_of_any_shape_get_a_score(run, solve):
    verifier = replace(stepmark.load_verifier(run / "surprise_", device="cpu"))
    for question, text in (("", "a"), ("", "a\nb\n"), ("Q", "\n\na\n\n\nb\n\n"), ("<eos>", "a\n<step>\nb")):
        [verification] = verifier.verify(question, [solve(text)])
        assert verification.outcome is Outcome.SCORED
        assert len(verification.scores) == len(solve(text).spans)
        assert all(0 < s < 1 for s in verification.scores)


def test_a_text_with_an_empty_prompt_gets_a_score(tiny, examples, tmp_path, solve):
    train(LikelihoodCorrectedVerifier(tiny, template="{question}", device="cpu"), examples, tmp_path / "out", QUICK)
    [verification] = stepmark.load_verifier(tmp_path / "out", device="cpu").verify("", [solve("a\nb")])
    assert len(verification.scores) == 2


def test_labels_of_one_kind_are_refused_and_more_labels_then_taken(tiny, problems, labelled, examples, tmp_path):
    all_right = [labelled(p, "a\nb", [1.0, 1.0]) for p in problems[:3]]
    with pytest.raises(DataError, match="3 graded solutions, all right or all wrong"):
        train(LikelihoodCorrectedVerifier(tiny, device="cpu"), all_right, tmp_path / "out", QUICK)
    done = train(LikelihoodCorrectedVerifier(tiny, device="cpu"), examples, tmp_path / "out", QUICK)
    assert done == train(LikelihoodCorrectedVerifier(tiny, device="cpu"), examples, tmp_path / "out", QUICK)
    problem, first = examples[0]
    changed = [(problem, replace(first, solution=replace(first.solution, text=first.solution.text + " ")))]
    with pytest.raises(ConfigChanged, match='"data"'):
        train(LikelihoodCorrectedVerifier(tiny, device="cpu"), changed + examples[1:], tmp_path / "out", QUICK)


def test_an_unfitted_verifier_says_so(tiny, solve):
    with pytest.raises(CheckpointError, match="never fitted"):
        LikelihoodCorrectedVerifier(tiny, device="cpu").verify("Q", [solve("a")])


def test_the_generators_length_limit_holds_too(run, examples, tmp_path, solve):
    short = checkpoints.create(
        tmp_path / "short", ["a = 1\n"] * 3, checkpoints.Shape(hidden=16, heads=2, max_length=30)
    )
    kind = LikelihoodCorrectedVerifier(str(short), verifier=str(run / "prm"), device="cpu")
    both_lengths = [*examples, *(replace_text(e, solve("x\ny")) for e in examples)]
    done = train(kind, both_lengths, tmp_path / "out", QUICK)
    assert 0 < done.examples <= 2 * len(examples)  # the generator can read only the short ones
    verifications = stepmark.load_verifier(tmp_path / "out", device="cpu").verify(
        "Q", [solve("7 = 7\n" * 20), solve("a\nb")]
    )
    assert [v.outcome for v in verifications] == [Outcome.TRUNCATED, Outcome.SCORED]
    assert isinstance(verifications[0], Verification)
    assert "30" in verifications[0].reason


def replace_text(example, solution):
    problem, labelled = example
    problem = replace(problem, question="Q")
    return problem, replace(labelled, solution=solution, labels=labelled.labels[:2])


def test_paths_in_the_card_are_relative(run):
    stored = json.loads((run / "surprise_prm" / "likelihood_corrected.json").read_text())
    assert {stored["generator"], stored["verifier"]} == {str(Path("..") / "generator"), str(Path("..") / "prm")}

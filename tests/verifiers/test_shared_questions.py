"""The question is read once for all of its candidates, and each gets the score that it has alone."""

import json

import pytest
import torch

from stepmark.models import checkpoints, packing
from stepmark.verifiers.dpo import ImplicitVerifier
from stepmark.verifiers.genrm import GenerativeVerifier
from stepmark.verifiers.likelihood_corrected import LikelihoodCorrectedVerifier
from stepmark.verifiers.orm import OutcomeVerifier
from stepmark.verifiers.prm import ProcessVerifier

QUESTION = "Ann has 4 apples. Ben has 3 more. Cat has 7 apples. How many?"
TEXTS = (
    "Ben has 4 + 3 = 7.\nSo that is 7 in all.\nThe answer is 7.",
    "Ben has 4 + 3 = 7.\nSo that is 7 in all.",  # the beginning of the first
    "Ben has 4 + 3 = 7.\nSo that is 7 in all.\nThe answer is 7.",  # the first again
    "Ben has 4 + 3 = 8.\nThe answer is 8.",
    "7",
    "Cat has 7 apples.\nBen has 4 + 3 = 7.\nAnn has 4.\nSo that is 18 in all.\nThe answer is 18.",
)


def prm(path, tmp_path, model_of):
    return ProcessVerifier(path, device="cpu")


def orm(path, tmp_path, model_of):
    return OutcomeVerifier(path, head="tag", device="cpu")


def dpo(path, tmp_path, model_of):
    reference = checkpoints.load_model(path, device="cpu")
    for parameter in reference.parameters():
        parameter.mul_(0.9)
    checkpoints.save(tmp_path, reference, checkpoints.load_tokenizer(path))
    return ImplicitVerifier(path, reference=str(tmp_path), score_beta=0.01, device="cpu")


def genrm(path, tmp_path, model_of):
    return GenerativeVerifier(path, device="cpu")


def likelihood(path, tmp_path, model_of):
    coefficients = {"logit": 1.0, "log_likelihood": 0.1, "constant": 1.0}
    fitted = {"generator": path, "verifier": "", "coefficients": coefficients}
    (tmp_path / "likelihood_corrected.json").write_text(json.dumps(fitted))
    return LikelihoodCorrectedVerifier(str(tmp_path), device="cpu")


@pytest.mark.parametrize("make", [prm, orm, dpo, genrm, likelihood], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "mistral_window", "gemma2", "lfm2"])
@torch.inference_mode()
def test_scores_are_those_of_each_solution_alone(model_of, tmp_path, solve, monkeypatch, make, name):
    verifier = make(model_of(name), tmp_path, model_of)
    solutions = [solve(text, sample=i) for i, text in enumerate(TEXTS)]
    verifier.verify(QUESTION, solutions[:1])  # loads and compares the models
    read = list[int]()  # tokens of each pass
    whole = packing.batch
    monkeypatch.setattr(packing, "batch", lambda rows, *rest: read.append(sum(map(len, rows[0]))) or whole(rows, *rest))
    alone = [verifier.verify(QUESTION, [s])[0] for s in solutions]
    assert len({v.scores for v in alone}) > 3
    separately = sum(read)
    read.clear()
    together = verifier.verify(QUESTION, solutions)
    assert len(read) == 1
    assert read[0] < 0.55 * separately
    for one, v in zip(alone, together, strict=True):
        assert v.scores == pytest.approx(one.scores, abs=1e-5)
        assert v.score == pytest.approx(one.score, abs=1e-5)
        assert v.solution_id == one.solution_id

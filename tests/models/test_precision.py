"""bfloat16 by itself: only where the processor has it, the model is large, and it says the same."""

import json
import logging

import pytest
import torch

import stepmark
from stepmark import machine
from stepmark.backends.local import LocalBackend, _loaded
from stepmark.data import notes
from stepmark.models import checkpoints, precision, scoring
from stepmark.stages.train import TrainSettings, train
from stepmark.types import Prompt, SamplingParams
from stepmark.verifiers.orm import OutcomeVerifier


@pytest.fixture(autouse=True)
def fresh():
    _loaded.cache_clear()
    yield
    _loaded.cache_clear()


def dtype_of(path: str) -> torch.dtype:
    return LocalBackend(path, device="cpu")._load()[0].model.dtype


def test_only_where_the_processor_has_it_and_the_model_is_large(tiny, monkeypatch):
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: True)
    assert dtype_of(tiny) is torch.float32
    monkeypatch.setattr(precision, "LARGE", 0)
    _loaded.cache_clear()
    assert dtype_of(tiny) is torch.bfloat16
    assert len(list(LocalBackend(tiny, device="cpu").sample([Prompt("p", "Ann has", n=3)], SamplingParams()))) == 3
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: False)
    _loaded.cache_clear()
    assert dtype_of(tiny) is torch.float32


def test_a_model_that_says_something_else_stays_in_float32(tiny, monkeypatch):
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "LARGE", 0)
    monkeypatch.setattr(precision, "MOST", -1.0)
    said = []
    with notes.heard(lambda _, note: said.append(note)):
        assert dtype_of(tiny) is torch.float32
    assert len(said) == 1
    assert "is loaded in float32: bfloat16 moves its probabilities by" in said[0] and "1.6 to 4 times" in said[0]


def test_the_divergence_is_that_from_float32(tiny):
    ids = list(range(10, 40))
    exact = checkpoints.load_model(tiny, device="cpu")
    assert precision.divergence(exact, ids) == 0
    narrow = checkpoints.load_model(tiny, dtype="bfloat16", device="cpu")
    with torch.no_grad():
        for parameter, source in zip(narrow.parameters(), exact.parameters(), strict=True):
            source.copy_(parameter.float())  # the rounded weights, in float32
        a, b = (m(torch.tensor([ids])).logits[0].float().log_softmax(-1) for m in (exact, narrow))
    expected = float((a.exp() * (a - b)).sum(-1).mean())
    assert precision.divergence(narrow, ids) == pytest.approx(expected, rel=0.05)
    assert 0 < expected < precision.MOST
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("head", ["tag", "token"])
def test_a_verifier_scores_in_bfloat16_where_it_is_faster_and_agrees(
    tiny, examples, tmp_path, monkeypatch, caplog, head
):
    settings = TrainSettings(batch_tokens=800, lr=3e-3, tensorboard=False, device="cpu")
    train(OutcomeVerifier(tiny, head=head, device="cpu"), examples, tmp_path, settings)
    card = json.loads((tmp_path / "verifier.json").read_text())
    assert card["options"]["dtype"] == "auto"
    question, solutions = examples[0][0].question, [x.solution for _, x in examples]

    def scores() -> list[float]:
        scoring._cached_model.cache_clear()
        return [v.score for v in stepmark.load_verifier(tmp_path, device="cpu").verify(question, solutions)]

    exact = scores()
    assert "bfloat16" not in caplog.text
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "LARGE", 0)
    with caplog.at_level(logging.WARNING):
        narrow = scores()
        stepmark.load_verifier(tmp_path, device="cpu").verify(question, solutions)
    assert caplog.text.count("scores in bfloat16, which is faster") == 1
    assert narrow != exact
    assert narrow == pytest.approx(exact, abs=0.03)
    with monkeypatch.context() as m:
        m.setattr(precision, "MOST", -1.0)
        assert scores() == exact
    assert "scores in float32: bfloat16 moves its probabilities by" in caplog.text
    card["options"]["dtype"] = "float32"  # as earlier versions wrote it
    (tmp_path / "verifier.json").write_text(json.dumps(card))
    assert scores() == exact

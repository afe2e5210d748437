"""bfloat16 by itself: only where the processor has it, the model is large, and it says the same."""

import pytest
import torch

from stepmark import machine
from stepmark.backends.local import LocalBackend, _loaded
from stepmark.data import notes
from stepmark.models import checkpoints, precision
from stepmark.types import Prompt, SamplingParams


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

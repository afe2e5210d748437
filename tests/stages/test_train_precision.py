"""bfloat16 in training by itself: only where it is faster and learns the same, and for a whole training."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from seeds import SEED
from stepmark import machine
from stepmark.models import precision
from stepmark.stages.train import Generator, TrainSettings, train

SETTINGS = TrainSettings(
    epochs=2, batch_tokens=400, row_tokens=200, log_every=1, tensorboard=False, device="cpu", seed=SEED
)


@pytest.fixture
def fast(monkeypatch):
    """A processor with instructions for bfloat16, for which any model is large."""
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "LARGE", 0)


def weights(path):
    return load_file(path / "model.safetensors")


def same(a, b):
    a, b = weights(a), weights(b)
    return all(torch.equal(a[k], b[k]) for k in a)


def stop(progress):
    if progress.done == 2:
        raise KeyboardInterrupt


def test_it_is_taken_where_it_is_faster_and_learns_the_same(tiny, problems, tmp_path, fast):
    for name in ("auto", "bfloat16", "float32"):
        done = train(Generator(tiny), problems[:20], tmp_path / name, replace(SETTINGS, precision=name))
        assert done.precision == {"auto": "bfloat16"}.get(name, name)
    assert same(tmp_path / "auto", tmp_path / "bfloat16")
    assert not same(tmp_path / "auto", tmp_path / "float32")


def test_a_slow_processor_and_a_small_model_stay_in_float32(tiny, problems, tmp_path, monkeypatch):
    for name, has_it, large in (("slow", False, 0), ("small", True, 1 << 30)):
        monkeypatch.setattr(machine, "computes_bfloat16", lambda has_it=has_it: has_it)
        monkeypatch.setattr(precision, "LARGE", large)
        assert train(Generator(tiny), problems[:5], tmp_path / name, SETTINGS).precision == "float32"


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [("COSINE", 1.01, r"gradient has a cosine of 1\.00 with that"), ("LOSS", -1.0, r"loss is \d+\.\d+ in it, and \d+")],
)
def test_where_it_learns_something_else_float32_is_taken(
    tiny, problems, tmp_path, fast, monkeypatch, caplog, bound, value, said
):
    monkeypatch.setattr(precision, bound, value)
    with caplog.at_level(logging.WARNING):
        assert train(Generator(tiny), problems[:20], tmp_path / "auto", SETTINGS).precision == "float32"
    assert "Training in float32, though bfloat16 would be faster: an example's" in caplog.text
    assert re.search(said, caplog.text)
    train(Generator(tiny), problems[:20], tmp_path / "float32", replace(SETTINGS, precision="float32"))
    assert same(tmp_path / "auto", tmp_path / "float32")


def test_a_resumed_training_keeps_its_precision(tiny, problems, tmp_path, fast, monkeypatch):
    settings = replace(SETTINGS, checkpoint_seconds=0.0)
    train(Generator(tiny), problems[:20], tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(Generator(tiny), problems[:20], tmp_path / "stopped", settings, stop)
    monkeypatch.setattr("stepmark.models.first_pass.disagreement", lambda *_: pytest.fail("compared again"))
    assert train(Generator(tiny), problems[:20], tmp_path / "stopped", settings).precision == "bfloat16"
    assert same(tmp_path / "whole", tmp_path / "stopped")


def test_on_a_machine_that_emulates_it_a_training_goes_on_in_float32_and_says_so(
    tiny, problems, tmp_path, fast, monkeypatch, caplog
):
    settings = replace(SETTINGS, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(Generator(tiny), problems[:20], tmp_path / "out", settings, stop)
    place = json.loads((tmp_path / "out" / ".training" / "place.json").read_text())
    assert place["chosen"]["precision"] == "bfloat16"
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert train(Generator(tiny), problems[:20], tmp_path / "out", settings).precision == "float32"
    assert "began in bfloat16, which is slow on this machine. It goes on in float32." in caplog.text

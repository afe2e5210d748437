"""Packed batches through models as their authors define them: windows, chunks, caps, sinks, recurrent layers."""

import logging
import random

import pytest
import torch
from architectures import ARCHITECTURES

from stepmark.models import checkpoints, forward, packing
from stepmark.models.encoding import Encoded
from stepmark.models.packing import Totals
from stepmark.stages.train import Generator

# Windows and chunks are 16 long, so that sequences of 30 and 45 tokens reach beyond them.
ALL = [name for name in ARCHITECTURES if name != "llama_dynamic"]


def sequence(size: int, length: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(6, size) for _ in range(length))


@pytest.fixture(params=["one mask", "segments"])
def scores(request, monkeypatch):
    """How many scores of queries against keys are computed: all of a row, or each sequence's own."""
    monkeypatch.setattr(packing, "WORTH", 0 if request.param == "segments" else 1 << 60)
    monkeypatch.setattr(packing, "FEWER", 1)
    return request.param


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_packed_outputs_are_those_of_each_sequence_alone(model_of, scores, name):
    model = checkpoints.load_model(model_of(name), device="cpu")
    plain = checkpoints.load_model(model_of(name), device="cpu", attention=None)
    assert (forward.fault(model) == "") == (name != "lfm2")
    size = model.config.vocab_size
    alone = [sequence(size, n, seed) for seed, n in enumerate((30, 30, 45, 38))]
    question, *rests = (sequence(size, n, 9 + n) for n in (20, 14, 25, 13))
    joint = Encoded(question + sum(rests, ()), parts=(34, 59), after=(19, 19))
    rows = [[Encoded(alone[0]), Encoded(alone[1])], [Encoded(alone[2])], [joint, Encoded(alone[3])]]
    batch = packing.batch(rows, 0)
    assert batch.mask.packed.dense == (scores == "one mask")
    hidden = forward.outputs(model, batch)
    logits = forward.output_layer(model)(hidden)
    places = [(0, range(30)), (0, range(30, 60)), (1, range(45)), (2, range(72, 110))]
    starts = (20, 34, 59)
    places += [(2, [*range(20), *range(a, a + len(r))]) for a, r in zip(starts, rests, strict=True)]
    for ids, (row, columns) in zip([*alone, *(question + r for r in rests)], places, strict=True):
        expected = plain(torch.tensor([ids])).logits[0]
        assert (logits[row, list(columns)] - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", ["mistral_window", "gemma2", "gemma3", "gpt_oss", "llama4", "lfm2"])
def test_packed_training_is_that_of_each_sequence_alone(model_of, scores, name):
    trainee = Generator(model_of(name))
    model, plain = trainee.build(), checkpoints.load_model(model_of(name), device="cpu", attention=None)
    size = plain.config.vocab_size
    texts = [sequence(size, n, n) for n in (30, 41, 37, 20)]
    encoded = [Encoded(ids, weights=(1.0,) * len(ids)) for ids in texts]
    loss = trainee.loss(model, packing.batch([encoded[:2], encoded[2:]], 0), Totals(1, 1))
    expected = sum(
        torch.nn.functional.cross_entropy(plain(torch.tensor([x])).logits[0, :-1], torch.tensor(x[1:]), reduction="sum")
        for x in texts
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: q.grad for name, q in plain.named_parameters() if q.grad is not None}
    largest = max(float(g.abs().max()) for g in gradients.values())
    for parameter, p in model.named_parameters():
        if parameter in gradients:
            assert (p.grad - gradients[parameter]).abs().max() < 1e-4 * largest, parameter


def test_a_model_that_cannot_take_packed_rows_says_so_once(model_of, caplog):
    model = checkpoints.load_model(model_of("lfm2"), device="cpu").train()
    batch = packing.batch([[Encoded((7, 8, 9)), Encoded((10, 11))]], 0)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        forward.outputs(model, batch)
        forward.outputs(model, batch)
    assert caplog.text.count("Lfm2ForCausalLM reads its sequences one by one, which is slower: in packed rows") == 1
    assert model.training


def test_a_saved_model_names_no_attention(model_of, tmp_path):
    """So that other programs load it with theirs."""
    path = model_of("gemma3")
    checkpoints.save(tmp_path, checkpoints.load_model(path, device="cpu"), checkpoints.load_tokenizer(path))
    assert "stepmark" not in (tmp_path / "config.json").read_text()

"""Shared attention as public models define it: windows, chunks, caps, sinks; and a few-shot prompt read once."""

import logging

import numpy as np
import pytest
import torch

from stepmark.backends.local import LocalBackend, attention
from stepmark.backends.local.cohort import Stream, Trunk
from stepmark.backends.local.engine import Draws, Engine
from stepmark.data import notes
from stepmark.models.checkpoints import load_model
from stepmark.types import Prompt, SamplingParams

ARCHITECTURES = ("llama", "qwen2", "gemma3", "mistral_window", "gemma2", "gpt_oss", "llama4")
WINDOW = 16  # of the tiny models


def trunks_of(vocab: int, first: int, lengths: tuple[int, ...]) -> list[Trunk]:
    """Texts that begin with the same `first` tokens, each with prefixes of several lengths to continue."""
    draw = np.random.default_rng(1)
    shared = draw.integers(5, vocab, first).tolist()
    trunks = []
    for length in lengths:
        ids = (*shared, *draw.integers(5, vocab, length - first).tolist())
        cuts = [c for c in (first + 1, (first + length) // 2, length) if c > 1]
        trunks.append(Trunk(ids, tuple(Stream(i, cut, 0, 40) for i, cut in enumerate(cuts))))
    return trunks


@pytest.mark.parametrize("first", [0, 20])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_logits_are_those_of_the_models_own_attention(model_of, name, first):
    """From half a window to more than two, where windows move and chunks begin within the tokens that are drawn."""
    model = load_model(model_of(name), device="cpu", attention=None)
    engine, plain = Engine(model), load_model(model_of(name), device="cpu", attention=None)
    assert engine.fault == ""
    trunks = trunks_of(engine.vocab, first, (first + 8, first + 24, first + 37))
    root = engine.root(trunks)
    assert len(root.ids) == (first if first else 0)
    cohort, logits = engine.encode(trunks, root)
    rows = [t.ids[: x.at] for t in trunks for x in t.streams]
    draw = np.random.default_rng(2)
    for step in range(25):
        for ids, row in zip(rows, logits, strict=True):
            expected = plain(torch.tensor([ids])).logits[0, -1]
            assert (row - expected).abs().max() < 1e-4 * expected.std(), (step, len(ids))
        new = draw.integers(5, engine.vocab, len(rows))
        rows = [(*ids, int(n)) for ids, n in zip(rows, new, strict=True)]
        cohort.put(new, np.zeros(len(rows)))
        logits = engine.decode([cohort])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sharing_holds_in_bfloat16(model_of, name):
    """There the model's own logits move with the shape of a call: no fixed difference tells right from wrong."""
    model = load_model(model_of(name), dtype="bfloat16", device="cpu", attention=None)
    assert Engine(model).fault == ""
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}  # as before the check


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gemma3", "mistral_window", "llama4"])
def test_a_window_that_is_not_seen_is_refused(model_of, monkeypatch, name, dtype):
    monkeypatch.setattr(attention.Rule, "first", lambda self, positions: np.zeros_like(positions))
    said = []
    with notes.heard(lambda _, note: said.append(note)):
        engine = Engine(load_model(model_of(name), dtype=dtype, device="cpu", attention=None))
    assert "standard deviations" in engine.fault
    assert len(said) == 1
    assert engine.fault in said[0] and "about four times as long" in said[0]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_common_prompt_is_read_once(model_of, monkeypatch, name):
    """A few-shot prompt before 100 questions."""
    backend = LocalBackend(model_of(name), device="cpu")
    shots = "Ann has 4 apples. Ben has 3 more. How many?\nBen has 4 + 3 = 7.\n\n"
    prompts = [Prompt(f"q{i}", f"{shots}Cat has {i} apples.\n") for i in range(100)]
    tokenizer = backend._load()[1]
    lengths = [len(tokenizer(p.context)["input_ids"]) for p in prompts]
    shared = len(tokenizer(shots)["input_ids"])
    read: list[int] = []
    whole = Engine._pass
    monkeypatch.setattr(Engine, "_pass", lambda self, ids, *rest: read.append(len(ids)) or whole(self, ids, *rest))
    rollouts = list(backend.sample(prompts, SamplingParams(max_tokens=1, temperature=0)))
    assert len(rollouts) == 100
    assert shared > 30
    assert sum(read) < shared + 100 * (max(lengths) - shared + 4)
    monkeypatch.undo()
    alone = {
        r.key: r.text for p in prompts[:7] for r in backend.sample([p], SamplingParams(max_tokens=1, temperature=0))
    }
    assert alone.items() <= {r.key: r.text for r in rollouts}.items()


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_the_last_common_prompt_serves_again_until_the_weights_change(model_of, name):
    """The second call begins with the same 40 tokens, the third with 30 of them, the fourth with 20 others."""
    model = load_model(model_of(name), device="cpu", attention=None)
    read, fresh = list[int](), Engine(load_model(model_of(name), device="cpu", attention=None))
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: read.append(inputs[0].shape[1]))
    engine = Engine(model)
    long, short = trunks_of(engine.vocab, 40, (48, 60)), trunks_of(engine.vocab, 30, (48, 60))
    assert long[0].ids[:30] == short[0].ids[:30]
    other = [Trunk(t.ids[7:], (Stream(0, 30, 0, 40),)) for t in trunks_of(engine.vocab, 27, (48, 60))]
    for trunks, reads in ((long, [40]), (long, []), (short, []), (long, []), (other, [20]), (long, [40])):
        read.clear()
        root = engine.root(trunks)
        assert read == reads
        _, logits = engine.encode(trunks, root)
        _, expected = fresh.encode(trunks)
        assert (logits - expected).abs().max() < 1e-4 * expected.std()
    model.get_input_embeddings().weight.mul_(1.5)  # as an optimizer does, in place
    read.clear()
    engine.root(long)
    assert read == [40]


def test_decoding_without_sharing_uses_no_deprecated_argument(model_of, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        backend = LocalBackend(model_of("llama"), device="cpu", sharing=False)
        rollouts = list(backend.sample([Prompt("q", "Ann has", n=3)], SamplingParams(max_tokens=6)))
    assert len(rollouts) == 3
    assert not [w for w in recwarn if "past_key_values" in str(w.message)]
    assert "past_key_values" not in caplog.text


def test_rollouts_that_end_are_given_out_while_others_go_on(model_of):
    """So that each can be stored at once."""
    model = load_model(model_of("llama"), device="cpu", attention=None)
    engine = Engine(model)
    budgets = (2, 30)
    trunks = [Trunk((7, 8, 9), tuple(Stream(i, 3, i, budget) for i, budget in enumerate(budgets)))]
    none = np.zeros(engine.vocab, dtype=bool)
    passes = 0
    whole = engine.decode

    def decode(cohorts):
        nonlocal passes
        passes += 1
        return whole(cohorts)

    engine.decode = decode  # type: ignore[method-assign]
    seen = [(done.name, passes) for done in engine.run(trunks, Draws(1.0, 1.0, none, none, lambda *_: False))]
    assert seen == [(0, 1), (1, 29)]

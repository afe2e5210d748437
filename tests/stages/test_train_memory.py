"""Training within the memory there is: passes, losses in pieces, and an error before the system ends the process."""

import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaMLP

from stepmark import machine
from stepmark.errors import ConfigError, StageError
from stepmark.models import checkpoints, memory, packing, scoring
from stepmark.models.packing import Totals
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.types import Problem

SETTINGS = TrainSettings(epochs=2, batch_tokens=600, row_tokens=60, log_every=1, tensorboard=False, device="cpu")


def problems(n=24):
    """Of many lengths, some longer than a row."""
    return [
        Problem(f"p{i}", f"{i} + {i}?", str(2 * i), "jsonl", demonstration=f"{i} + " * (1 + i % 9)) for i in range(n)
    ]


def weights(path):
    return load_file(path / "model.safetensors")


def test_passes_within_the_memory_give_the_same_weights(tiny, tmp_path, monkeypatch):
    train(Generator(tiny), problems(), tmp_path / "whole", SETTINGS)
    sizes: list[int] = []
    whole = packing.batch

    def batch(rows, *rest):
        made = whole(rows, *rest)
        sizes.append(made.ids.numel())
        return made

    monkeypatch.setattr("stepmark.models.first_pass.LARGE", 0.0)  # measure, though the model is small
    monkeypatch.setattr(packing, "batch", batch)
    monkeypatch.setattr(memory, "tokens_per_pass", lambda *_: 130)
    said = []
    train(Generator(tiny), problems(), tmp_path / "parts", SETTINGS, said.append)
    assert max(sizes[2:]) <= 130  # the first two are measurements, without and with gradient checkpointing
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    start = checkpoints.load_model(tiny, device="cpu").state_dict()
    moved = max((a[k] - start[k]).abs().max() for k in a)
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-3 * moved
    assert len(sizes) - 2 > said[-1].total  # more passes than updates
    assert said[0].note == "encoding 24 examples"  # from the start on
    assert "measuring the memory of a pass" in [p.note for p in said]
    started = next(p for p in said if p.total and p.note.startswith("first update"))
    assert started.done == 0 and started.total == said[-1].done and "passes of 130 tokens" in started.note


@dataclass(frozen=True, slots=True)
class Watched(Generator):
    """A generator that notes for each pass whether layers run a second time for the gradient."""

    seen: ClassVar[list[bool]] = []

    def loss(self, model, batch, totals):
        self.seen.append(bool(model.training and model.is_activation_checkpointing))
        return Generator.loss(self, model, batch, totals)


@pytest.mark.parametrize("lora", [0, 2])
def test_gradient_checkpointing_gives_the_same_weights(tiny, tmp_path, lora):
    plain = replace(SETTINGS, epochs=0.5, lora=lora, gradient_checkpointing=False)
    again = replace(plain, gradient_checkpointing=True)
    layers = []
    handle = LlamaMLP.forward
    for name, settings in (("plain", plain), ("again", again)):
        count = Counter()

        def forward(self, *args, count=count, **given):
            count["calls"] += self.training  # the comparison of packed rows is none of it
            return handle(self, *args, **given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LlamaMLP, "forward", forward)
            done = train(Generator(tiny), problems(), tmp_path / name, settings)
        layers.append(count["calls"])
        assert done.gradient_checkpointing == (name == "again")
    assert layers[1] == 2 * layers[0]
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "again")
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("available", "allowed", "expected"), [(1 << 40, 600, False), (1 << 40, 130, True), (0, 600, True)]
)
def test_gradient_checkpointing_comes_where_memory_is_short(tiny, tmp_path, monkeypatch, available, allowed, expected):
    """Where passes would be small, or the longest example would not fit otherwise."""
    monkeypatch.setattr("stepmark.models.first_pass.LARGE", 0.0)
    monkeypatch.setattr(memory, "tokens_per_pass", lambda *_: allowed)
    kept = {p.data_ptr(): p for p in Generator(tiny).build().parameters()}.values()
    size = 4 * sum(p.numel() for p in kept)
    monkeypatch.setattr(memory, "used", lambda: 0)  # so that the estimates decide
    model = Generator(tiny).build()
    longest = max(len(Generator(tiny).encode_example(p)) for p in problems())
    need = [3 * size + max(60, longest) * memory.estimate(model, checkpointing) for checkpointing in (False, True)]
    monkeypatch.setattr(machine, "available", lambda: available or sum(need) // 2)
    said = []
    Watched.seen.clear()
    done = train(Watched(tiny), problems(), tmp_path / "out", replace(SETTINGS, epochs=1), said.append)
    assert done.gradient_checkpointing is expected
    assert Watched.seen[0] is False and Watched.seen[-1] is expected
    assert json.loads((tmp_path / "out" / "trained.json").read_text())["gradient_checkpointing"] is expected


def test_a_model_without_gradient_checkpointing_says_so(tiny, tmp_path):
    @dataclass(frozen=True)
    class Plain(Generator):
        def build(self):
            return torch.nn.Linear(1, 1)

    with pytest.raises(ConfigError, match=r"a Linear has no gradient checkpointing\. Set gradient_checkpointing to"):
        train(Plain(tiny), problems(), tmp_path / "out", replace(SETTINGS, gradient_checkpointing=True))


def test_a_resumed_training_keeps_its_passes(tiny, tmp_path, monkeypatch):
    """Other passes would round otherwise, and the memory may be another one by then."""
    monkeypatch.setattr("stepmark.models.first_pass.LARGE", 0.0)
    monkeypatch.setattr(memory, "tokens_per_pass", lambda *_: 130)
    settings = replace(SETTINGS, checkpoint_seconds=0.0)
    train(Generator(tiny), problems(), tmp_path / "whole", settings)

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Generator(tiny), problems(), tmp_path / "stopped", settings, stop)
    monkeypatch.setattr(memory, "tokens_per_pass", lambda *_: pytest.fail("measured again"))
    train(Generator(tiny), problems(), tmp_path / "stopped", settings)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_training_that_can_not_fit_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "available", lambda: 1 << 14)
    with pytest.raises(StageError, match=r"needs about 0\.\d GiB more, and 0\.0 GiB are free.*Take a smaller model"):
        train(Generator(tiny), problems(), tmp_path / "out", SETTINGS)


def test_the_memory_of_a_block_is_measured():
    with memory.Peak(torch.device("cpu")) as peak:
        taken = torch.ones(64 << 20, dtype=torch.uint8)
        del taken
    if memory.used():  # not on every system
        assert 48 << 20 < peak.bytes < 200 << 20


def test_memory_that_was_freed_before_counts():
    """A second measurement, with gradient checkpointing, follows a first one."""
    if sys.platform != "linux":
        pytest.skip("elsewhere nothing is known of memory in use")
    held, taken = [], []
    for _ in range(4):
        with memory.Peak(torch.device("cpu")) as peak:
            block = [torch.ones(1 << 18) for _ in range(64)]  # 64 MiB
            held.append(torch.ones(1 << 18))  # above the block, which therefore is not given back by itself
            del block
        taken.append(peak.bytes)
    assert min(taken) > 48 << 20


def test_weights_of_a_mapped_file_do_not_count_for_a_pass(tmp_path):
    """safetensors maps its file, so that reading a weight for the first time takes memory."""
    save_file({"weight": torch.ones(4096, 4096)}, tmp_path / "one.safetensors")  # 64 MiB
    if not memory.used():
        pytest.skip("this system does not say how much memory is in use")
    taken = []
    for touched in (False, True):
        model = torch.nn.Linear(4096, 4096, bias=False, device="meta")
        model.load_state_dict(load_file(tmp_path / "one.safetensors"), assign=True)
        if touched:
            memory.touch(model)
        with memory.Peak(torch.device("cpu")) as peak:
            model(torch.ones(1, 4096))
        taken.append(peak.bytes)
    assert taken[1] < 32 << 20 < taken[0]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_losses_in_pieces_are_those_of_the_whole(tiny, monkeypatch, size):
    """Values and gradients."""
    generator = Generator(tiny)
    encoded = [generator.encode_example(p) for p in problems(6)]
    batch = packing.batch([encoded[:3], encoded[3:]], generator.pad_id)
    totals = Totals(1.0, 7.0, 1.0)
    results = []
    for logits in (1 << 25, size * len(checkpoints.load_tokenizer(tiny))):
        monkeypatch.setattr(packing, "LOGITS", logits)
        model = generator.build()
        loss = generator.loss(model, batch, totals)
        loss.backward()
        results.append((loss.detach(), {k: p.grad for k, p in model.named_parameters()}))
    (whole, whole_gradients), (pieces, gradients) = results
    assert pieces == pytest.approx(whole.item(), rel=1e-5)
    for name, gradient in whole_gradients.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-5), name


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LlamaConfig", {}),
        ("Gemma2Config", {"head_dim": 8, "final_logit_softcapping": 2.0}),
        ("CohereConfig", {"logit_scale": 0.25}),
        ("GraniteConfig", {"logits_scaling": 8.0}),
    ],
)
def test_the_output_layer_is_the_models_own(kind, settings):
    import transformers

    config = getattr(transformers, kind)(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **settings
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(7)[None]
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.allclose(scoring.output_layer(model)(hidden), expected, atol=1e-6)

"""The share of the peak: the operations of a pass are those that torch counts, and the figures reach every log."""

import json
from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from stepmark.models import checkpoints, forward, lora, packing, precision, throughput
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.types import Problem

SETTINGS = TrainSettings(batch_tokens=400, row_tokens=200, log_every=1, tensorboard=False, device="cpu")


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_the_operations_are_those_of_the_matrix_products(tmp_path, rank, tied):
    shape = checkpoints.Shape(hidden=128, layers=3, heads=4, vocab=600)
    path = checkpoints.create(tmp_path / "model", ["ab ba"], shape)
    generator = Generator(str(path))
    model = checkpoints.load_model(path, device="cpu", tie_word_embeddings=tied, new_head=True).train()
    if rank:
        lora.attach(model, rank, 0)
    example = generator.encode_example(Problem("p", "abab", "1", "jsonl", demonstration="ab" * 12))
    batch = packing.batch([[example]], generator.pad_id)
    assert not forward.fault(model)  # found out once for each model, and not counted
    with FlopCounterMode(display=False) as counted:
        generator.loss(model, batch, packing.Totals(1.0, 1.0, 1.0)).backward()
    # Attention, and in a pass that needs every position's logits those of the prompt, are not among ours.
    assert throughput.work(model).of_training([example]) == pytest.approx(counted.get_total_flops(), rel=0.12)


def test_frozen_weights_count_less(tiny):
    model = Generator(tiny).build()
    whole = throughput.work(model)
    assert whole.body == whole.learning and whole.head == whole.head_learning == model.lm_head.weight.numel()
    lora.attach(model, 2, 0)
    adapted = throughput.work(model)
    assert adapted.head_learning == 0
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapted.body - whole.body == adapted.learning == learning


def test_the_peak_is_measured_within_its_time():
    products = []
    ticks = iter(range(1000))

    def clock():  # every product takes a second
        products.append(next(ticks))
        return float(products[-1])

    assert throughput.peak("float32", "cpu", clock) == 2 * 512**3
    assert len(products) >= 2


def test_a_large_models_share_is_in_every_log(tiny, problems, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "LARGE", 0)
    said = []
    settings = replace(SETTINGS, tensorboard=True)
    done = train(Generator(tiny), problems[:40], tmp_path / "out", settings, said.append)
    log = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    shares = [x["share_of_peak"] for x in log]
    assert 0 < min(shares) <= done.share_of_peak <= max(shares) < 1
    assert "of peak" in said[-1].note
    assert json.loads((tmp_path / "out" / "trained.json").read_text())["share_of_peak"] == done.share_of_peak
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert {"loss", "lr", "tokens_per_second", "share_of_peak"} == set(events.Tags()["scalars"])

"""The training loop: its results, exact resuming, and the calls that it refuses."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seeds import SEED
from stepmark.errors import ConfigChanged, ConfigError, DataError
from stepmark.models import checkpoints, packing
from stepmark.models.encoding import Encoded
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.types import Grade, Problem, StepLabel, Verdict
from stepmark.verifiers.orm import OutcomeVerifier
from stepmark.verifiers.prm import ProcessVerifier

QUICK = TrainSettings(batch_tokens=400, row_tokens=200, log_every=2, tensorboard=False, device="cpu", seed=SEED)


def weights(path):
    return load_file(Path(path) / "model.safetensors")


def lines(path):
    return [json.loads(line) for line in (Path(path) / "train.jsonl").read_text().splitlines()]


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    """Ends a training from its own progress callback."""


@dataclass(frozen=True)
class Spy:
    """A trainee whose loss is constant, and that records the sequences of each update."""

    path: str
    seen: list
    lengths: tuple[int, ...] = ()
    value: float = 1.0
    pad_id: int = 0
    dropout: float = 0.0

    def build(self):
        model = torch.nn.Linear(1, 1)
        model.drop = torch.nn.Dropout(self.dropout)
        return model

    def encode_example(self, example):
        length = self.lengths[example % len(self.lengths)]
        return Encoded((example + 1,) * length, weights=(1.0,) * length)

    def loss(self, model, batch, totals):
        self.seen.append(sorted(set(batch.ids.flatten().tolist()) - {0}))
        return model.drop(model(torch.ones(8, 1))).mean() * 0 + self.value

    def save(self, model, out):
        torch.save(model.state_dict(), out / "weights.pt")


def test_a_kill_at_any_moment_changes_nothing(tiny, tmp_path):
    command = [sys.executable, Path(__file__).parent / "training_job.py", tiny, tmp_path, "8"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kills = json.loads(done.stdout)
    updates = json.loads((tmp_path / "whole" / "trained.json").read_text())["updates"]
    assert len({at for status, at in kills if status == signal.SIGKILL and 0 < at < updates}) >= 3, kills
    assert same(tmp_path / "whole", tmp_path / "killed")
    whole, killed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    assert [x["update"] for x in whole] == [*range(3, updates, 3), updates]
    timed = {"seconds": 0, "tokens_per_second": 0}
    assert [x | timed for x in killed] == [x | timed for x in whole]
    first, second = (json.loads((tmp_path / n / "trained.json").read_text()) for n in ("whole", "killed"))
    assert {**first, "path": ""} | timed == {**second, "path": ""} | timed
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.parametrize("every_token", [0.0, 0.3])
def test_shared_prompts_take_fewer_tokens_and_learn_the_same(tiny, examples, tmp_path, every_token):
    """Each question with five solutions. AdamW makes whole steps of rounded near-zero gradients, so the mean is
    compared."""
    settings = replace(QUICK, batch_tokens=20_000, lr=1e-5, epochs=1, warmup=0)
    data = [(problem, x) for problem, _ in examples[:4] for _, x in examples[:5]]
    trainee = OutcomeVerifier(tiny, every_token=every_token)
    alone, shared = (
        train(trainee, data, tmp_path / str(share), replace(settings, share_prompts=share)) for share in (False, True)
    )
    assert shared.tokens < 0.7 * alone.tokens
    assert (shared.examples, shared.updates) == (alone.examples, alone.updates) == (20, 1)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-5)
    assert not same(alone.path, tiny)
    for name, weight in weights(alone.path).items():
        assert float((weights(shared.path)[name] - weight).abs().mean()) < 0.05 * settings.lr, name


@pytest.mark.robust
def test_training_learns_and_reports(tiny, problems, tmp_path):
    reports = []
    settings = replace(QUICK, epochs=3, lr=3e-3)
    done = train(Generator(tiny), problems[:60], tmp_path / "out", settings, reports.append)
    log = lines(tmp_path / "out")
    assert log[-1]["loss"] < log[0]["loss"] - 1
    began = reports.index(next(r for r in reports if r.total))
    assert [r.note for r in reports[:began]] == ["encoding 60 examples", "loading the model"]
    shown = [r.done for r in reports[began:]]  # on a slow machine with some between the lines of the log
    assert shown == sorted(shown) and {0, *(x["update"] for x in log)} <= set(shown)
    assert {r.total for r in reports[began:]} == {done.updates} == {reports[-1].done}
    assert reports[-1].tokens_per_second == pytest.approx(done.tokens_per_second, rel=1e-3) or done.seconds < 1
    speeds = [x["tokens_per_second"] for x in log]
    assert min(speeds) <= done.tokens_per_second <= max(speeds)
    assert done.share_of_peak is None and "share_of_peak" not in log[0]
    assert done.examples == 60
    assert done.skipped == 0
    encoded = [Generator(tiny).encode_example(p) for p in problems[:60]]
    assert done.tokens == 3 * sum(map(len, encoded))
    assert max(x["lr"] for x in log) <= 3e-3
    assert log[-1]["lr"] == pytest.approx(3e-4, rel=0.05)
    model = checkpoints.load_model(tmp_path / "out", device="cpu")
    assert not all(
        torch.equal(a, b) for a, b in zip(model.parameters(), Generator(tiny).build().parameters(), strict=True)
    )


def test_a_finished_training_returns_at_once(tiny, problems, tmp_path, monkeypatch):
    done = train(Generator(tiny), problems[:10], tmp_path / "out", QUICK)
    monkeypatch.setattr(Generator, "build", lambda self: pytest.fail("built again"))
    assert train(Generator(tiny), problems[:10], tmp_path / "out", QUICK) == done
    other = replace(QUICK, checkpoint_seconds=1.0, tensorboard=True, device="auto")  # none of these changes a result
    assert train(Generator(tiny), problems[:10], tmp_path / "out", other) == done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, p, s: (g, p, replace(s, lr=0.5)), r'-.*"lr": 0\.001(.|\n)*\+.*"lr": 0\.5'),
        (lambda g, p, s: (replace(g, prompt_loss_weight=0.5), p, s), "prompt_loss_weight"),
        (lambda g, p, s: (g, p[:9], s), '"data"'),
        (lambda g, p, s: (g, [*p[:9], replace(p[9], demonstration="other")], s), '"data"'),
    ],
)
def test_another_configuration_is_refused_with_the_difference(tiny, problems, tmp_path, change, message):
    train(Generator(tiny), problems[:10], tmp_path / "out", QUICK)
    before = weights(tmp_path / "out")
    trainee, examples, settings = change(Generator(tiny), problems[:10], QUICK)
    with pytest.raises(ConfigChanged, match=message):
        train(trainee, examples, tmp_path / "out", settings)
    assert all(torch.equal(before[k], w) for k, w in weights(tmp_path / "out").items())


def test_another_checkpoint_under_the_same_path_is_refused(tiny, problems, tmp_path):
    base, out = shutil.copytree(tiny, tmp_path / "base"), tmp_path / "out"
    done = train(Generator(str(base)), problems[:10], out, QUICK)
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(ConfigChanged, match='"base"'):
        train(Generator(str(base)), problems[:10], out, QUICK)
    stored = json.loads((out / "training.json").read_text())
    assert len(stored.pop("base")) == 1
    (out / "training.json").write_text(json.dumps(stored))  # as earlier versions wrote it
    assert train(Generator(str(base)), problems[:10], out, QUICK) == done


def test_a_template_in_any_language_is_the_same_at_the_second_call(tiny, problems, tmp_path):
    trainee = Generator(tiny, template="Réponds: {question} 数学\n")
    assert train(trainee, problems[:5], tmp_path / "o", QUICK) == train(trainee, problems[:5], tmp_path / "o", QUICK)


@pytest.mark.robust
@pytest.mark.parametrize("kind", ["generator", "prm"])
def test_accumulation_changes_memory_and_nothing_else(tiny, problems, examples, tmp_path, kind):
    trainee = Generator(tiny) if kind == "generator" else ProcessVerifier(tiny, labels="soft", language_weight=0.5)
    training_examples = problems[:18] if kind == "generator" else examples
    for parts in (1, 4):
        settings = replace(QUICK, accumulate=parts, batch_tokens=1200, epochs=2)
        train(trainee, training_examples, tmp_path / str(parts), settings)
    one, four = weights(tmp_path / "1"), weights(tmp_path / "4")
    for k in one:
        torch.testing.assert_close(one[k], four[k], rtol=1e-4, atol=2e-5)
    for a, b in zip(lines(tmp_path / "1"), lines(tmp_path / "4"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.robust
def test_accumulated_gradients_are_the_same(tiny, examples):
    trainee = ProcessVerifier(tiny, labels="soft", language_weight=0.5)
    encoded = [trainee.encode_example(e) for e in examples]
    totals = packing.Totals(sum(len(e.targets) for e in encoded), sum(sum(e.weights[1:]) for e in encoded))
    gradients = []
    for size in (len(encoded), 5):
        model = trainee.build()
        for i in range(0, len(encoded), size):
            trainee.loss(model, packing.batch([[e] for e in encoded[i : i + size]], 0), totals).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("epochs", [1, 2.5, 7])
def test_each_epoch_holds_each_sequence_once_however_it_packs(tmp_path, epochs):
    # With these lengths some epochs pack into six updates, some into five.
    spy = Spy("", [], lengths=(5, 4, 3))
    settings = replace(QUICK, epochs=epochs, batch_tokens=20, row_tokens=10)
    done = train(spy, range(23), tmp_path / "out", settings)
    assert done.updates == len(spy.seen)
    whole = [i for update in spy.seen for i in update]
    for epoch in range(int(epochs)):
        assert sorted(whole[epoch * 23 : epoch * 23 + 23]) == list(range(1, 24))
    assert len(set(whole[int(epochs) * 23 :])) == len(whole[int(epochs) * 23 :])
    if epochs == 1:
        assert done.updates == 6
    if epochs == 7:
        assert done.updates < 42  # so some epochs did pack into fewer updates than the first


def test_dropout_is_the_same_after_a_stop(tmp_path):
    class Dropped(Spy):
        def loss(self, model, batch, totals):
            return model.drop(model(torch.ones(64, 1))).pow(2).mean()

    settings = replace(QUICK, epochs=4, batch_tokens=10, row_tokens=10, checkpoint_seconds=-1, log_every=1)

    def stop(progress):
        if progress.done == 7:
            raise Stop

    trainee = Dropped("", [], lengths=(5,), dropout=0.5)
    train(trainee, range(10), tmp_path / "whole", settings)
    with pytest.raises(Stop):
        train(trainee, range(10), tmp_path / "stopped", settings, stop)
    torch.rand(5)
    train(trainee, range(10), tmp_path / "stopped", settings)
    a, b = (torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in ("whole", "stopped"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [x["loss"] for x in lines(tmp_path / "whole")] == [x["loss"] for x in lines(tmp_path / "stopped")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_it_with_a_reason(tmp_path, value):
    with pytest.raises(DataError, match=rf"the loss became {value} at update 0.*[Ll]ower lr \(0\.001\)"):
        train(Spy("", [], lengths=(3,), value=value), range(4), tmp_path / "out", QUICK)
    assert not (tmp_path / "out" / "trained.json").exists()


def test_a_gradient_that_is_no_number_ends_it_too(tmp_path):
    class Steep(Spy):
        def loss(self, model, batch, totals):
            return (model.weight * 0).sqrt().sum()  # 0, with a slope that is not

    with pytest.raises(DataError, match="gradient's norm became nan at update 0"):
        train(Steep("", [], lengths=(3,)), range(4), tmp_path / "out", QUICK)


def test_nothing_to_learn_from(tiny, tmp_path):
    blank = [Problem(f"p{i}", "?", "1", "t") for i in range(3)]
    for examples in ([], blank):
        with pytest.raises(DataError, match=f"none of the {len(examples)} examples"):
            train(Generator(tiny), examples, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


def test_nothing_to_learn_from_says_what_became_of_solutions_and_rollouts(tiny, problems, labelled, tmp_path):
    examples = []
    for i, reason in enumerate(("two answers", "the reference 'one' is no number", "the reference 'two' is no number")):
        p, x = labelled(problems[0], f"I do not know {i}.\nNor why.", [1.0, 1.0], Verdict.UNGRADABLE, sample=i)
        lost = (StepLabel(0, 0, truncated=3, ungradable=5), StepLabel(0, 0, ungradable=1, source="outcome"))
        examples.append((p, replace(x, grade=Grade(Verdict.UNGRADABLE, reason), labels=lost)))
    with pytest.raises(DataError) as e:
        train(OutcomeVerifier(tiny), examples, tmp_path / "out", QUICK)
    for part in (
        "none of the 3 examples has a training signal",
        "0 of the 3 solutions could be graded, 3 could not (2 of these because: the reference 'one' is no number)",
        "of the 24 rollouts behind their step labels, 15 ungradable, 9 truncated",
        "One text: 'I do not know 1.\\nNor why.'",
        "max_tokens",
        "stop",
        "A base model needs examples: sample.few_shot=4 (--few-shot 4)",
    ):
        assert part in str(e.value)


def test_what_is_longer_than_the_model_reads_is_left_out_and_counted(tiny, problems, tmp_path):
    long = replace(problems[0], demonstration="7 + 7 = 14\n" * 100)
    done = train(Generator(tiny), [*problems[:5], long, Problem("b", "?", "1", "t")], tmp_path / "out", QUICK)
    assert (done.examples, done.skipped) == (5, 2)
    with pytest.raises(DataError, match="longer than the model's 256 positions"):
        train(Generator(tiny), [long], tmp_path / "none", QUICK)


def test_all_faults_of_settings_come_at_once():
    with pytest.raises(ConfigError) as e:
        TrainSettings(epochs=0, lr=float("nan"), accumulate=-1, warmup=1.0, precision="float8")
    assert len(e.value.faults) == 5


def test_the_generators_weights_and_end(tiny, problems):
    tokenizer = checkpoints.load_tokenizer(tiny)
    p = replace(problems[0], demonstration="")
    encoded = Generator(tiny, prompt_loss_weight=0.25).encode_example(p)
    question, answer = (len(tokenizer(t)["input_ids"]) for t in (p.question + "\n", p.reference))
    assert encoded.ids[:-1] == tuple(tokenizer(f"{p.question}\n{p.reference}")["input_ids"])
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert encoded.weights == (0.25,) * question + (1.0,) * (answer + 1)
    wrong = replace(p, demonstration="planted")
    assert "planted" in tokenizer.decode(Generator(tiny).encode_example(wrong).ids)


def test_tensorboard_files_are_written(tiny, problems, tmp_path):
    train(Generator(tiny), problems[:4], tmp_path / "out", replace(QUICK, tensorboard=True))
    assert list((tmp_path / "out" / "tensorboard").glob("events*"))

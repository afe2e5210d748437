"""LoRA: what learns, what is stored while it learns, and the two checkpoints that it leaves."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

from seeds import SEED
from stepmark.errors import ConfigError
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.run import missing
from stepmark.run.recipe import parse
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.types import Verdict

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
SETTINGS = TrainSettings(
    batch_tokens=400, row_tokens=200, lr=1e-2, lora=4, log_every=1, tensorboard=False, device="cpu", seed=SEED
)
IDS = torch.arange(9)[None]


def weights(path):
    return load_file(Path(path) / "model.safetensors")


def trainee(kind, path):
    if kind == "generator":
        return Generator(path)
    return registry.load("verifier", kind.partition("-")[0], path=path, **({"head": "token"} if "-" in kind else {}))


@pytest.fixture(scope="module")
def public(tiny, tmp_path_factory):
    """The tiny model as a public one: no tokens for tags, and an output layer of its own."""
    place = tmp_path_factory.mktemp("public")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    kept = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {"<step>": "aa", "<good>": "bb", "<bad>": "cc"}
    kept["added_tokens"] = [x for x in kept["added_tokens"] if x["content"] not in names]
    kept["model"]["vocab"] = {names.get(k, k): v for k, v in kept["model"]["vocab"].items()}
    from tokenizers import Tokenizer

    plain = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(kept)), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    model = checkpoints.load_model(tiny, device="cpu", dtype="float32", tie_word_embeddings=False, new_head=True)
    checkpoints.save(place / "model", model, plain)
    return str(place / "model")


@pytest.fixture(scope="module")
def graded(examples, labelled):
    """Examples with a right and a wrong solution of each question."""
    other = {Verdict.CORRECT: Verdict.INCORRECT, Verdict.INCORRECT: Verdict.CORRECT}
    text = "so it is 7\nThe answer is 8."
    return [*examples[:6], *(labelled(p, text, [1.0, 0.0], other[x.grade.verdict], sample=1) for p, x in examples[:6])]


@pytest.mark.parametrize("base", ["tiny", "public"])
@pytest.mark.parametrize("kind", ["generator", "prm", "prm-token", "orm", "genrm", "dpo"])
def test_peft_gives_the_merged_models_logits(kind, base, request, problems, graded, tmp_path):
    path = request.getfixturevalue(base)
    learner = trainee(kind, path)
    head = {"orm": "SequenceClassification", "prm-token": "TokenClassification"}.get(kind, "CausalLM")
    start = learner.build()
    done = train(learner, problems[:6] if kind == "generator" else graded, tmp_path / "out", SETTINGS)
    merged = checkpoints.load_model(done.path, head, device="cpu")
    adapter = tmp_path / "out" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert Path(config["base_model_name_or_path"]) == Path(path).resolve()
    adapted = getattr(peft, f"AutoPeftModelFor{head}").from_pretrained(
        str(adapter), **({} if head == "CausalLM" else {"num_labels": merged.config.num_labels})
    )
    with torch.inference_mode():
        ours = merged.get_input_embeddings().weight, merged(IDS, use_cache=False).logits
        theirs = adapted.get_input_embeddings().weight, adapted(IDS, use_cache=False).logits
    assert_close(theirs[0], ours[0], atol=1e-6, rtol=0)
    if kind != "orm":  # whose logits are for the last token
        assert_close(theirs[1], ours[1], atol=1e-4, rtol=0)
    else:
        tokens = IDS.clamp(min=3)
        assert_close(adapted(tokens).logits, merged(tokens).logits, atol=1e-4, rtol=0)
    # Every linear layer has learned, and so have a head and the rows of tags; all else is as it was.
    before, after = start.state_dict(), merged.state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    layers = {k for k in after if "_proj" in k}
    heads = {k for k in after if k.startswith("score")}
    tags = sorted(getattr(start, "tag_ids", ()))
    embeddings = {k for k in after if "embed_tokens" in k or "lm_head" in k} if tags else set()
    assert changed == layers | heads | embeddings
    for name in embeddings:
        rows = (after[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert set(rows) <= set(tags) and rows, name


def test_what_is_stored_in_training_is_what_learns(tiny, problems, tmp_path):
    def stop(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    settings = replace(SETTINGS, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(Generator(tiny), problems[:40], tmp_path / "out", settings, stop)
    state = torch.load(tmp_path / "out" / ".training" / "state.pt", weights_only=True)
    learned = sum(v.numel() for v in state["model"].values())
    kept = sum(v.numel() for s in state["optimizer"]["state"].values() for v in s.values() if v.ndim)
    assert all("lora_" in name for name in state["model"])
    assert kept == 2 * learned < 2 * sum(v.numel() for v in weights(tiny).values())


def test_a_killed_training_ends_with_the_same_weights(tiny, tmp_path):
    command = [sys.executable, Path(__file__).parent / "training_job.py", tiny, tmp_path, "3", "lora=2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert any(status == signal.SIGKILL and at > 0 for status, at in json.loads(done.stdout))
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        a, b = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_directory_of_an_earlier_version_goes_on(tiny, problems, tmp_path):
    settings = replace(SETTINGS, lora=0)
    done = train(Generator(tiny), problems[:10], tmp_path / "out", settings)
    stored = json.loads((tmp_path / "out" / "training.json").read_text())
    for key in ("lora", "lora_alpha", "gradient_checkpointing"):
        del stored["settings"][key]
    (tmp_path / "out" / "training.json").write_text(json.dumps(stored))
    assert train(Generator(tiny), problems[:10], tmp_path / "out", settings) == done


def test_without_peft_it_is_said_before_anything_starts(tiny, problems, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lora needs the package peft: pip install 'stepmark\[lora\]'"):
        train(Generator(tiny), problems[:10], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
    generator = {"path": tiny, "train": {"lora": 8}}
    recipe = parse({"name": "x", "task": {"name": "arithmetic"}, "generator": generator}, "here")
    with pytest.raises(ConfigError, match=r"generator\.train: train: lora needs the package peft"):
        missing.need(recipe, tmp_path / "run", lambda: ["train generator"])


def test_ranks_below_zero_are_refused():
    with pytest.raises(ConfigError, match=r"lora must be at least 0, got -1"):
        TrainSettings(lora=-1)

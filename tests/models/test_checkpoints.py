"""Model directories: created, loaded, and refused when something is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import CheckpointError, ConfigError
from stepmark.models import checkpoints, saving
from stepmark.models.checkpoints import Shape
from stepmark.run import recipe

IDS = torch.arange(6, 26)[None]


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_a_new_model_loads_with_plain_transformers_and_depends_on_its_seed_alone(tmp_path, problems, tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = Shape(hidden=16, heads=2, kv_heads=1, layers=1, vocab=300, max_length=64)
    texts = [p.question for p in problems[:20]]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # earlier random numbers have no effect
        checkpoints.create(tmp_path / name, texts, shape, seed)
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / n).eval() for n in "abc")
    assert torch.equal(a(IDS).logits, b(IDS).logits)
    assert not torch.equal(a(IDS).logits, c(IDS).logits)
    assert (a.config.hidden_size, a.config.num_hidden_layers, a.config.max_position_embeddings) == (16, 1, 64)
    ours = checkpoints.load_model(tmp_path / "a", device="cpu")
    assert torch.equal(a(IDS).logits, ours(IDS).logits)
    assert not ours.training
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len({tokenizer.convert_tokens_to_ids(t) for t in ("<step>", "<good>", "<bad>")}) == 3


def test_digits_are_split_only_when_asked(tmp_path):
    texts = ["12345 and 678"] * 50
    for digits, tokens in ((True, 5), (False, 1)):
        path = checkpoints.create(tmp_path / str(digits), texts, Shape(hidden=16, heads=2, digits=digits))
        assert len(checkpoints.load_tokenizer(path)("12345")["input_ids"]) == tokens


def test_any_text_can_be_encoded_and_comes_back(tiny):
    tokenizer = checkpoints.load_tokenizer(tiny)
    text = "naïve 数学 \x00\t😀 \n\n 1+1"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_existing_model_is_not_overwritten(copy):
    before = (copy / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="already holds a model"):
        checkpoints.create(copy, ["a"])
    assert (copy / "model.safetensors").read_bytes() == before


def test_all_faults_of_a_shape_come_at_once():
    with pytest.raises(ConfigError) as e:
        Shape(hidden=18, heads=4, kv_heads=3, layers=0, vocab=-1, intermediate=-5)
    message = "\n".join(e.value.faults)
    assert len(e.value.faults) == 5
    for word in ("layers", "vocab", "intermediate", "even multiple of heads", "multiple of kv_heads"):
        assert word in message


@pytest.mark.parametrize(
    ("sizes", "hidden", "heads"),
    [
        ({}, 64, 4),
        ({"hidden": 128}, 128, 4),
        ({"hidden": 90}, 90, 3),  # 4 heads would not fit
        ({"hidden": 14}, 14, 1),
        ({"heads": 6}, 72, 6),
        ({"kv_heads": 3}, 66, 3),
        ({"kv_heads": 2, "hidden": 12}, 12, 2),
        ({"hidden": 64, "heads": 8}, 64, 8),
    ],
)
def test_a_size_that_is_not_set_fits_those_that_are(sizes, hidden, heads):
    shape = Shape(**sizes)
    assert (shape.hidden, shape.heads) == (hidden, heads)


@given(hidden=st.integers(1, 300), heads=st.integers(0, 12), kv_heads=st.integers(1, 12))
def test_a_size_is_refused_only_where_no_other_could_fit_it(hidden, heads, kv_heads):
    """Of three sizes, those that are set are refused only if they don't fit by themselves."""
    fits = [h for h in ([heads] if heads else range(1, 301)) if hidden % (2 * h) == 0 and h % kv_heads == 0]
    try:
        shape = Shape(hidden=hidden, heads=heads, kv_heads=kv_heads)
    except ConfigError:
        assert not fits or (not heads and min(fits) > 64)
    else:
        assert shape.heads in fits
    Shape(heads=kv_heads * max(1, heads), kv_heads=kv_heads)
    Shape(kv_heads=kv_heads)


def test_a_recipes_shape_is_checked_before_the_run():
    raw = {"name": "x", "task": "arithmetic", "generator": {"init": {"hidden": 30, "heads": 4}, "train": {}}}
    with pytest.raises(ConfigError, match=r"generator.init: hidden \(30\) must be an even multiple of heads \(4\)"):
        recipe.parse(raw | {"verifiers": {"linear": {"kind": "linear"}}}, "test")


def test_every_accepted_shape_runs(tmp_path):
    with pytest.raises(ConfigError, match="even multiple"):
        checkpoints.create(tmp_path / "odd", ["a"], Shape(hidden=6, heads=2))
    path = checkpoints.create(tmp_path / "even", ["a"], Shape(hidden=4, heads=2, kv_heads=2, layers=1))
    assert checkpoints.load_model(path, device="cpu")(IDS).logits.isfinite().all()


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c", "nowhere"])
def test_a_missing_directory(path):
    for load in (checkpoints.load_model, checkpoints.load_tokenizer):
        with pytest.raises(CheckpointError, match="no checkpoint directory"):
            load(path)


def test_a_directory_without_config(copy):
    (copy / "config.json").unlink()
    for load in (checkpoints.load_model, checkpoints.load_tokenizer):
        with pytest.raises(CheckpointError, match=r"no config\.json.*stepmark init"):
            load(copy)


def test_pickled_weights_are_never_read(copy):
    model = checkpoints.load_model(copy, device="cpu")
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has pytorch_model\.bin; weights are read from safetensors only"):
        checkpoints.load_model(copy)


def _cut(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])


def _misshape(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))


def _drop(path):
    from safetensors.torch import load_file, save_file

    state = load_file(path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, "no model could be loaded"),
        (_misshape, "no model could be loaded"),
        (_drop, r"lacks 1 weights.*up_proj"),
        (lambda p: (p / "config.json").write_text("{"), "no model could be loaded"),
        (lambda p: (p / "model.safetensors").write_bytes(b"junk"), "no model could be loaded"),
    ],
)
def test_spoilt_checkpoints_are_refused_and_never_half_random(copy, spoil, said):
    spoil(copy)
    with pytest.raises(CheckpointError, match=said):
        checkpoints.load_model(copy, device="cpu")


def test_a_missing_head_is_random_only_where_it_is_to_be_trained(tiny):
    with pytest.raises(CheckpointError, match=r"which would be random: score"):
        checkpoints.load_model(tiny, "TokenClassification", device="cpu")
    model = checkpoints.load_model(tiny, "TokenClassification", device="cpu", new_head=True, num_labels=2)
    assert model.score.weight.shape == (2, 16)


def test_a_checkpoints_own_code_runs_only_when_trusted(copy, tmp_path):
    proof = tmp_path / "ran"
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    config["model_type"] = "nobodys"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(f"open({str(proof)!r}, 'w')\nraise SystemError\n")
    with pytest.raises(CheckpointError):
        checkpoints.load_model(copy, device="cpu")
    with pytest.raises(CheckpointError):
        checkpoints.positions(copy)
    assert not proof.exists()


def test_the_positions_of_a_checkpoint_with_its_own_code_are_known_where_it_is_trusted(copy):
    config = json.loads((copy / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "code.Own"}, "model_type": "nobodys", "max_position_embeddings": 77}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass Own(LlamaConfig):\n    model_type = 'nobodys'\n"
    )
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        checkpoints.positions(copy)
    assert checkpoints.positions(copy, trust_remote_code=True) == 77


def test_a_directory_that_is_written_again_is_read_again(copy, tiny, tmp_path):
    assert len(checkpoints.load_tokenizer(copy)) > 300
    shutil.rmtree(copy)
    checkpoints.create(copy, ["other words"] * 3, Shape(hidden=16, heads=2))
    assert len(checkpoints.load_tokenizer(copy)) < 300


def test_a_save_that_is_cut_short_leaves_no_config(tiny, tmp_path, monkeypatch):
    model, tokenizer = checkpoints.load_model(tiny, device="cpu"), checkpoints.load_tokenizer(tiny)
    real_replace = saving.os.replace

    def replace(a, b):
        if Path(b).name == "model.safetensors":
            raise KeyboardInterrupt
        real_replace(a, b)

    monkeypatch.setattr(saving.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path / "m", model, tokenizer)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        checkpoints.load_model(tmp_path / "m")
    monkeypatch.undo()
    checkpoints.save(tmp_path / "m", model, tokenizer)
    assert torch.equal(checkpoints.load_model(tmp_path / "m", device="cpu")(IDS).logits, model(IDS).logits)
    assert not (tmp_path / "m" / ".partial").exists()


def test_missing_devices_and_unknown_dtypes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checkpoints.resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="this machine has only cpu"):
        checkpoints.resolve_device("cuda:0")
    with pytest.raises(ConfigError, match="not one of auto, float32"):
        checkpoints.resolve_dtype("float8", "cpu")
    assert checkpoints.resolve_dtype("auto", "cpu") is torch.float32
    assert checkpoints.resolve_dtype("auto", "cuda:1") is torch.bfloat16

"""GGUF files: a tiny one that the test writes itself reads as the model it was made from."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stepmark.data.gguf import file_of
from stepmark.errors import CheckpointError
from stepmark.models import checkpoints
from stepmark.models import gguf as source
from stepmark.models.encoding import token_ids

gguf = pytest.importorskip("gguf")
TEXTS = ["Ann has 4 apples. Ben has 3 more.\n", "So that is 7 in all.\n"] * 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    return tmp_path / "a cache" / "stepmark"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    shape = checkpoints.Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=192, vocab=300, max_length=96)
    return checkpoints.create(tmp_path_factory.mktemp("original") / "llama", TEXTS, shape)


def write(path: Path, checkpoint: Path, architecture: str = "llama", quantised: bool = False) -> Path:
    """The checkpoint of a tiny Llama as a GGUF file, written with the format's own library."""
    model, tokenizer = checkpoints.load_model(checkpoint, device="cpu"), checkpoints.load_tokenizer(checkpoint)
    config = model.config
    file = gguf.GGUFWriter(path, architecture)
    file.add_context_length(config.max_position_embeddings)
    file.add_block_count(config.num_hidden_layers)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_rope_dimension_count(config.head_dim)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = {t["id"] for t in stored["added_tokens"]}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list(names)
    file.add_token_types([3 if i in special else 1 for i in range(len(names))])
    file.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]])
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_pad_token_id(tokenizer.pad_token_id)
    file.add_chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    ours = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        x = weight.float().numpy()
        for heads, part in ((config.num_attention_heads, "q_proj"), (config.num_key_value_heads, "k_proj")):
            if part in name:  # the format's rotary pairs lie side by side
                x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        for old, new in ours.items():
            name = name.replace(old, new)
        if quantised and x.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            file.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            file.add_tensor(name, np.ascontiguousarray(x))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def logits(path: object, text: str) -> torch.Tensor:
    ids = token_ids(checkpoints.load_tokenizer(path), text)[0]
    with torch.inference_mode():
        return checkpoints.load_model(path, device="cpu")(torch.tensor([ids])).logits


@pytest.mark.parametrize("quantised", [False, True])
def test_a_gguf_file_is_the_model_it_was_made_from(original, tmp_path, cache, quantised):
    path = write(tmp_path / "tiny model.gguf", original, quantised=quantised)
    ours, made = checkpoints.load_tokenizer(path), checkpoints.load_tokenizer(original)
    for text in (*TEXTS[:2], "  spaces\n\nand ünïcode 1234", "<eos>"):
        assert token_ids(ours, text) == token_ids(made, text)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (made.bos_token, made.eos_token, made.pad_token)
    assert "m.role" in ours.chat_template
    a, b = logits(path, TEXTS[0]), logits(original, TEXTS[0])
    assert (a - b).abs().max() < (0.1 if quantised else 1e-5) * b.std()
    assert checkpoints.positions(path) == 96

    # And its logits are those of transformers' own loading, to the last bit.
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ids = torch.tensor([token_ids(made, TEXTS[0])[0]])
    with torch.inference_mode():
        assert torch.equal(theirs(ids).logits, a)


def test_a_file_is_converted_once_wherever_it_lies(original, tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.gguf", original)
    first = source.directory(path)
    assert Path(first).parent == cache / "gguf"
    assert (
        json.loads((Path(first) / "source.json").read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    monkeypatch.setattr(source, "_read", lambda file: pytest.fail("converted again"))
    assert source.directory(path) == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert source.directory(path.rename(elsewhere / "a.gguf")) == first
    assert not list(cache.rglob("*.tmp"))


def test_another_file_under_the_same_path_is_another_model(original, tmp_path):
    path = write(tmp_path / "a.gguf", original)
    first, digest = source.directory(path), checkpoints.digest(path)
    write(path, original, quantised=True)
    assert source.directory(path) != first
    assert checkpoints.digest(path) != digest


def test_a_file_inside_an_installed_package(original, tmp_path, monkeypatch):
    package = tmp_path / "tiny_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write(package / "data" / "one.gguf", original)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (logits("gguf://tiny_package", TEXTS[1]) - logits(original, TEXTS[1])).abs().max() < 1e-4
    (package / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"one\.gguf, two\.gguf.*gguf://PACKAGE/one\.gguf"):
        source.directory("gguf://tiny_package")
    assert file_of("gguf://tiny_package/one.gguf").name == "one.gguf"
    with pytest.raises(CheckpointError, match="no package 'not_there' is installed"):
        checkpoints.check("gguf://not_there")


def test_files_that_are_no_model_say_so(original, tmp_path):
    whole = write(tmp_path / "whole.gguf", original).read_bytes()
    cut, empty, other = (tmp_path / f"{name}.gguf" for name in ("cut", "empty", "other"))
    cut.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"<html>not found</html>")
    write(other, original, architecture="rwkv9")
    with pytest.raises(CheckpointError, match=r"cut\.gguf can't be read as a model"):
        checkpoints.load_model(cut)
    with pytest.raises(CheckpointError, match=r"empty\.gguf is no GGUF file: it begins with b'<htm'"):
        checkpoints.load_tokenizer(empty)
    with pytest.raises(CheckpointError, match=r"rwkv9.*transformers doesn't read from GGUF"):
        checkpoints.load_model(other)
    with pytest.raises(CheckpointError, match=r"no file .*gone\.gguf"):
        checkpoints.check(tmp_path / "gone.gguf")


def test_samples_by_the_command(original, tmp_path, cache):
    path = write(tmp_path / "tiny.gguf", original)
    out = tmp_path / "solutions.jsonl"
    command = [sys.executable, "-m", "stepmark", "sample", "--task", "arithmetic", "--model", str(path), "--n", "2"]
    command += ["--problems", "3", "--max-tokens", "8", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["solutions"] == 6
    assert len(out.read_text().splitlines()) == 6

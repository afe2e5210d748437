"""Fingerprints: a copy has the same, a changed byte that a loader reads gives another, and the cache hides nothing."""

import json
import os
import shutil
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data import fingerprint
from stepmark.types import Problem


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)  # 5 MB: large enough for the cache
    return path


def cached():
    with fingerprint._place().open() as file:
        return json.load(file)


def aged(path, seconds=10.0):
    """Makes the file as old as one that was written some time ago, as far as a program can."""
    os.utime(path, (time.time() - seconds,) * 2)
    time.sleep(fingerprint.SETTLED + 0.1)  # the time of the status change can't be set


def test_a_copy_has_the_same_fingerprint_and_notes_beside_the_weights_do_not_count(checkpoint, tmp_path):
    first = fingerprint.of_model(checkpoint)
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "copy")
    (copy / "trained.json").write_text('{"seconds": 3}')
    (copy / "train.jsonl").write_text("{}\n")
    (copy / "README.md").write_text("A copy.")
    (copy / ".training").mkdir()
    assert fingerprint.of_model(copy) == first == fingerprint.of_model(f"{checkpoint}/")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_changed_byte_changes_it(checkpoint, name):
    first = fingerprint.of_model(checkpoint)
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)
    assert fingerprint.of_model(checkpoint) != first


def test_a_new_file_changes_it_and_a_renamed_one_too(checkpoint):
    seen = {fingerprint.of_model(checkpoint)}
    (checkpoint / "chat_template.jinja").write_text("{{ x }}")
    seen.add(fingerprint.of_model(checkpoint))
    (checkpoint / "chat_template.jinja").rename(checkpoint / "other.jinja")
    seen.add(fingerprint.of_model(checkpoint))
    assert len(seen) == 3


def test_weights_are_read_once_and_again_after_any_change(checkpoint, monkeypatch):
    weights = checkpoint / "model.safetensors"
    aged(weights)
    first = fingerprint.of_model(checkpoint)
    assert len(cached()) == 1  # of the weights alone
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "LARGE", 0)  # now a file that is hashed would be an error
        patch.setattr(fingerprint.hashlib, "file_digest", None)
        assert fingerprint.sha256(weights).hex() in cached().values()
    # As another program would restore it: the same size, inode and time of modification.
    status = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"\1")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint.of_model(checkpoint) != first


def test_a_file_that_was_just_written_is_not_cached(checkpoint):
    fingerprint.of_model(checkpoint)
    assert not fingerprint._place().exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": "b"}', "null"])
def test_a_broken_cache_costs_only_time(checkpoint, content):
    first = fingerprint.of_model(checkpoint)
    fingerprint._place().parent.mkdir(parents=True)
    fingerprint._place().write_text(content)
    assert fingerprint.of_model(checkpoint) == first


def test_a_cache_that_cannot_be_written_is_left_out(checkpoint, tmp_path, monkeypatch):
    first = fingerprint.of_model(checkpoint)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    aged(checkpoint / "model.safetensors")
    assert fingerprint.of_model(checkpoint) == first


def test_a_verifier_that_names_checkpoints_has_their_content(checkpoint, tmp_path):
    blend = tmp_path / "blend"
    blend.mkdir()
    (blend / "verifier.json").write_text(json.dumps({"kind": "blend", "options": {"template": "{question}\n"}}))
    (blend / "blend.json").write_text('{"verifiers": ["../model", "../back"]}')
    shutil.copytree(checkpoint, tmp_path / "back")
    (tmp_path / "back" / "verifier.json").write_text('{"kind": "x", "options": {"reference": "../blend"}}')  # a circle
    first = fingerprint.of_model(blend)
    (checkpoint / "model.safetensors").write_bytes(b"trained anew")
    assert fingerprint.of_model(blend) != first


def test_what_is_no_checkpoint_has_none_and_a_hub_id_has_its_revision(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for place in ("", "qwen", "owner/name", tmp_path / "empty", tmp_path / "nowhere"):
        assert fingerprint.of_model(place) is None
    for variable in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    refs = tmp_path / "cache" / "huggingface" / "hub" / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123456789abcdef0123456789abcdef01234567\n")
    assert fingerprint.of_model("owner/name") == "0123456789abcdef"


texts = st.text(max_size=20)


@given(texts, texts, texts, texts)
def test_problems_differ_where_their_texts_do(question, answer, reference, other):
    problem = Problem("p", question, answer, "t", reference)
    [short], [long] = (fingerprint.of_problems([problem], answers).values() for answers in (False, True))
    assert long.startswith(short) and len(long) == 2 * len(short)
    for changed, counts in (
        (replace(problem, question=other), question != other),
        (replace(problem, answer=other), answer != other),
        (replace(problem, reference=other), reference != other),
    ):
        assert (fingerprint.of_problems([changed], True)["p"] != long) == counts
        assert (fingerprint.of_problems([changed], False)["p"] != short) == (changed.question != question)
    assert fingerprint.of_problems([replace(problem, demonstration=other, task="u")], True) == {"p": long}

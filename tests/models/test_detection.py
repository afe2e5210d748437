"""Which family a public verifier belongs to: by its files in a fixed order, or an error that names the candidates."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from public_models import FAMILIES
from safetensors.torch import load_file, save_file

import stepmark
from stepmark.errors import CheckpointError, ConfigError, UnknownName
from stepmark.models.detection import Evidence, detect
from stepmark.plugins import registry

NAMES = registry.names("reading")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: FAMILIES[name](root / name) for name in ("qwen_prm", "rlhflow", "skywork")}


def renamed(place, name):
    return shutil.copytree(place, place.parent / name)


def change(place, **fields):
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_class_of_two_families_under_an_unknown_name_is_refused_with_both(models):
    place = renamed(models["qwen_prm"], "my-copy")
    with pytest.raises(CheckpointError, match="several public families") as e:
        stepmark.load_verifier(place)
    assert "qwen_prm, reasonflux" in str(e.value)
    assert all(x in str(e.value) for x in ("Qwen2ForProcessRewardModel", "score.0.bias", "my-copy", "--reading"))
    assert stepmark.load_verifier(place, reading="reasonflux").reading == "reasonflux"


def test_a_language_model_is_no_verifier_until_its_family_is_named(models):
    place = renamed(models["rlhflow"], "finetuned")
    with pytest.raises(CheckpointError, match="no public family is known") as e:
        stepmark.load_verifier(place)
    assert "Possible here: eurus, math_psa, math_shepherd, prm800k, rlhflow" in str(e.value)
    assert stepmark.load_verifier(place, reading="rlhflow").reading == "rlhflow"
    with pytest.raises(UnknownName, match="rlhflow"):
        stepmark.load_verifier(place, reading="rhlflow")
    with pytest.raises(ConfigError, match="separatr"):
        stepmark.load_verifier(place, reading="skywork", options={"separatr": "\n"})


def test_auto_map_and_weights_tell_where_architectures_are_silent(models):
    place = renamed(models["skywork"], "a")
    change(place, architectures=None)
    assert stepmark.load_verifier(place).reading == "skywork"  # by v_head.summary
    place = renamed(models["qwen_prm"], "Qwen2.5-Math-PRM-72B")
    change(place, architectures=[])
    assert stepmark.load_verifier(place).reading == "qwen_prm"  # by auto_map, then its name


def test_an_architecture_without_its_weights_is_refused(models):
    place = renamed(models["qwen_prm"], "Qwen2.5-Math-PRM-1B")
    weights = load_file(place / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="is no verifier"):
        stepmark.load_verifier(place)
    verifier = stepmark.load_verifier(place, reading="qwen_prm", device="cpu")
    with pytest.raises(CheckpointError, match=r"score\.0\.weight"):
        stepmark.verify(verifier, "How many?", ["It is 7."])


def test_pickled_weights_are_refused(models):
    place = renamed(models["skywork"], "b")
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors only"):
        stepmark.load_verifier(place)


def test_a_repository_in_the_hubs_cache_is_known_by_its_id(models, tmp_path, monkeypatch):
    cached = tmp_path / "models--RLHFlow--Llama3.1-8B-PRM-Mistral-Data"
    shutil.copytree(models["rlhflow"], cached / "snapshots" / "0a1b")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0a1b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    verifier = stepmark.load_verifier("RLHFlow/Llama3.1-8B-PRM-Mistral-Data", device="cpu")
    assert verifier.reading == "rlhflow"
    [found] = stepmark.verify(verifier, "How many?", ["It is 7."])
    assert 0 < found.score < 1


def test_the_weights_of_a_repository_are_not_fetched_before_its_family_is_known(models, tmp_path, monkeypatch):
    fetched = []

    def snapshot_download(repository, allow_patterns):
        fetched.append(allow_patterns)
        return str(tmp_path / repository)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    there = tmp_path / "someone" / "finetuned"
    shutil.copytree(models["qwen_prm"], there, ignore=shutil.ignore_patterns("*.safetensors"))
    names = dict.fromkeys(load_file(models["qwen_prm"] / "model.safetensors"), "model-1.safetensors")
    (there / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="several public families"):
        stepmark.load_verifier("someone/finetuned")
    assert fetched
    assert not any("*.safetensors" in patterns for patterns in fetched)
    there.rename(tmp_path / "someone" / "Qwen2.5-Math-PRM-7B")
    assert stepmark.load_verifier("someone/Qwen2.5-Math-PRM-7B").reading == "qwen_prm"
    assert "*.safetensors" in fetched[-1]


parts = st.sampled_from(
    ["Qwen2ForPrmModel", "Qwen2ForProcessRewardModel", "LlamaForCausalLM", "BertForMaskedLM", "XForTokenClassification"]
)
keys = st.sampled_from(["score.0.weight", "score.2.weight", "v_head.summary.weight", "score.weight", "lm_head.weight"])
repositories = st.sampled_from(["VersaPRM", "Qwen2.5-Math-PRM-7B", "ReasonFlux-PRM-7B", "x", "Math-psa"])


@given(st.sets(parts, max_size=2), st.sets(keys), st.sets(st.just("<extra_0>")), repositories, st.integers(1, 3))
def test_what_is_found_fits_all_that_was_seen(architectures, weights, tokens, repository, labels):
    seen = Evidence("/x", repository, tuple(sorted(architectures)), frozenset(weights), frozenset(tokens), labels)
    try:
        name = detect(seen)
    except CheckpointError as e:
        assert "--reading" in str(e)
        return
    signs = registry.find("reading", name).signs
    assert signs.fits(seen)
    assert any(signs.said_by(seen).values())

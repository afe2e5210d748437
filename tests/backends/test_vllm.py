"""The backend `vllm`: its errors without vLLM, and with vLLM the contract and vllm_inside.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from stepmark.errors import CheckpointError, ConfigError
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.types import Prompt, SamplingParams

HERE = Path(__file__).parent


def test_all_invalid_settings_are_reported_at_once():
    with pytest.raises(ConfigError) as e:
        registry.load("backend", "vllm", path="x", dtype="float8", gpu_memory=1.5, max_length=-1, tensor_parallel=0)
    assert len(e.value.faults) == 4


def test_without_vllm_it_says_what_to_install(tiny, monkeypatch):
    from stepmark.backends import vllm

    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(vllm, "_loaded", vllm._loaded.__wrapped__)
    with pytest.raises(ConfigError, match="pip install"):
        list(registry.load("backend", "vllm", path=tiny).sample([Prompt("p", "Ann")], SamplingParams()))


def test_a_missing_checkpoint_is_reported_before_missing_vllm(tmp_path):
    backend = registry.load("backend", "vllm", path=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="none"):
        list(backend.sample([Prompt("p", "Ann")], SamplingParams()))


def test_a_gguf_file_is_converted_first(tiny, tmp_path, monkeypatch):
    from stepmark.backends import vllm
    from stepmark.models import gguf

    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(gguf, "directory", lambda path: tiny if path.endswith(".gguf") else path)
    loaded = []
    monkeypatch.setattr(vllm, "_loaded", lambda path, *rest: loaded.append((path, rest[-1])) or vllm_is_missing())
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="missing"):
        list(vllm.VLLMBackend(str(tmp_path / "model.gguf")).sample([Prompt("p", "Ann")], SamplingParams()))
    assert loaded == [(tiny, checkpoints.version(tiny))]


def vllm_is_missing():
    raise ConfigError("missing")


def test_it_keeps_the_contract_and_agrees_with_the_local_engine(vllm):
    root = HERE.parents[1]
    files = [str(HERE / "test_backends_contract.py"), str(HERE / "vllm_inside.py")]
    options = ["-q", "-k", "vllm", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = ["nice", "-n", "10", vllm.python, "-m", "pytest", *options, *files]
    environment = vllm.environment | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert "passed" in summary
    assert "skipped" not in summary

"""The core on a system that is not Linux: without the calls, modules and files that only Linux or Unix has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
import torch

import stepmark
from stepmark import machine
from stepmark.errors import ConfigError
from stepmark.models import checkpoints
from stepmark.run import recipe

DEMO = Path(__file__).parents[1] / "recipes" / "demo.yaml"
# Python imports this file at the start of every process, of workers too. Other packages know by the system's name what
# it has, so only our calls fail.
POORER = """
import builtins, functools, io, os, sys

del os.sched_getaffinity

def ours():
    frame, near = sys._getframe(), 0
    while frame is not None and near < 6:  # pathlib may stand between
        if frame.f_globals.get("__name__", "").startswith("stepmark"):
            return True
        frame, near = frame.f_back, near + 1
    return False

def wrapped(home, name, refused):
    call = getattr(home, name)

    @functools.wraps(call)
    def wrapper(*given, **named):
        if ours():
            refused(*given)
        return call(*given, **named)

    setattr(home, name, wrapper)

def no_call(*given):
    raise AttributeError("module 'os' has no such attribute")

def no_module(name, *given):
    if name in ("fcntl", "resource", "pwd", "grp", "termios"):
        raise ImportError(f"No module named {name!r}")

def no_file(path, *given):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(path))

for name in ("sysconf", "fork", "pread", "pwrite", "getloadavg"):
    wrapped(os, name, no_call)
wrapped(builtins, "__import__", no_module)
wrapped(builtins, "open", no_file)
wrapped(io, "open", no_file)
"""


@pytest.fixture
def poorer(tmp_path):
    """Python on such a system: arguments -> what it prints."""
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "sitecustomize.py").write_text(POORER)
    source = str(Path(stepmark.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "system"), source])}

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_doctor_says_what_it_can(poorer):
    found = {name: check["found"] for name, check in json.loads(poorer("-m", "stepmark", "doctor", "--json")).items()}
    assert found["cores"] == str(os.cpu_count())
    assert found["memory"].startswith("unknown")


def test_a_whole_run(poorer, tmp_path):
    metrics = json.loads(poorer("-m", "stepmark", "run", DEMO, *small_run.CHANGES, "--out", tmp_path / "run", "--json"))
    assert {"pass@1", "self_consistency", "prm", "oracle"} <= set(metrics["best_of_n"])
    assert f"{os.cpu_count()} cores" in (tmp_path / "run" / "report.html").read_text()


def test_formulas_are_compared_without_limits_of_memory(poorer):
    code = """
from stepmark import Problem
from stepmark.plugins import registry
problem = Problem("p", "What is it?", "x/2 + x/2", "made")
print(*(registry.load("grader", "symbolic").grade(rf"So \\boxed{{{said}}}", problem).verdict for said in ("x", "2x")))
"""
    assert poorer("-c", code).split() == ["correct", "incorrect"]


def test_what_this_machine_has():
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert machine.memory() is None or machine.memory() > 2**28
    assert machine.processor()
    assert machine.describe().startswith(f"{machine.processor()}, {machine.cores()} cores")


def test_a_recipe_may_ask_for_the_gpu_of_a_mac():
    raw = {
        "name": "mac",
        "task": "arithmetic",
        "generator": {"path": "my-model", "backend": {"name": "local", "options": {"device": "mps"}}},
        "verifiers": {"prm": {"kind": "prm", "train": {"device": "mps"}}},
    }
    assert recipe.parse(raw, "test").verifiers["prm"].train.device == "mps"


@pytest.mark.parametrize("there", [False, True])
def test_the_gpu_of_a_mac_is_used_where_it_is_asked_for(monkeypatch, there):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checkpoints.resolve_device("auto") == "cpu"
    if there:
        assert checkpoints.resolve_device("mps") == "mps"
    else:
        with pytest.raises(ConfigError, match="got device 'mps', but this machine has only cpu"):
            checkpoints.resolve_device("mps")
    assert checkpoints.resolve_dtype("auto", "mps") is torch.float32
    with pytest.raises(ConfigError, match="torch knows no device 'gpu'"):
        checkpoints.resolve_device("gpu")

"""The checks of `stepmark doctor`: what this machine has, what is missing, and what it is needed for.

stepmark doctor
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepmark import machine
from stepmark.machine import version


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    what: str  # what was checked
    ok: bool  # False is a warning: something will not work, or not well
    found: str  # the version, number or size on this machine
    advice: str = ""  # what to do if not ok


def checks() -> Iterator[Check]:
    """The results of all checks. Imports torch, if it is installed, to list devices."""
    yield Check("stepmark", True, version("stepmark") or "not installed, run from its source")
    yield Check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or later")
    cores = machine.cores()
    yield Check("cores", cores > 1, str(cores), "use one worker: give workers=1")
    memory = machine.memory()
    found = "unknown: this system does not say" if memory is None else f"{memory / 2**30:.1f} GiB"
    yield Check("memory", memory is None or memory >= 4 * 2**30, found, "4 GiB or more is comfortable for two workers")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check("disk", free >= 2, f"{free:.1f} GiB free in {Path.cwd()}", "free some space: runs keep checkpoints")
    yield from _torch(cores)
    for package, extra, use in (
        ("transformers", "train", "models"),
        ("safetensors", "train", "checkpoints"),
        ("tensorboard", "train", "training curves outside the report"),
        ("sympy", "math", "the grader `symbolic`"),
        ("pyarrow", "parquet", "Parquet files of questions"),
        ("gguf", "gguf", "models in GGUF files"),
        ("peft", "lora", "training with LoRA"),
    ):
        installed = version(package)
        yield Check(
            package, bool(installed), installed or f"missing, needed for {use}", f"pip install 'stepmark[{extra}]'"
        )
    extras = ((p, version(p)) for p in ("datasets", "fastapi", "ray"))
    yield Check("optional", True, ", ".join(f"{p} {v or 'not installed'}" for p, v in extras))


def _torch(cores: int) -> Iterator[Check]:
    if not version("torch"):
        yield Check("torch", False, "missing, needed for models", "pip install torch, then 'stepmark[train]'")
        return
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as e:
        yield Check("torch", False, f"{version('torch')} can't be imported: {e}", "install it again")
        return
    yield Check("torch", True, str(torch.__version__))
    threads = torch.get_num_threads()
    advice = "with several workers set OMP_NUM_THREADS=1; worker processes do so by themselves"
    yield Check("threads", threads == 1 or cores == 1, f"{threads} for each matrix product in this process", advice)
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Check("devices", True, ", ".join(devices))

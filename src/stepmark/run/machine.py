"""The machine in one line, for reports and `stepmark doctor`.

stepmark doctor
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path


def describe() -> str:
    """Processor, cores, memory, and the versions of Python and the main packages."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{platform.machine()}, {cores} cores, {memory:.0f} GiB", f"Python {platform.python_version()}"]
    parts += [f"{name} {number}" for name in ("stepmark", "torch", "transformers") if (number := version(name))]
    return " · ".join(parts)


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; False where that can't be known."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def version(package: str) -> str:
    """The installed version of a package, "" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

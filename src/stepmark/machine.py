"""The machine: how many cores and how much memory there are, on any system, and one line about it for reports.

stepmark doctor
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path


def cores() -> int:
    """Cores that this process may use; where the system can't say, all cores."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of main memory; None where the system can't say, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def available() -> int:
    """Bytes of memory that are available; half of all, or 4 GiB, where the system can't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return (memory() or 8 * 2**30) // 2


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; False where that can't be known."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def processor() -> str:
    """The processor's name, or at least its kind, such as arm64."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def describe() -> str:
    """Processor, cores, memory, and the versions of Python and the main packages."""
    size = memory()
    parts = [processor(), f"{cores()} cores", *([f"{size / 2**30:.0f} GiB"] if size else [])]
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {number}" for name in ("stepmark", "torch", "transformers") if (number := version(name))]
    return " · ".join([", ".join(parts), *versions])


def version(package: str) -> str:
    """The installed version of a package, "" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

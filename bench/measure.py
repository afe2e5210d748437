"""What the benchmarks share: one thread, a process of its own for each contender, and which machine it was."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """The result of `function` in a fresh process: nothing that one contender leaves behind helps or harms another."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_tell, args=(there, function, args))
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        process.join()
        raise SystemExit(
            f"{function.__name__} ended with exit status {process.exitcode}; its last words are above."
        ) from None
    process.join()
    return result


def _tell(there: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    there.send(function(*args))


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

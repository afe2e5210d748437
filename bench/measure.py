"""What the benchmarks share: one thread, a process of its own for each contender, and which machine it was."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
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


def runs(
    paths: Sequence[Path], holds: str = "config.json", why: str = "give directories that `stepmark run` made"
) -> list[Path]:
    """The runs of one seed each. Stops with a message where one lacks the file that `holds` names."""
    found = [run for path in paths for run in (sorted(path.glob("seed-*")) or [path])]
    if bad := [str(run) for run in found if not (run / holds).is_file()]:
        raise SystemExit(f"no {holds} in {', '.join(bad)}: {why}.")
    return found


def keep(script: str, figures: Mapping[str, Any], out: str | Path) -> None:
    """A benchmark's figures, with the command, the machine and its load: written to `out`, printed as one line."""
    asked = {
        "command": shlex.join(["python", f"bench/{script}", *sys.argv[1:]]),
        "machine": machine(),
        "load_average": [round(x, 1) for x in os.getloadavg()],  # above 1 or 2, others were computing too
    }
    result = asked | dict(figures)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


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

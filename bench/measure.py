"""Shared by the benchmarks: one thread, a process of its own for each contender, the limit of the machine, and a record
of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepmark.machine import processor

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """The result of `function` in a fresh process, so that one contender cannot influence another."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(
            f"{function.__name__} ended with exit status {process.exitcode}. Its last output is above."
        ) from None
    process.join()
    return result


def _send(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(function(*args))


def peak(dtype: str, device: str) -> float:
    """Arithmetic peak in operations a second, by processor time on a CPU as for every contender."""
    from stepmark.models import throughput

    return throughput.peak(dtype, device, time.process_time if device == "cpu" else time.perf_counter)


def flops_per_token(model: str, attended: float) -> float:
    """Operations of a token that a model reads or writes: two for each weight it is multiplied with, and attention over
    `attended` positions. A token that a model learns from needs three times as many."""
    from stepmark.models import throughput
    from stepmark.models.checkpoints import load_model

    net = load_model(model, dtype="float32", device="cpu")
    met, config = throughput.work(net), net.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4.0 * config.num_hidden_layers * config.num_attention_heads * width * attended
    return 2.0 * (met.body + met.head) + attention


def runs(
    paths: Sequence[Path], holds: str = "config.json", why: str = "give directories that `stepmark run` made"
) -> list[Path]:
    """The runs of one seed each. Exits with a message if one of them lacks the file `holds`."""
    seed_runs = [run for path in paths for run in (sorted(path.glob("seed-*")) or [path])]
    if bad := [str(run) for run in seed_runs if not (run / holds).is_file()]:
        raise SystemExit(f"No {holds} in {', '.join(bad)}: {why}.")
    return seed_runs


def keep(script: str, figures: Mapping[str, Any], out: str | Path) -> None:
    """Writes figures to `out`, with the command, the machine and its load, and prints them as one line."""
    about = {
        "command": shlex.join(["python", f"bench/{script}", *sys.argv[1:]]),
        "machine": machine(),
        "load_average": [round(x, 1) for x in os.getloadavg()],  # above 1 or 2: other processes were busy too
    }
    result = about | dict(figures)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **packages}

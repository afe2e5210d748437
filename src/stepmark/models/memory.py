"""Memory: how much is free, how much a pass of training took, and how many tokens a pass may have.

A pass's memory grows with its tokens: activations of every layer, and a logit for each word of the vocabulary. How much
a token takes is measured on a first, small pass, since it depends on the architecture and on torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stepmark import machine
from stepmark.errors import StageError

if TYPE_CHECKING:
    import torch

GIB = 2**30
SHARE = 0.5  # of the free memory for a pass, so that rounding up and other work stay below three quarters
EVERY = 0.005  # seconds between two looks at the memory in use


def free(device: torch.device) -> int:
    """Bytes that one more process can use: the GPU's free memory, or what is available on the machine by its cores,
    since as many processes may work at once."""
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved by torch
        return torch.cuda.mem_get_info(device)[0] + unused
    return machine.available() // machine.cores()


def used() -> int:
    """Bytes of this process that are in memory; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError):
        return 0


def touch(model: torch.nn.Module) -> None:
    """Brings all weights into memory. Those of a file that was only mapped would count for the first pass else."""
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    for p in model.parameters():
        if p.device.type == "cpu":
            p.detach().reshape(-1)[:: max(1, page // p.element_size())].sum()


class Peak:
    """Measures by how much a block's use of memory exceeds what there was at its start, in `bytes`; 0 if unknown."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._ended = threading.Event()

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            _give_back()
            self._before = used()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.device.type == "cuda":
            import torch

            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._ended.set()
        self._thread.join()
        self.bytes = max(self.bytes, used() - self._before)

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.bytes = max(self.bytes, used() - self._before)


def _give_back() -> None:
    """Hands memory that was freed back to the system, since what a block takes from it would not be seen."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def estimate(model: Any, checkpointing: bool = False) -> int:
    """Bytes that a token of a training pass takes at least, from the model's shape: in float32, with gradients.
    `checkpointing`: of each layer only the input is kept, and of one layer all."""
    config = model.config.get_text_config() if hasattr(getattr(model, "config", None), "get_text_config") else None
    layers, hidden = (getattr(config, name, None) or 0 for name in ("num_hidden_layers", "hidden_size"))
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    inner = intermediate if isinstance(intermediate, int) else max(intermediate)
    layer = 10 * int(hidden) + 4 * inner
    return 4 * (int(layers) * int(hidden) + layer if checkpointing else int(layers) * layer)


def tokens_per_pass(least: int, pass_bytes: int, pass_tokens: int, free_bytes: int) -> int:
    """Most tokens of a pass, if `pass_tokens` took `pass_bytes`, each takes `least` bytes or more, and `free_bytes` are
    free."""
    return max(1, int(SHARE * free_bytes / max(pass_bytes / max(1, pass_tokens), least, 1)))


def fits(needed: int, free_bytes: int, device: torch.device) -> bool:
    """Whether `needed` bytes are there: on the GPU, or on the whole machine."""
    return needed <= (free_bytes if device.type == "cuda" else machine.available())


def need(needed: int, free_bytes: int, device: torch.device) -> None:
    """Raises StageError where `needed` bytes are not there, before the system ends the process for it."""
    if not fits(needed, free_bytes, device):
        there = free_bytes if device.type == "cuda" else machine.available()
        raise StageError(
            f"this training needs about {needed / GIB:.1f} GiB more, and {there / GIB:.1f} GiB are free: gradients and "
            "AdamW's averages take three times the weights, a pass over the longest example the rest. Take a smaller "
            "model, leave out long examples, or use a machine with more memory."
        )

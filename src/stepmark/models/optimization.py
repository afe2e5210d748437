"""Numeric precision and learning-rate schedule, shared by all trainings."""

from __future__ import annotations

import contextlib
import math


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast for precision "bfloat16", and for "auto" on a GPU, where it is faster."""
    import torch

    use = precision == "bfloat16" or (precision == "auto" and device.startswith("cuda"))
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16) if use else contextlib.nullcontext()


def learning_rate(update: int, updates: int, peak: float, warmup: float, final: float) -> float:
    """The learning rate of an update. It rises linearly over the share `warmup` of all updates, then falls along a
    cosine to the share `final` of the peak."""
    warm = max(1, round(warmup * updates))
    if update < warm:
        return peak * (update + 1) / warm
    done = (update - warm) / max(1, updates - warm)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))

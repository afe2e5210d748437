"""The numbers at the axes of a chart, and the places of the labels at its lines.

stepmark report runs/demo
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

# How the x axis runs: in even steps; by logarithm with a label at each value, as of N and K; or by logarithm with
# labels at round numbers, as of tokens.
Scale = Literal["linear", "log_values", "log"]

ROUND = (1, 2, 5, 10)  # the first digits of round numbers


def position(x: float, scale: Scale) -> float:
    """The place of a value on its axis, in the axis's own unit."""
    return x if scale == "linear" or x <= 0 else math.log2(x)


def labelled(xs: Sequence[float], scale: Scale) -> list[float]:
    """The values at which an x axis is labelled, ascending. On a "log" axis two of them or more enclose the values or
    lie among them; on other axes all lie among them."""
    low, high = min(xs), max(xs)
    if scale == "linear":
        return [t for t in ticks(low, high, 6, whole=all(float(x).is_integer() for x in xs)) if low <= t <= high]
    if low <= 0:
        return sorted(set(xs))
    return _values(xs) if scale == "log_values" else _round(low, high)


def ticks(low: float, high: float, count: int, *, cap: float | None = None, whole: bool = False) -> list[float]:
    """At least two round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`; not above
    `cap` if the data is constant, and only whole ones if asked."""
    if high - low < 1e-9:
        pad = abs(high) * 0.1 or 0.1
        low, high = low - pad, high + pad
        if cap is not None:
            low, high = max(0.0, low), max(min(cap, high), low + 1e-3)
    min_step = (high - low) / max(1, count - 1)
    magnitude = 10.0 ** math.floor(math.log10(min_step))
    step = next(m * magnitude for m in ROUND if m * magnitude >= min_step * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def short(x: float) -> str:
    """A number for an axis: 0.05, 12, 1.5k, 20k, 3M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size * 0.9995:
            return f"{x / size:,.6g}{unit}"
    return f"{x:.6g}"


def exact(x: float) -> str:
    """A number for a tooltip: 1,234 or 12.3. Its fraction is left out where nobody needs it."""
    return f"{x:,.0f}" if abs(x) >= 100 or float(x).is_integer() else f"{x:.3g}"


def spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the targets and in their order, at least `gap` apart, and in [low, high] if there is room."""
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    positions = list(targets)
    previous = low - gap
    for i in order:
        previous = positions[i] = max(targets[i], previous + gap)
    previous = high + gap
    for i in reversed(order):
        previous = positions[i] = min(positions[i], previous - gap)
    return positions


def grouped(targets: Sequence[float], most: int) -> list[list[int]]:
    """The indices of the targets in at most `most` groups of neighbours, ascending: those closest together share
    one."""
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    wide = sorted(range(1, len(order)), key=lambda k: targets[order[k - 1]] - targets[order[k]])[: max(1, most) - 1]
    cuts = [0, *sorted(wide), len(order)]
    return [order[a:b] for a, b in itertools.pairwise(cuts)]


def _values(xs: Sequence[float]) -> list[float]:
    """The values themselves if they are few; otherwise powers of two in their range."""
    values = sorted(set(xs))
    if len(values) <= 12:
        return values
    low, high = math.ceil(math.log2(values[0])), math.floor(math.log2(values[-1]))
    step = 1 + (high - low) // 12
    return [2.0**i for i in range(low, high + 1, step)] or values[:1]


def _round(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; over many powers of ten only these; in a narrow range any round numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = 1 + (last - first) // 8
    digits = (1, 2, 5) if last - first <= 5 else (1,)
    numbers = [m * 10.0**e for e in range(first - 1, last + 2) for m in digits if e % every == 0]
    inside = [x for x in numbers if low <= x <= high]
    if len(inside) > 1:
        return inside
    if high - low > 0.05 * low:
        within = [t for t in ticks(low, high, 4) if low <= t <= high]
        if len(within) > 1:
            return within
    return [max(x for x in numbers if x <= low), *inside, min(x for x in numbers if x >= high)]

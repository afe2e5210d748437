"""Decoded JSON -> typed values. A malformed part of metrics.json raises a DataError that names its place.

stepmark report runs/demo
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stepmark.errors import DataError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval, in the unit of the metric (shares are in [0, 1])."""

    mean: float
    low: float | None = None  # None if no interval was computed
    high: float | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None if one is missing or not finite."""
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return self.low, self.high

    @property
    def clear(self) -> bool:
        """For a difference: whether its interval excludes zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def fault(where: str, got: object, allowed: str) -> DataError:
    return DataError(f"metrics: {where} is {got!r:.80}; it should be {allowed}. Run `stepmark evaluate` to rewrite it.")


def items(value: object, where: str) -> list[tuple[str, object]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise fault(where, value, "an object")
    return [(str(k), v) for k, v in value.items()]


def whole(value: object, where: str) -> int:
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        raise fault(where, value, "a whole number") from None


def number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault(where, value, "a number")
    return float(value)


def numbers(value: object, where: str) -> dict[str, float]:
    """A nested object of numbers as a flat one, with keys joined by a space. null (not measured) is left out."""
    flat: dict[str, float] = {}
    for key, item in items(value, where):
        if isinstance(item, Mapping):
            flat |= {f"{key} {k}": v for k, v in numbers(item, f"{where}.{key}").items()}
        elif item is not None:
            flat[key] = number(item, f"{where}.{key}")
    return flat


def estimate(value: object, where: str) -> Estimate:
    if not isinstance(value, Mapping):
        return Estimate(number(value, where))
    low, high = value.get("low"), value.get("high")
    return Estimate(
        number(value.get("mean"), f"{where}.mean"),
        None if low is None else number(low, f"{where}.low"),
        None if high is None else number(high, f"{where}.high"),
    )


def curve(value: object, where: str) -> dict[int, Estimate]:
    return {whole(n, where): estimate(e, f"{where}.{n}") for n, e in items(value, where)}

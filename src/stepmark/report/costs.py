"""metrics.json's `compute` -> the measured points and splits as typed values (evaluation/token_curves.py).

stepmark plan --optimal runs/demo
"""

from __future__ import annotations

from collections.abc import Sequence

from stepmark.evaluation.stats import Interval
from stepmark.evaluation.token_curves import Compute, Point, Split
from stepmark.report.reading import fault, items, number, whole


def parse(value: object, where: str) -> Compute | None:
    """None if nothing was measured. Raises DataError that names the malformed part."""
    if value is None:
        return None
    raw = dict(items(value, where))
    points = _list(raw.get("points"), f"{where}.points")
    return Compute(
        tuple(_point(p, f"{where}.points.{i}") for i, p in enumerate(points)),
        _splits(raw.get("splits"), f"{where}.splits"),
        {
            verifier: _splits(splits, f"{where}.splits_by_verifier.{verifier}")
            for verifier, splits in items(raw.get("splits_by_verifier"), f"{where}.splits_by_verifier")
        },
    )


def _splits(value: object, where: str) -> tuple[Split, ...]:
    return tuple(_split(s, f"{where}.{i}") for i, s in enumerate(_list(value, where)))


def _split(value: object, where: str) -> Split:
    raw = dict(items(value, where))

    def point(name: str) -> Point | None:
        return None if raw.get(name) is None else _point(raw[name], f"{where}.{name}")

    def interval(name: str) -> Interval | None:
        return None if raw.get(name) is None else _interval(raw[name], f"{where}.{name}")

    return Split(
        number(raw.get("tokens"), f"{where}.tokens"),
        _point(raw.get("one"), f"{where}.one"),
        point("voting"),
        point("verified"),
        interval("voting_over_one"),
        interval("verified_over_one"),
        interval("verified_over_voting"),
    )


def _point(value: object, where: str) -> Point:
    raw = dict(items(value, where))
    method = raw.get("method")
    if not isinstance(method, str):
        raise fault(f"{where}.method", method, "the name of a way of choosing")
    return Point(
        method,
        whole(raw.get("n"), f"{where}.n"),
        whole(raw.get("k"), f"{where}.k"),
        number(raw.get("tokens"), f"{where}.tokens"),
        _interval(raw.get("accuracy"), f"{where}.accuracy"),
        raw.get("front") is True,
    )


def _interval(value: object, where: str) -> Interval:
    raw = dict(items(value, where))
    mean, low, high = (number(raw.get(name), f"{where}.{name}") for name in ("mean", "low", "high"))
    return Interval(mean, low, high)


def _list(value: object, where: str) -> Sequence[object]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise fault(where, value, "a list")
    return value

"""Aggregates the scores of a solution's steps to one score for the solution.

Math-Shepherd (section 3.4) takes the minimum: a solution is as good as its worst step. Others found the product, the
mean or the last step better with other kinds of labels, so all four are here and evaluations report each.
The product favours short solutions; the mean hides one wrong step among many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from stepmark.errors import UnknownName

Aggregate = str | Callable[[Sequence[float]], float]  # a name from AGGREGATES, or any function of at least one score

AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType(
    {
        "min": min,
        "prod": math.prod,
        "mean": lambda scores: math.fsum(scores) / len(scores),
        "last": lambda scores: scores[-1],
    }
)


def aggregate(scores: Sequence[float], how: Aggregate = "min") -> float:
    """The solution's score, in [0, 1] like the scores of its steps. Without scores it is 0.0, the lowest score: an
    empty product is 1, and a solution without steps must not win because of that. Raises UnknownName."""
    if not callable(how):
        if how not in AGGREGATES:
            raise UnknownName("aggregation", how, AGGREGATES)
        how = AGGREGATES[how]
    return float(how(scores)) if len(scores) else 0.0

"""Comparisons of two workings of a problem, written as text. The rationales of synthetic tasks end in them, and a
generator may be trained on them first.

    The answer is ab.
    Again:
    Take aha: aha, a.
    Take arc: aha arc, a c.
    Compare a a same, c b different: different.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import zip_longest

AGAIN = "Again:"  # the line between two workings of one problem
DRILLED = 0.4  # share of the parts that are replaced in a drill
UNDRILLED = 0.3  # share of the drills in which no part is replaced


def compared(true: Sequence[str], said: Sequence[str], same: bool | None = None) -> str:
    """Compares two answers part by part and states the result. A small model can't learn to compare two whole lists:
    the verdict, one word of its text, is its only signal. It learns soon to compare two parts side by side. The last
    word states the result for all parts, so that the verdict depends on one word, whatever the length of the lists.
    `same` replaces that result."""
    pairs = list(zip_longest(true, said, fillvalue="nothing"))
    parts = ", ".join(f"{a} {b} {_same(a == b)}" for a, b in pairs)
    return f"Compare {parts}: {_same(all(a == b for a, b in pairs) if same is None else same)}."


def _same(same: bool) -> str:
    return "same" if same else "different"


def drill(parts: Sequence[str], others: Sequence[str], rng: random.Random) -> list[str]:
    """`parts`, in most calls with some of them replaced by one of `others`, to be compared with `parts`."""
    if rng.random() < UNDRILLED:
        return list(parts)
    return [rng.choice(others) if rng.random() < DRILLED else part for part in parts]


def thread(first: Sequence[str], second: Sequence[str]) -> str:
    """The lines of a worked answer, then `AGAIN`, then the lines of a second working, which ends in a comparison with
    the first."""
    return "\n".join([*first, AGAIN, *second])

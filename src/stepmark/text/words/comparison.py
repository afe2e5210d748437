"""Workings of a problem compared with another's, in words: what the rationales of made-up tasks end in, and what a
generator may read of them before.

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
DRILLED = 0.4  # share of the parts that differ in a drill
UNDRILLED = 0.3  # share of the drills in which none does


def compared(true: Sequence[str], said: Sequence[str], same: bool | None = None) -> str:
    """Two answers side by side, part by part, and what that comes to. To compare two lists as wholes a small model
    would have to learn from one word of its text, the verdict; two parts side by side are soon compared. The last word
    makes the verdict a matter of one word, whatever the length of the lists: all parts are the same, unless `same` says
    what it is."""
    pairs = list(zip_longest(true, said, fillvalue="nothing"))
    parts = ", ".join(f"{a} {b} {_same(a == b)}" for a, b in pairs)
    return f"Compare {parts}: {_same(all(a == b for a, b in pairs) if same is None else same)}."


def _same(same: bool) -> str:
    return "same" if same else "different"


def drill(parts: Sequence[str], others: Sequence[str], rng: random.Random) -> list[str]:
    """`parts`, mostly with some of them replaced by one of `others`: something to compare with."""
    if rng.random() < UNDRILLED:
        return list(parts)
    return [rng.choice(others) if rng.random() < DRILLED else part for part in parts]


def thread(first: Sequence[str], second: Sequence[str]) -> str:
    """The lines of a worked answer; after `AGAIN`, those of a second working, which ends in a comparison with it."""
    return "\n".join([*first, AGAIN, *second])

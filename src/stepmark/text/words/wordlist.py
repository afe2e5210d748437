"""Lists of distinct common English words, drawn the same way at every call: what the word tasks are made of.

Which split may hold a list is decided by the hash of its words, in whatever order: no two splits share
one, whatever the seed; but pretrain, what a generator may read before, has its lists where train has them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from stepmark.errors import ConfigError
from stepmark.text.hashing import hash_fraction

LENGTHS = ("train_lengths", "test_lengths", "longer_lengths", "pretrain_lengths")  # settings of every word task
CHANCES = ("noise", "slips", "threads", "drills")

# split -> the part of [0, 1) that a list's share has to fall in
SHARES = {
    "train": (0.0, 0.6),
    "pretrain": (0.0, 0.6),
    "dev": (0.6, 0.7),
    "test": (0.7, 0.85),
    "longer": (0.85, 1.0),
}


@cache
def words() -> tuple[str, ...]:
    """The words: lower case, letters only, no word twice."""
    return tuple((files("stepmark.text.words") / "words.txt").read_text(encoding="utf-8").split())


def draw(
    split: str,
    lengths: Sequence[int],
    count: int,
    seed: int,
    known: int | None = None,
    fits: Callable[[Sequence[str]], bool] = bool,
) -> Iterator[tuple[str, ...]]:
    """`count` distinct lists of a split that fit, of the given lengths in words, of every word or of `known` of them.
    The first lists don't depend on `count`. Raises ConfigError when there are not that many."""
    pool = words() if known is None else tuple(random.Random(known).sample(words(), min(known, len(words()))))
    low, high = SHARES[split]
    seen: set[tuple[str, ...]] = set()
    for i in range(count):
        rng = random.Random(f"{seed}/{split}/{i}")
        for _ in range(10_000):
            drawn = tuple(rng.sample(pool, rng.choice(lengths)))
            if drawn not in seen and fits(drawn) and low <= hash_fraction(" ".join(sorted(drawn))) < high:
                break
        else:
            raise ConfigError(
                f"there are only about {i} distinct lists of {list(lengths)} words for split {split!r}; ask for fewer."
            )
        seen.add(drawn)
        yield drawn


def settle(task: Any) -> list[str]:
    """Makes the lists of lengths in a word task's settings tuples, and says what is wrong with the settings that all
    word tasks have, one line each."""
    object.__setattr__(task, "pretrain_lengths", task.pretrain_lengths or task.train_lengths)
    lengths: dict[str, Sequence[int]] = {name: tuple(getattr(task, name)) for name in LENGTHS}  # recipes give lists
    for name, value in lengths.items():
        object.__setattr__(task, name, value)
    sizes = {"train_size": task.train_size, "test_size": task.test_size}
    sizes |= {} if task.words is None else {"words": task.words}
    return faults(lengths, sizes, {name: getattr(task, name) for name in CHANCES})


def load(
    task: Any, name: str, split: str, limit: int | None, fits: Callable[[Sequence[str]], bool] = bool
) -> Iterator[tuple[str, ...]]:
    """The first `limit` lists of a split of a word task. Raises ConfigError for a split that there is not."""
    if split not in SHARES:
        raise ConfigError(f"task {name} has no split {split!r}. It has: {', '.join(SHARES)}.")
    lengths = getattr(task, f"{split}_lengths", task.test_lengths)  # dev's are test's
    size = task.train_size if split in ("train", "pretrain") else task.test_size
    return draw(split, lengths, size if limit is None else min(limit, size), task.seed, task.words, fits)


def faults(
    lengths: dict[str, Sequence[int]], sizes: dict[str, int], chances: dict[str, float] | None = None
) -> list[str]:
    """What is wrong with a word task's settings, one line each."""
    most = 26
    found = [
        f"{name}={list(ns)!r}: needs one or more whole numbers, each 1 to {most}."
        for name, ns in lengths.items()
        if not ns or any(type(n) is not int or not 1 <= n <= most for n in ns)
    ]
    found += [f"{name}={p!r}: needs a chance from 0 to 1." for name, p in (chances or {}).items() if not 0 <= p <= 1]
    return found + [
        f"{name}={n!r}: needs a whole number from 1." for name, n in sizes.items() if type(n) is not int or n < 1
    ]

"""Lists of distinct common English words, the questions of the word tasks. Every call draws the same lists.

The hash of a list's words, in any order, decides to which split it belongs. So no two splits share a list, for any
seed. One exception: the pretrain split, which a generator may be trained on first, uses the same hashes as train.
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

# split -> the part of [0, 1) in which a list's hash fraction must be
SHARES = {
    "train": (0.0, 0.6),
    "pretrain": (0.0, 0.6),
    "dev": (0.6, 0.7),
    "test": (0.7, 0.85),
    "longer": (0.85, 1.0),
}


@cache
def words() -> tuple[str, ...]:
    """The words: lower case, only letters, each word once."""
    return tuple((files("stepmark.text.words") / "words.txt").read_text(encoding="utf-8").split())


def draw(
    split: str,
    lengths: Sequence[int],
    count: int,
    seed: int,
    known: int | None = None,
    fits: Callable[[Sequence[str]], bool] = bool,
) -> Iterator[tuple[str, ...]]:
    """`count` distinct lists of a split for which `fits` is true. `lengths` are the allowed numbers of words in a list.
    The words are all words, or `known` of them. A larger `count` does not change the first lists. Raises ConfigError if
    there are not that many lists."""
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
                f"split {split!r} has only about {i} distinct lists of {list(lengths)} words; set a smaller size."
            )
        seen.add(drawn)
        yield drawn


def settle(task: Any) -> list[str]:
    """Turns the lists of lengths in a word task's settings into tuples, and returns the faults of the settings that all
    word tasks have, one line each."""
    object.__setattr__(task, "pretrain_lengths", task.pretrain_lengths or task.train_lengths)
    lengths: dict[str, Sequence[int]] = {name: tuple(getattr(task, name)) for name in LENGTHS}  # recipes have lists
    for name, value in lengths.items():
        object.__setattr__(task, name, value)
    sizes = {"train_size": task.train_size, "test_size": task.test_size}
    sizes |= {} if task.words is None else {"words": task.words}
    return faults(lengths, sizes, {name: getattr(task, name) for name in CHANCES})


def load(
    task: Any, name: str, split: str, limit: int | None, fits: Callable[[Sequence[str]], bool] = bool
) -> Iterator[tuple[str, ...]]:
    """The first `limit` lists of a split of a word task. Raises ConfigError for an unknown split."""
    if split not in SHARES:
        raise ConfigError(f"task {name} has no split {split!r}. It has: {', '.join(SHARES)}.")
    lengths = getattr(task, f"{split}_lengths", task.test_lengths)  # the dev split has the lengths of test
    size = task.train_size if split in ("train", "pretrain") else task.test_size
    return draw(split, lengths, size if limit is None else min(limit, size), task.seed, task.words, fits)


def faults(
    lengths: dict[str, Sequence[int]], sizes: dict[str, int], chances: dict[str, float] | None = None
) -> list[str]:
    """The faults of a word task's settings, one line each."""
    most = 26
    lines = [
        f"{name}={list(ns)!r}: needs one or more whole numbers, each 1 to {most}."
        for name, ns in lengths.items()
        if not ns or any(type(n) is not int or not 1 <= n <= most for n in ns)
    ]
    lines += [
        f"{name}={p!r}: needs a probability from 0 to 1." for name, p in (chances or {}).items() if not 0 <= p <= 1
    ]
    return lines + [
        f"{name}={n!r}: needs a whole number from 1." for name, n in sizes.items() if type(n) is not int or n < 1
    ]

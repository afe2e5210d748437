"""A text's place between 0 and 1, by its hash: how questions and word lists divide into splits that never change."""

from __future__ import annotations

import hashlib


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone. Equal questions fall into the same split, and more rows move
    none of the others. White space and case don't count."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:6]) / 2**48

"""Maps a text to a number between 0 and 1 by its hash. Questions and word lists are divided into fixed splits by it."""

from __future__ import annotations

import hashlib


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends only on the text. So equal questions are in the same split, and added rows move
    no other row. White space and case don't matter."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:6]) / 2**48

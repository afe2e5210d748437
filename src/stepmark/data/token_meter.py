"""Counts the tokens that models in this process write, while their texts are still unfinished.

A backend that runs a model in this process calls `add` for each step of its decoding. Then the progress of a stage
knows the speed before the first text has ended. Tokens of other backends count when their texts have ended.
"""

from __future__ import annotations

_written = 0


def add(tokens: int) -> None:
    """Takes note of tokens that a model has just written."""
    global _written
    _written += tokens


def written() -> int:
    """Tokens written in this process so far."""
    return _written

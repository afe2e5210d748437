"""The speed of a stage in tokens, known while its texts are still unfinished.

A backend that runs a model in this process calls `add` for each step of its decoding. Then the progress of a stage
knows the speed before the first text has ended. Worker processes send their counts once a second
(executors/processes.py). Tokens of other backends count when their texts have ended.
"""

from __future__ import annotations

import time

SETTLED, UNSTEADY = 3.0, 120.0  # seconds after which the speed is known: see Pace
_written = 0


def add(tokens: int) -> None:
    """Takes note of tokens that a model has just written."""
    global _written
    _written += tokens


def written() -> int:
    """Tokens written in this process, and in its workers as far as they have sent it, so far."""
    return _written


class Pace:
    """The speed of a stage, and its end at that speed.

    Many texts are begun and few have ended at first, so ended texts alone say too little. Where a backend of this
    process counts tokens as it writes them, the speed is known from the first ones on, and no text has more than its
    largest number of tokens. Otherwise nothing is said until a tenth is done or UNSTEADY seconds have passed."""

    def __init__(self, todo: int, most_tokens: int | None) -> None:
        self.todo, self.most_tokens = todo, most_tokens
        self.began = time.monotonic()  # of the stage, or where tokens are counted, when the model was at work
        self._at_first = written()
        self._before: int | None = None  # tokens that had been written at `began`

    @property
    def written(self) -> int:
        """Tokens that were counted as they were written."""
        return written() - self._at_first

    def at(self, now: float, made: int, tokens: int) -> tuple[float | None, float | None]:
        """Tokens per second and seconds left, with `made` records and `tokens` of their texts."""
        written = self.written
        if written and self._before is None:
            self.began, self._before = now, written
        seconds, lefts = now - self.began, list[float]()
        steady = seconds >= UNSTEADY or made * 10 >= self.todo
        if self._before is not None:
            speed = (written - self._before) / max(seconds, 1e-9) if seconds >= SETTLED else 0.0
            if speed and self.most_tokens is not None:
                lefts.append(max(0, self.most_tokens - written) / speed)
        else:
            speed = tokens / max(seconds, 1e-9) if steady else 0.0
        if made and (steady or lefts):
            lefts.append(seconds * (self.todo - made) / made)
        return speed or None, min(lefts, default=None)

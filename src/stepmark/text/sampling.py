"""Checks of sampling parameters, and probabilities of choices. Every backend uses them.

stepmark sample --help
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepmark.errors import ConfigError
from stepmark.types import SamplingParams


def check(params: SamplingParams) -> None:
    """Raises ConfigError with all faults of the parameters."""
    faults = []
    if params.max_tokens < 1:
        faults.append(f"max_tokens must be at least 1, got {params.max_tokens}.")
    if not params.temperature >= 0:
        faults.append(f"temperature must be 0 (greedy) or more, got {params.temperature}.")
    if not 0 < params.top_p <= 1:
        faults.append(f"top_p must be above 0 and at most 1, got {params.top_p}.")
    if faults:
        raise ConfigError(faults)


def among(logs: Sequence[float]) -> tuple[float, ...]:
    """The probability of each choice among all choices, from their log-probabilities (in nats, of one choice or more).
    The probability that the model gives to other texts is left out, so the results sum to 1."""
    largest = max(logs)
    weights = [math.exp(x - largest) for x in logs]
    return tuple(w / math.fsum(weights) for w in weights)

"""What sampling may be asked for, and what choices come to: one answer for every backend.

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
    """The probability of each choice among all of them, from their log-probabilities (nats, of at least one choice):
    what a model gives to anything else does not count."""
    most = max(logs)
    weights = [math.exp(x - most) for x in logs]
    return tuple(w / math.fsum(weights) for w in weights)

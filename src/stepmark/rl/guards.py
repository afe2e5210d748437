"""Guards against over-optimisation: a test whether the accuracy on held-out problems has fallen.

A policy that is rewarded by a model over-optimises it at some point: the reward still rises while the true accuracy
falls (Gao et al. 2022, arXiv 2210.10760). A look answers the held-out problems greedily and grades the answers. Each
look is compared with the best look so far, problem by problem:

    over-optimised   accuracy fell significantly, and the reward did not fall
    collapsed        accuracy fell significantly, and the reward fell too

The test is paired and one-sided, at a level of 5% over all looks together (5% divided by the number of looks for each),
because there are many looks and the best one is partly luck. The guard acts when `patience` looks in a row show a fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

LEVEL = 0.05  # probability of a false alarm over all looks together


@dataclass(frozen=True, slots=True)
class Held:
    """One look: the result on each of H held-out problems."""

    update: int
    right: tuple[bool, ...]  # [H] whether the greedy answer is correct
    rewards: tuple[float | None, ...]  # [H] rewards of the greedy attempts; None where the reward is lost

    @property
    def accuracy(self) -> float:
        return float(mean(self.right)) if self.right else 0.0

    @property
    def reward(self) -> float:
        known = [r for r in self.rewards if r is not None]
        return float(mean(known)) if known else 0.0


def fall(best: Held, now: Held, looks: int = 1) -> str:
    """A sentence on the fall of accuracy from `best` to `now`; "" if it is not significant. `looks` is the number of
    looks in the whole run."""
    drops = [float(a) - float(b) for a, b in zip(best.right, now.right, strict=True)]
    if not drops or not _above_zero(drops, LEVEL / max(1, looks)):
        return ""
    accuracy_change = (
        f"accuracy on {len(drops)} held-out problems fell from {100 * best.accuracy:.1f}% (update {best.update}) to "
        f"{100 * now.accuracy:.1f}% (update {now.update})"
    )
    reward_change = f"their reward went from {best.reward:.3f} to {now.reward:.3f}"
    return f"{'over-optimised' if now.reward >= best.reward else 'collapsed'}: {accuracy_change}; {reward_change}"


def _above_zero(differences: Sequence[float], level: float) -> bool:
    """Whether the mean is significantly above zero."""
    average = mean(differences)
    deviation = stdev(differences) if len(differences) > 1 else 0.0
    return average > 0 and average - NormalDist().inv_cdf(1 - level) * deviation / math.sqrt(len(differences)) > 0


def best_of(looks: Sequence[Held]) -> Held:
    """The look with the highest accuracy; the earliest of equal ones."""
    return max(looks, key=lambda x: (x.accuracy, -x.update))

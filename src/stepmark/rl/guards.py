"""Is it getting better, or only better paid?

A policy that is rewarded by a model learns what the model likes, and past some point that is no longer what is right
(Gao et al. 2022, arXiv 2210.10760): the reward goes on rising while true accuracy falls. Each look answers held-out
problems greedily and grades the answers; this look is compared with the best one so far, problem by problem.

    over-optimised   the reward did not fall, accuracy did, beyond noise
    collapsed        both fell, accuracy beyond noise

Beyond noise is a paired one-sided test at 5% over all looks together (each look is tested at 5% by their number): looks
are many, and the best one was lucky. `patience` looks in a row have to find it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

LEVEL = 0.05  # chance to stop a policy that is as good as its best, all looks together


@dataclass(frozen=True, slots=True)
class Held:
    """A look, problem by problem. H held-out problems."""

    update: int
    right: tuple[bool, ...]  # [H] whether the greedy answer is right
    rewards: tuple[float | None, ...]  # [H] what the greedy attempt earns; None where it is lost

    @property
    def accuracy(self) -> float:
        return float(mean(self.right)) if self.right else 0.0

    @property
    def reward(self) -> float:
        known = [r for r in self.rewards if r is not None]
        return float(mean(known)) if known else 0.0


def fall(best: Held, now: Held, looks: int = 1) -> str:
    """In what way `now` is worse than `best`, "" where it isn't beyond noise. `looks`: how many there will be."""
    lost = [float(a) - float(b) for a, b in zip(best.right, now.right, strict=True)]
    if not lost or not _above_zero(lost, LEVEL / max(1, looks)):
        return ""
    figures = (
        f"accuracy on {len(lost)} held-out problems fell from {100 * best.accuracy:.1f}% (update {best.update}) to "
        f"{100 * now.accuracy:.1f}% (update {now.update})"
    )
    paid = f"their reward went from {best.reward:.3f} to {now.reward:.3f}"
    return f"{'over-optimised' if now.reward >= best.reward else 'collapsed'}: {figures}; {paid}"


def _above_zero(differences: Sequence[float], level: float) -> bool:
    """Whether their mean is above zero beyond noise."""
    middle = mean(differences)
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return middle > 0 and middle - NormalDist().inv_cdf(1 - level) * spread / math.sqrt(len(differences)) > 0


def best_of(looks: Sequence[Held]) -> Held:
    """The look with the highest accuracy; the earliest of those."""
    return max(looks, key=lambda x: (x.accuracy, -x.update))

"""Guards against over-optimisation and collapse: two tests, one of the accuracy on held-out problems and one of the
attempts that the policy learns from.

A policy that is rewarded by a model over-optimises it at some point: the reward still rises while the true accuracy
falls (Gao et al. 2022, arXiv 2210.10760). A look answers the held-out problems greedily and grades the answers. Each
look is compared with the best look so far, problem by problem:

    over-optimised   accuracy fell significantly, and the reward did not fall
    collapsed        accuracy fell significantly, and the reward fell too

The test is paired and one-sided, at a level of 5% over all looks together (5% divided by the number of looks for each),
because there are many looks and the best one is partly luck. The guard acts when `patience` looks in a row show a fall.

The second test needs no held-out problems. A policy may end in the empty answer, or write until it runs out of tokens.
Then the attempts at a prompt all earn the same, there is nothing to compare, and little brings the policy back. Equal
rewards alone are no collapse: the attempts of a policy that is right everywhere earn the same too, and so do those at
problems that are too hard. So the test looks at what the attempts are: empty, or out of tokens.

It must hold for `collapse_updates` updates in a row, because policies come back from a short spell. Measured on the
bandit of tests/rl: 76 runs of PPO with this guard off (4, 8 or 32 attempts at each of two states, lr from 3e-3 to 4e-2,
no KL term, 40 or 60 updates). Of the 36 runs with 5 such updates in a row, 3 ended with more than half of the reward,
and two of these with all of it. Of the 29 runs with 10 in a row, one did, with 58%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, mean, stdev
from typing import TYPE_CHECKING

from stepmark.rl.advantages import EPSILON
from stepmark.rl.settings import ReinforceSettings
from stepmark.types import Reward

if TYPE_CHECKING:
    from stepmark.rl.episodes import Episode

LEVEL = 0.05  # probability of a false alarm over all looks together
SILENT = 0.5  # a policy that gives only empty attempts at this share of the prompts has collapsed
FEW = 4  # with fewer attempts at a prompt, that all are empty says little about the policy


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


def explored(attempts: Sequence[Episode], rewards: Sequence[Reward]) -> dict[str, float]:
    """How much the attempts of an update still differ, as shares for the log. Lost rewards are left out."""
    empty = [not e.solution.text.strip() for e in attempts]
    groups: dict[str, list[int]] = {}
    for i, e in enumerate(attempts):
        groups.setdefault(e.problem.id, []).append(i)
    totals = [[rewards[i].total for i in members if not rewards[i].lost] for members in groups.values()]
    return {
        "same_reward": fmean(not x or max(x) - min(x) <= EPSILON for x in totals),
        "empty": fmean(empty),
        "all_empty": fmean(all(empty[i] for i in members) for members in groups.values()),  # of the prompts
        "truncated": fmean(e.truncated for e in attempts),
        "no_answer": fmean(e.truncated or is_empty for e, is_empty in zip(attempts, empty, strict=True)),
    }


def collapsed(figures: Mapping[str, float], samples: int) -> bool:
    """Whether an update with these figures, which are those of `explored`, shows a collapse."""
    return figures["no_answer"] == 1 or (samples >= FEW and figures["all_empty"] >= SILENT)


def collapse(figures: Mapping[str, float], update: int, settings: ReinforceSettings) -> str:
    """A sentence on a collapse that lasts since `collapse_updates` updates, and what to do. `figures` are those of the
    last of them; `update` is the number of updates made."""
    s = settings
    silent = figures["all_empty"] >= SILENT
    what = "every attempt was empty at half of the prompts or more" if silent else "no attempt ended with an answer"
    start = " It was so from the first update: look at what this policy writes." if update == s.collapse_updates else ""
    room = "" if silent else f", or a higher max_tokens ({s.max_tokens})"
    return (
        f"collapsed: in {s.collapse_updates} updates in a row {what}, and attempts that earn the same teach nothing "
        f"(update {update}: {100 * figures['empty']:.0f}% of the attempts empty, {100 * figures['truncated']:.0f}% out "
        f"of tokens, the same reward for all attempts at {100 * figures['same_reward']:.0f}% of the prompts, entropy "
        f"{figures['entropy']:.3g} nats a token).{start} Train in another directory with a lower lr ({s.lr:g}), a "
        f"higher kl ({s.kl:g}), more samples ({s.samples}) or a higher temperature ({s.temperature:g}){room}."
    )

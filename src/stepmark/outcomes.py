"""How rollouts and verifications ended, counted apart, and how much of what can't be used is too much.

A rollout that could not be graded, ran out of tokens or never came is not a wrong answer; a job in which most end
that way measures nothing, and stops with the reason instead of spending on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from stepmark.errors import ConfigError
from stepmark.types import Finish, LabelledSolution, Solution

ADVICE = {
    "failed": "see the reasons in the ledger, and whether the server is up",
    "truncated": "allow more tokens (max_tokens), or look whether the model ends its texts at all",
    "ungradable": "look at some of the texts: the prompt may not ask for an answer that the grader can find",
}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts of what came of something asked for."""

    scored: int = 0  # ended, and could be graded or scored, right or wrong
    ungradable: int = 0  # ended, but could not be
    truncated: int = 0  # ran out of tokens
    failed: int = 0  # never came

    @property
    def total(self) -> int:
        return self.scored + self.ungradable + self.truncated + self.failed

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest shares, from 0 to 1, that a stage puts up with. 1 never stops."""

    failed: float = 0.2
    truncated: float = 0.5
    ungradable: float = 0.5
    after: int = 200  # outcomes before the shares count

    def __post_init__(self) -> None:
        faults = [
            f"limits: {name} is a share from 0 to 1, got {getattr(self, name)}."
            for name in ADVICE
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.after < 1:
            faults.append(f"limits: after must be at least 1 outcome, got {self.after}.")
        if faults:
            raise ConfigError(faults)

    def exceeded(self, outcomes: Outcomes) -> str | None:
        """Why to stop, with what to do about it; None while all is well."""
        if outcomes.total < self.after:
            return None
        for name, advice in ADVICE.items():
            share = getattr(outcomes, name) / outcomes.total
            if share > getattr(self, name):
                return (
                    f"{getattr(outcomes, name)} of {outcomes.total} rollouts ({share:.0%}) were {name}, more than the "
                    f"{getattr(self, name):.0%} allowed (limits.{name}): {advice}."
                )
        return None


COMPARED = ("outcome", "rule", "nli")  # sources of labels that no rollout stands behind


def of_labels(labelled: Iterable[LabelledSolution]) -> Outcomes:
    """Of the rollouts behind labels. Labels that no rollout stands behind are left out."""
    labels = [x for found in labelled for x in found.labels if x.source not in COMPARED and not x.inferred]
    return Outcomes(
        sum(x.gradable for x in labels),
        sum(x.ungradable for x in labels),
        sum(x.truncated for x in labels),
        sum(x.failed for x in labels),
    )


def of_solutions(solutions: Iterable[Solution]) -> Outcomes:
    """Of drawn solutions, which nobody has graded yet: one that ended counts as scored."""
    cut = [s.finish is Finish.LENGTH for s in solutions]
    return Outcomes(scored=len(cut) - sum(cut), truncated=sum(cut))

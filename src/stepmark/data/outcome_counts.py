"""How rollouts and verifications ended, counted apart, and how much of what can't be used is too much.

A rollout that could not be graded, ran out of tokens or never came is not a wrong answer; a job in which most end
that way measures nothing, and stops with the reason instead of spending on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from stepmark.errors import ConfigError
from stepmark.text.grading import TRUNCATED
from stepmark.types import Finish, GradedSolution, LabelledSolution, Outcome, Solution, Verdict, Verification

Record = TypeVar("Record")

ADVICE = {
    "failed": "see the reasons in the ledger, and whether the server is up",
    "truncated": "allow more tokens (max_tokens), or look whether the model ends its texts at all",
    "ungradable": "look at some of the texts: the prompt may not ask for an answer that the grader can find",
}


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """Counts of what came of something asked for."""

    scored: int = 0  # ended, and could be graded or scored, right or wrong
    ungradable: int = 0  # ended, but could not be
    truncated: int = 0  # ran out of tokens
    failed: int = 0  # never came

    @property
    def total(self) -> int:
        return self.scored + self.ungradable + self.truncated + self.failed

    def __add__(self, other: OutcomeCounts) -> OutcomeCounts:
        return OutcomeCounts(
            self.scored + other.scored,
            self.ungradable + other.ungradable,
            self.truncated + other.truncated,
            self.failed + other.failed,
        )


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

    def exceeded(self, outcomes: OutcomeCounts, what: str = "rollouts") -> str | None:
        """Why to stop, with what to do about it; None while all is well. `what` was asked for, in words."""
        if outcomes.total < self.after:
            return None
        for name, advice in ADVICE.items():
            share = getattr(outcomes, name) / outcomes.total
            if share > getattr(self, name):
                return (
                    f"{getattr(outcomes, name)} of {outcomes.total} {what} ({share:.0%}) were {name}, more than the "
                    f"{getattr(self, name):.0%} allowed (limits.{name}): {advice}."
                )
        return None


# What may become of a rationale; one of the kept ones may be rewritten, and says yes or no.
LOST = ("unasked", "failed", "truncated", "unparsed", "mismatch", "leak")
RATIONALES = ("asked", "kept", "rewritten", *LOST, "kept_yes", "kept_no")
COMPARED = ("outcome", "rule", "nli")  # sources of labels that no rollout stands behind


def parse_limits(texts: Sequence[str]) -> Limits:
    """`truncated=0.9`, `after=1000`; the usual ones for none. Raises ConfigError with all faults."""
    given, faults = dict[str, float](), []
    names = [f.name for f in fields(Limits)]
    for text in texts:
        name, _, number = text.partition("=")
        try:
            given[name] = int(number) if name == "after" else float(number)
        except ValueError:
            faults.append(f"limit: {text!r} is not NAME=NUMBER, e.g. truncated=0.9.")
        if name not in names:
            faults.append(f"limit: there is none of the name {name!r}. There are: {', '.join(names)}.")
    if faults:
        raise ConfigError(faults)
    return Limits(**given)  # type: ignore[arg-type]


class LimitCheck(Generic[Record]):
    """Adds up the outcomes of a sitting as its records come, and says when to stop (units.run's `watch`)."""

    def __init__(self, limits: Limits | None, of: Callable[[Sequence[Record]], OutcomeCounts], what: str) -> None:
        self.limits, self.of, self.what = limits or Limits(), of, what
        self.total = OutcomeCounts()

    def __call__(self, records: Sequence[Record], failed: int) -> str | None:
        self.total += self.of(records) + OutcomeCounts(failed=failed)
        return self.limits.exceeded(self.total, self.what)


def of_labels(labelled: Iterable[LabelledSolution]) -> OutcomeCounts:
    """Of the rollouts behind labels, and of rationales that a model wrote: one without a verdict counts as ungradable,
    one that is lost for what it says as scored. Labels that no rollout stands behind are left out."""
    labelled = list(labelled)
    labels = [x for found in labelled for x in found.labels if x.source not in COMPARED and not x.inferred]
    lost = [r.lost for found in labelled for r in found.rationales if r.source != "oracle" and r.lost != "unasked"]
    came = Counter(lost)
    return OutcomeCounts(
        sum(x.gradable for x in labels) + len(lost) - came["unparsed"] - came["truncated"] - came["failed"],
        sum(x.ungradable for x in labels) + came["unparsed"],
        sum(x.truncated for x in labels) + came["truncated"],
        sum(x.failed for x in labels) + came["failed"],
    )


def of_rationales(labelled: Iterable[LabelledSolution]) -> dict[str, dict[str, int]]:
    """What became of written verifications: source -> how many were asked for, kept, and lost for which reason; of
    those kept, how many were rewritten and how many say yes and no."""
    found: dict[str, Counter[str]] = {}
    for rationale in (r for x in labelled for r in x.rationales):
        counts = found.setdefault(rationale.source, Counter(dict.fromkeys(RATIONALES, 0)))
        counts["asked"] += 1
        counts[rationale.lost or "kept"] += 1
        if rationale.kept:
            counts["rewritten"] += rationale.rewritten
            counts[f"kept_{rationale.said}"] += 1
    return {source: dict(counts) for source, counts in sorted(found.items())}


def of_solutions(solutions: Iterable[Solution]) -> OutcomeCounts:
    """Of drawn solutions, which nobody has graded yet: one that ended counts as scored."""
    cut = [s.finish is Finish.LENGTH for s in solutions]
    return OutcomeCounts(scored=len(cut) - sum(cut), truncated=sum(cut))


def of_grades(graded: Sequence[GradedSolution]) -> OutcomeCounts:
    """Of graded solutions; one that ran out of tokens is known by its reason."""
    cut = sum(g.grade == TRUNCATED for g in graded)
    bad = sum(g.grade.verdict is Verdict.UNGRADABLE for g in graded) - cut
    return OutcomeCounts(len(graded) - bad - cut, bad, cut)


def of_verifications(verifications: Iterable[Verification]) -> OutcomeCounts:
    """Of verifications; one that could not be parsed counts as ungradable."""
    found = Counter(v.outcome for v in verifications)
    return OutcomeCounts(
        found[Outcome.SCORED], found[Outcome.UNPARSED], found[Outcome.TRUNCATED], found[Outcome.FAILED]
    )

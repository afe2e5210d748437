"""Counts of how rollouts and verifications ended, and limits on the shares that can't be used.

A rollout that could not be graded, ran out of tokens or never came is not a wrong answer. A stage in which most
rollouts end that way measures nothing, so it stops with the reason and spends no more.
"""

from __future__ import annotations

import re
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
    "truncated": "allow more tokens (max_tokens), or check whether the model ends its texts at all",
    "ungradable": "look at some of the texts: the prompt may not ask for an answer that the grader can find; "
    "a base model needs worked examples (few_shot)",
}


# What to do where no text of a model has an answer
ANSWERS = (
    "Set the prompt so that the model ends with an answer that the grader finds, such as 'The answer is 7.'; "
    "max_tokens so that its texts end; stop so that nothing comes after the answer; where the reason is about the "
    "reference, another grader. A base model needs examples: sample.few_shot=4 (--few-shot 4) puts worked ones of the "
    "task before each question."
)
QUOTED = r"'[^']*'|\"[^\"]*\"|\d+"  # details in the reason of a grade: parts of texts, and numbers


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """Counts of the outcomes of rollouts, solutions or verifications."""

    scored: int = 0  # ended, and could be graded or scored, right or wrong
    ungradable: int = 0  # ended, but could not be graded or scored
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
    """The largest shares, from 0 to 1, that a stage allows. A share of 1 never stops it."""

    failed: float = 0.2  # that never came
    truncated: float = 0.5  # that ran out of tokens
    ungradable: float = 0.5  # that ended but could not be graded or parsed
    after: int = 200  # outcomes before the shares are checked

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
        """The reason to stop, with advice; None if all shares are within the limits. `what` names the things that are
        counted, in the message."""
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


# Why a rationale is lost, and the keys of `of_rationales`: a kept rationale may be rewritten, and says yes or no.
LOST = ("unasked", "failed", "truncated", "unparsed", "mismatch", "leak")
RATIONALES = ("asked", "kept", "rewritten", *LOST, "kept_yes", "kept_no")
COMPARED = ("outcome", "rule", "nli")  # sources of labels that are made without rollouts


def parse_limits(texts: Sequence[str]) -> Limits:
    """Parses `truncated=0.9`, `after=1000`; the default limits for no texts. Raises ConfigError with all faults."""
    limits, faults = dict[str, float](), []
    names = [f.name for f in fields(Limits)]
    for text in texts:
        name, _, number = text.partition("=")
        try:
            limits[name] = int(number) if name == "after" else float(number)
        except ValueError:
            faults.append(f"limit: {text!r} is not NAME=NUMBER, e.g. truncated=0.9.")
        if name not in names:
            faults.append(f"limit: there is none of the name {name!r}. There are: {', '.join(names)}.")
    if faults:
        raise ConfigError(faults)
    return Limits(**limits)  # type: ignore[arg-type]


class LimitCheck(Generic[Record]):
    """Adds up the outcomes of a stage as its records come, and returns the reason to stop, if any. It is the `watch`
    argument of `work_units.run`. The counts begin at zero with each command."""

    def __init__(self, limits: Limits | None, of: Callable[[Sequence[Record]], OutcomeCounts], what: str) -> None:
        self.limits, self.of, self.what = limits or Limits(), of, what
        self.total = OutcomeCounts()

    def __call__(self, records: Sequence[Record], failed: int) -> str | None:
        self.total += self.of(records) + OutcomeCounts(failed=failed)
        return self.limits.exceeded(self.total, self.what)


def most_frequent(reasons: Sequence[str], detail: str) -> tuple[int, int]:
    """The place of the first of the most frequent reasons, and how many there are of it. Reasons that differ only where
    the pattern `detail` matches are one."""
    kinds = [re.sub(detail, "", reason) for reason in reasons]
    [(kind, count)] = Counter(kinds).most_common(1)
    return kinds.index(kind), count


def of_labels(labelled: Iterable[LabelledSolution]) -> OutcomeCounts:
    """Outcomes of the rollouts behind labels, and of the rationales that a model wrote. A rationale without a verdict
    counts as ungradable; one that is lost because of its content counts as scored. Labels made without rollouts are
    left out."""
    labelled = list(labelled)
    labels = [x for item in labelled for x in item.labels if x.source not in COMPARED and not x.inferred]
    lost = [r.lost for item in labelled for r in item.rationales if r.source != "oracle" and r.lost != "unasked"]
    reasons = Counter(lost)
    return OutcomeCounts(
        sum(x.gradable for x in labels) + len(lost) - reasons["unparsed"] - reasons["truncated"] - reasons["failed"],
        sum(x.ungradable for x in labels) + reasons["unparsed"],
        sum(x.truncated for x in labels) + reasons["truncated"],
        sum(x.failed for x in labels) + reasons["failed"],
    )


def of_rationales(labelled: Iterable[LabelledSolution]) -> dict[str, dict[str, int]]:
    """Counts of rationales by source: how many were asked for, kept, and lost for each reason; of the kept ones, how
    many were rewritten, and how many say yes and no."""
    by_source: dict[str, Counter[str]] = {}
    for rationale in (r for x in labelled for r in x.rationales):
        counts = by_source.setdefault(rationale.source, Counter(dict.fromkeys(RATIONALES, 0)))
        counts["asked"] += 1
        counts[rationale.lost or "kept"] += 1
        if rationale.kept:
            counts["rewritten"] += rationale.rewritten
            counts[f"kept_{rationale.said}"] += 1
    return {source: dict(counts) for source, counts in sorted(by_source.items())}


def of_solutions(solutions: Iterable[Solution]) -> OutcomeCounts:
    """Outcomes of sampled solutions that are not graded yet: a solution that ended counts as scored."""
    truncated = [s.finish is Finish.LENGTH for s in solutions]
    return OutcomeCounts(scored=len(truncated) - sum(truncated), truncated=sum(truncated))


def of_grades(graded: Sequence[GradedSolution]) -> OutcomeCounts:
    """Outcomes of graded solutions. A solution that ran out of tokens is recognised by the reason in its grade."""
    truncated = sum(g.grade == TRUNCATED for g in graded)
    ungradable = sum(g.grade.verdict is Verdict.UNGRADABLE for g in graded) - truncated
    return OutcomeCounts(len(graded) - ungradable - truncated, ungradable, truncated)


def of_verifications(verifications: Iterable[Verification]) -> OutcomeCounts:
    """Outcomes of verifications; one that could not be parsed counts as ungradable."""
    counts = Counter(v.outcome for v in verifications)
    return OutcomeCounts(
        counts[Outcome.SCORED], counts[Outcome.UNPARSED], counts[Outcome.TRUNCATED], counts[Outcome.FAILED]
    )

"""The data of a report: the numbers of metrics.json, and the records for its sample solutions.

`Metrics.parse` reads metrics.json. Every part may be missing: for example, an outcome verifier on real data has no step
labels and no oracle. A malformed part raises a DataError that names its place in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stepmark.evaluation.token_curves import Compute
from stepmark.report import costs, policies
from stepmark.report.policies import Policies
from stepmark.report.reading import Estimate, curve, estimate, fault, items, numbers, whole
from stepmark.types import GradedSolution, Problem, Quarantined, Selection, Solution, Verification

PLAIN_VOTE = "self_consistency"
VOTE_BY = PLAIN_VOTE + "+"  # prefix of a vote weighted by a verifier
ONE_SAMPLE = "pass@1"
ORACLE = "oracle"
NO_VERIFIER = (ONE_SAMPLE, PLAIN_VOTE, ORACLE)


@dataclass(frozen=True, slots=True)
class Difference:
    """The accuracy of one method minus another's, on the same problems."""

    left: str  # the first method
    right: str  # the method that is subtracted
    n: int  # candidates
    estimate: Estimate  # in shares: 0.5 is 50 points

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.estimate.clear


@dataclass(frozen=True, slots=True)
class Missed:
    """How often a verifier missed one kind of error."""

    kind: str
    missed: int  # wrong solutions that it did not notice
    total: int  # solutions with this kind of error

    @property
    def rate(self) -> float:
        return self.missed / self.total if self.total else math.nan


@dataclass(frozen=True, slots=True)
class Metrics:
    """metrics.json, typed. An empty part was not measured."""

    best_of_n: Mapping[str, Mapping[int, Estimate]] = field(default_factory=dict)  # method -> N -> accuracy
    problems: int = 0  # test problems
    candidates: int = 0  # solutions to them
    seed: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> wall seconds
    label_quality: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # rollouts -> measure -> value
    auc: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)  # verifier -> kind of AUC -> value
    differences: tuple[Difference, ...] = ()
    errors_missed: Mapping[str, tuple[Missed, ...]] = field(default_factory=dict)  # verifier -> kinds
    errors_selected: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # verifier -> kind -> share
    rates: Mapping[str, float] = field(default_factory=dict)  # outcome -> share or count
    notes: tuple[str, ...] = ()  # sentences for the reader
    votes: Mapping[str, Mapping[int, Estimate]] = field(default_factory=dict)  # verifier -> K -> accuracy, largest N
    compute: Compute | None = None  # accuracy by tokens
    rationales: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # source -> outcome -> count
    policies: Policies | None = None  # results of reinforcement, if the recipe has it
    out_of_distribution: Metrics | None = None  # of a second test set, if the recipe has one

    @property
    def ns(self) -> list[int]:
        """All N that occur, ascending."""
        return sorted({n for row in self.best_of_n.values() for n in row})

    @property
    def main_methods(self) -> list[str]:
        """The methods in the order of the report, without further aggregations (`prm:prod`)."""
        names = [m for m in self.best_of_n if ":" not in m]
        verifiers = list(dict.fromkeys(verifier_of(m) for m in names if m not in NO_VERIFIER))
        order = [ONE_SAMPLE, PLAIN_VOTE]
        for v in verifiers:
            order += [v, VOTE_BY + v]
        return [m for m in [*order, ORACLE] if m in self.best_of_n]

    @property
    def total_seconds(self) -> float:
        return sum(s for stage, s in self.seconds.items() if stage != "total") or self.seconds.get("total", 0.0)

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Metrics:
        """From the decoded metrics.json. Raises DataError that names the malformed part."""
        return cls(
            best_of_n={m: curve(row, f"best_of_n.{m}") for m, row in items(raw.get("best_of_n"), "best_of_n")},
            problems=whole(raw.get("problems", 0), "problems"),
            candidates=whole(raw.get("candidates", 0), "candidates"),
            seed=None if raw.get("seed") is None else whole(raw["seed"], "seed"),
            seconds=numbers(raw.get("seconds"), "seconds"),
            label_quality={
                whole(n, "label_quality"): numbers(row, f"label_quality.{n}")
                for n, row in items(raw.get("label_quality"), "label_quality")
            },
            auc={v: _auc(a, f"auc.{v}") for v, a in items(raw.get("auc"), "auc")},
            differences=tuple(_differences(raw.get("differences"))),
            errors_missed={
                v: tuple(_missed(kinds, f"errors_missed.{v}"))
                for v, kinds in items(raw.get("errors_missed"), "errors_missed")
            },
            errors_selected={
                v: numbers(kinds, f"errors_selected.{v}")
                for v, kinds in items(raw.get("errors_selected"), "errors_selected")
            },
            rates=numbers(raw.get("rates"), "rates"),
            notes=_notes(raw.get("notes")),
            votes={
                v: curve(row, f"votes_by_verifier.{v}")
                for v, row in items(raw.get("votes_by_verifier"), "votes_by_verifier")
            },
            compute=costs.parse(raw.get("compute"), "compute"),
            rationales={
                source: {
                    what: whole(n, f"rationales.{source}.{what}") for what, n in items(counts, f"rationales.{source}")
                }
                for source, counts in items(raw.get("rationales"), "rationales")
            },
            policies=policies.parse(raw),
            out_of_distribution=_section(raw.get("out_of_distribution"), "out_of_distribution"),
        )


@dataclass(frozen=True, slots=True)
class TrainPoint:
    """One logged value of a training run."""

    update: int  # number of updates made
    name: str  # of the logged value: "loss", "lr", "accuracy"
    value: float


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows. Only `name` and `metrics` are required; sections without data are left out."""

    name: str  # of the run
    metrics: Metrics
    task: str = ""
    date: str = ""  # when the run ended, as text for the reader
    machine: str = ""  # one line: processor, cores, memory, versions
    command: str = ""  # the command line that repeats this run
    config: Mapping[str, object] = field(default_factory=dict)  # resolved configuration, nested
    problems: Sequence[Problem] = ()  # test problems
    solutions: Sequence[Solution] = ()  # candidates for them
    grades: Sequence[GradedSolution] = ()
    verifications: Mapping[str, Sequence[Verification]] = field(default_factory=dict)  # by verifier
    selections: Sequence[Selection] = ()  # of each method
    oracle: Mapping[str, Sequence[bool]] = field(default_factory=dict)  # solution id -> one flag per step
    kinds: Mapping[str, str] = field(default_factory=dict)  # solution id -> kind of its first error
    training: Mapping[str, Sequence[TrainPoint]] = field(default_factory=dict)  # model -> log, in order of update
    quarantined: Sequence[Quarantined] = ()  # rows left out
    verifiers: Mapping[str, str] = field(default_factory=dict)  # verifier -> description, one line
    aggregate: str = ""  # the default aggregation of step scores, "" if it is not shown


def verifier_of(method: str) -> str:
    """The verifier of a method, "" for methods without a verifier."""
    name = method.removeprefix(VOTE_BY).partition(":")[0]
    return "" if name in NO_VERIFIER else name


def phrase(method: str) -> str:
    """The name of a method for the reader."""
    base, _, candidates = method.rpartition("@")
    if candidates.isdigit() and method != ONE_SAMPLE:
        return f"{phrase(base)} at N = {candidates}"
    name, _, aggregation = method.partition(":")
    suffix = f" ({aggregation})" if aggregation else ""
    if name == ONE_SAMPLE:
        return "one sample"
    if name == PLAIN_VOTE:
        return "plain voting"
    if name == ORACLE:
        return "oracle choice"
    if name.startswith(VOTE_BY):
        return f"votes weighted by {name.removeprefix(VOTE_BY)}{suffix}"
    return f"best by {name}{suffix}"


def _section(value: object, where: str) -> Metrics | None:
    return None if value is None else Metrics.parse(dict(items(value, where)))


def _auc(value: object, where: str) -> dict[str, Estimate]:
    if isinstance(value, Mapping) and "mean" not in value:
        return {k: estimate(v, f"{where}.{k}") for k, v in items(value, where) if v is not None}
    return {} if value is None else {"within problem": estimate(value, where)}


def _differences(value: object) -> Iterator[Difference]:
    """Reads `{"A - B": {"64": estimate}}`; `B` may be "A@16", the same method at another N."""
    for name, row in items(value, "differences"):
        left, _, right = name.partition(" - ")
        for n, difference in curve(row, f"differences.{name}").items():
            if right != f"{left}@{n}":
                yield Difference(left, right, n, difference)


def _missed(value: object, where: str) -> Iterator[Missed]:
    for kind, counts in items(value, where):
        place = f"{where}.{kind}"
        fields = dict(items(counts, place))
        yield Missed(kind, whole(fields.get("missed"), f"{place}.missed"), whole(fields.get("total"), f"{place}.total"))


def _notes(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise fault("notes", value, "a list of sentences")
    return tuple(str(v) for v in value)

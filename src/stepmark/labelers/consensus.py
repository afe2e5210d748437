"""Step labels that several labellers agree on.

The consensus filter of Qwen's PRM lessons (arXiv 2501.07301, section 3.2): Monte-Carlo labels mistake lucky
continuations for right steps, judges mistake plausible steps for right ones; a solution is kept where both name the
same step as the first wrong one. There about 40% were kept.

Labellers are given by name (or by path) with their options, two or more of them. keep="solution" keeps all labels of
a solution where they agree on the first wrong step, or on there being none; keep="step" keeps each step on which all
agree. What is kept has the first labeller's counts (source "consensus"; labels that were inferred, or are an outcome,
say so still); what is not is unknown (source "consensus:disagree"). A labeller that doesn't know agrees with nobody.

A step counts as wrong by its hard label, or with `estimate: soft` by a soft label below 1/2.

    label: {name: consensus, options: {labelers: [{name: monte_carlo, options: {rollouts: 8}}, {name: judge}]}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.plugins import registry
from stepmark.protocols import Labeler, Tools
from stepmark.types import LabelledSolution, StepLabel, Unlabelled

DISAGREE = StepLabel(0, 0, source="consensus:disagree")
KEYS = ("name", "options", "estimate")


@dataclass(frozen=True, slots=True)
class Consensus:
    """The labeller. Makes its parts to check their options: raises ConfigError with the faults of all of them."""

    # Each a name, or {name, options, estimate}, where estimate is hard (the default) or soft; the first one's labels
    # are those that are kept
    labelers: Sequence[str | Mapping[str, Any]] = ("monte_carlo", "judge")
    keep: Literal["solution", "step"] = "solution"  # what is kept together

    def __post_init__(self) -> None:
        if isinstance(self.labelers, str) or len(self.labelers) < 2:
            raise ConfigError(f"consensus: labelers is a list of two or more, got {self.labelers!r}.")
        faults = []
        for given in self.labelers:
            try:
                _made(given)
            except ConfigError as e:
                faults += [f"consensus: {fault}" for fault in e.faults]
        if faults:
            raise ConfigError(faults)

    @property
    def uses(self) -> frozenset[str]:
        """What any of the labellers needs."""
        return frozenset[str]().union(*(getattr(part, "uses", ()) for part, _ in map(_made, self.labelers)))

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """All units by each labeller in turn."""
        parts = [_made(given) for given in self.labelers]
        found = [({x.key: x for x in part.label(units, tools)}, estimate) for part, estimate in parts]
        for unit in units:
            mine = [(by_id[unit.solution.id], estimate) for by_id, estimate in found]
            first, _ = mine[0]
            opinions = [[_opinion(label, estimate) for label in x.labels] for x, estimate in mine]
            kept = [_kept(label) for label in first.labels]
            if self.keep == "step":
                kept = [k if _agree(o) else DISAGREE for k, o in zip(kept, zip(*opinions, strict=True), strict=True)]
            elif not _agree([evidence.first_error(o) for o in opinions]):
                kept = [DISAGREE] * len(kept)
            # A step of which nothing came is to be tried again: that must not look like a disagreement.
            lost = [
                next((x for x in labels if x.failed and not x.known), None)
                for labels in zip(*(x.labels for x, _ in mine), strict=True)
            ]
            yield replace(first, labels=tuple(bad or label for bad, label in zip(lost, kept, strict=True)))


def _made(given: str | Mapping[str, Any]) -> tuple[Labeler, str]:
    spec = {"name": given} if isinstance(given, str) else given
    faults = [f"a labeller is a name, or has {', '.join(KEYS)}; got {given!r}."]
    if not isinstance(spec, Mapping) or set(spec) - set(KEYS) or not isinstance(spec.get("name"), str):
        raise ConfigError(faults)
    options, estimate = spec.get("options") or {}, spec.get("estimate", "hard")
    if not isinstance(options, Mapping) or estimate not in ("hard", "soft"):
        raise ConfigError(f"options of a labeller are a mapping, its estimate is hard or soft; got {given!r}.")
    made: Labeler = registry.load("labeler", spec["name"], **options)
    return made, estimate


def _opinion(label: StepLabel, estimate: str) -> StepLabel:
    """The label reduced to what it says: right, wrong or nothing."""
    if not label.known:
        return StepLabel(0, 0)
    return StepLabel(int(label.hard if estimate == "hard" else label.soft >= 0.5), 1)


def _agree(said: Sequence[object]) -> bool:
    return all(x == said[0] and x is not None and x != StepLabel(0, 0) for x in said)


def _kept(label: StepLabel) -> StepLabel:
    return label if label.inferred or label.source == "outcome" else replace(label, source="consensus")

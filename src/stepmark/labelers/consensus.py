"""Step labels that several labelers agree on.

The consensus filter of Qwen's PRM lessons (arXiv 2501.07301, section 3.2). Monte-Carlo labels take lucky continuations
for correct steps, and judges take plausible steps for correct ones. The filter keeps a solution if both find the same
first wrong step. In that paper about 40% of the solutions were kept.

`labelers` lists two or more labelers by name or path, each with its options. keep="solution" keeps all labels of a
solution if the labelers agree on the first wrong step, or agree that there is none. keep="step" keeps each step on
which all agree. A kept label has the counts of the first labeler and the source "consensus"; an inferred label and an
outcome keep their own source. Any other label is unknown (source "consensus:disagree"). An unknown label never agrees
with another label.

A step counts as wrong if its hard label is 0, or with `estimate: soft` if its soft label is below 1/2.

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
    """The labeler. Loads its labelers to check their options, and raises ConfigError with all faults at once."""

    # Each entry is a name, or {name, options, estimate} with the estimate hard (the default) or soft. The labels of the
    # first labeler are the ones that are kept
    labelers: Sequence[str | Mapping[str, Any]] = ("monte_carlo", "judge")
    keep: Literal["solution", "step"] = "solution"  # keep or drop all labels of a solution together, or each step alone

    def __post_init__(self) -> None:
        if isinstance(self.labelers, str) or len(self.labelers) < 2:
            raise ConfigError(f"consensus: labelers must be a list of two or more labelers, got {self.labelers!r}.")
        faults = []
        for entry in self.labelers:
            try:
                _load(entry)
            except ConfigError as e:
                faults += [f"consensus: {fault}" for fault in e.faults]
        if faults:
            raise ConfigError(faults)

    @property
    def uses(self) -> frozenset[str]:
        """The tools that any of the labelers needs."""
        return frozenset[str]().union(*(getattr(labeler, "uses", ()) for labeler, _ in map(_load, self.labelers)))

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Labels all units with each labeler in turn, then compares the labels."""
        by_labeler = [
            ({labelled.key: labelled for labelled in labeler.label(units, tools)}, estimate)
            for labeler, estimate in [_load(entry) for entry in self.labelers]
        ]
        for unit in units:
            of_unit = [(by_id[unit.solution.id], estimate) for by_id, estimate in by_labeler]
            first, _ = of_unit[0]
            verdicts = [[_verdict(label, estimate) for label in labelled.labels] for labelled, estimate in of_unit]
            kept = [_as_consensus(label) for label in first.labels]
            if self.keep == "step":
                kept = [k if _agree(o) else DISAGREE for k, o in zip(kept, zip(*verdicts, strict=True), strict=True)]
            elif not _agree([evidence.first_error(o) for o in verdicts]):
                kept = [DISAGREE] * len(kept)
            # A step whose rollouts or votes all failed is labelled again later. It must not look like a disagreement.
            lost = [
                next((label for label in labels if label.failed and not label.known), None)
                for labels in zip(*(labelled.labels for labelled, _ in of_unit), strict=True)
            ]
            yield replace(
                first, labels=tuple(lost_label or label for lost_label, label in zip(lost, kept, strict=True))
            )


def _load(entry: str | Mapping[str, Any]) -> tuple[Labeler, str]:
    spec = {"name": entry} if isinstance(entry, str) else entry
    faults = [f"a labeler must be a name, or a mapping with the keys {', '.join(KEYS)}; got {entry!r}."]
    if not isinstance(spec, Mapping) or set(spec) - set(KEYS) or not isinstance(spec.get("name"), str):
        raise ConfigError(faults)
    options, estimate = spec.get("options") or {}, spec.get("estimate", "hard")
    if not isinstance(options, Mapping) or estimate not in ("hard", "soft"):
        raise ConfigError(f"a labeler's options must be a mapping, and its estimate hard or soft; got {entry!r}.")
    labeler: Labeler = registry.load("labeler", spec["name"], **options)
    return labeler, estimate


def _verdict(label: StepLabel, estimate: str) -> StepLabel:
    """The label reduced to one verdict: correct (1, 1), wrong (0, 1) or unknown (0, 0)."""
    if not label.known:
        return StepLabel(0, 0)
    return StepLabel(int(label.hard if estimate == "hard" else label.soft >= 0.5), 1)


def _agree(opinions: Sequence[object]) -> bool:
    return all(x == opinions[0] and x is not None and x != StepLabel(0, 0) for x in opinions)


def _as_consensus(label: StepLabel) -> StepLabel:
    return label if label.inferred or label.source == "outcome" else replace(label, source="consensus")

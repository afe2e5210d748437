"""Stages `label` and `rationales WRITER`: step labels and written verifications of the training solutions.

stepmark run recipes/demo.yaml --only label
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stepmark.data import outcome_counts
from stepmark.data.ledger import Ledger
from stepmark.data.store import Records
from stepmark.protocols import Tools
from stepmark.run.context import RunContext, rationales_name
from stepmark.run.schema import Labeler
from stepmark.run.stage import State
from stepmark.run.training_data import TrainingData
from stepmark.stages.label import ROLES, label, ledgers, references_among
from stepmark.types import LabelledSolution

READS = ("problems/train.jsonl", "solutions/train.jsonl", "grades/train.jsonl")


@dataclass(frozen=True, slots=True)
class Label:
    """Labels the steps of the training solutions."""

    name: str = "label"

    def inputs(self, context: RunContext) -> Sequence[str]:
        return READS

    def outputs(self, context: RunContext) -> Sequence[str]:
        judge = ["rollouts/judge.jsonl"] if context.recipe.judge is not None else []
        return ["labels/train.jsonl", "rollouts/labels.jsonl", *judge]

    def state(self, context: RunContext) -> State:
        return _state(context, context.recipe.label, context.labels)

    def run(self, context: RunContext) -> None:
        assert context.recipe.label is not None
        _label(context, context.recipe.label, context.labels, ledgers(context.rollouts, context.tools))


@dataclass(frozen=True, slots=True)
class WriteRationales:
    """Writes verifications of the training solutions, which generative verifiers learn from."""

    writer: str  # the verifier whose own writer this is; "" is the writer for all verifiers

    @property
    def name(self) -> str:
        return f"rationales {self.writer}".rstrip()

    def inputs(self, context: RunContext) -> Sequence[str]:
        trained = context.recipe.judge is not None and context.recipe.judge.train is not None
        return [*READS, *(["judge/"] if trained else [])]

    def outputs(self, context: RunContext) -> Sequence[str]:
        roles = [role for role in ROLES if context.role(role) is not None]
        paid = [f"rollouts/{_prefix(self.writer)}{role}.jsonl" for role in roles]
        return [f"{rationales_name(self.writer)}.jsonl", *paid]

    def state(self, context: RunContext) -> State:
        return _state(context, context.recipe.writers[self.writer], context.rationales(self.writer))

    def run(self, context: RunContext) -> None:
        paid = rationale_ledgers(context.rollouts, context.tools, self.writer)
        _label(context, context.recipe.writers[self.writer], context.rationales(self.writer), paid)


def rationale_ledgers(directory: Path, tools: Tools, writer: str = "") -> dict[str, Ledger]:
    """Role -> ledger of a writer. Labelers use the same models with other prompts, so they have other ledgers."""
    return {
        role: Ledger.of(directory / f"{_prefix(writer)}{role}.jsonl", backend)
        for role in ROLES
        if (backend := getattr(tools, role)) is not None
    }


def _prefix(writer: str) -> str:
    return f"rationales-{writer}-" if writer else "rationales-"


def _state(context: RunContext, labeler: Labeler | None, records: Records[LabelledSolution]) -> State:
    count = len(records)
    if not count or labeler is None:
        return State(count)
    pairs = TrainingData(context).pairs(labeler)
    keys = records.keys()
    return State(sum(s.id in keys for _, s in pairs), len(pairs))


def _label(context: RunContext, labeler: Labeler, out: Records[LabelledSolution], paid: Mapping[str, Ledger]) -> None:
    grades = {g.solution_id: g.grade for g in context.grades("train")}
    data = TrainingData(context)
    data.need_answers()
    pairs = data.pairs(labeler)
    result = label(
        pairs,
        labeler.load(),
        context.tools,
        out,
        references=references_among(pairs, lambda _, s: grades.get(s.id)),
        ledgers=paid,
        budget=context.budget,
        limits=context.recipe.limits,
        executor=context.executor,
        progress=context.log.progress,
    )
    rationales = outcome_counts.of_rationales(out)
    context.log.summary(asdict(result) | ({"rationales": rationales} if rationales else {}), result.failed)

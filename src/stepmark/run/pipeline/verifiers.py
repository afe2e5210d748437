"""Stage `train verifiers`: trains the recipe's verifiers, as many at a time as there are workers.

A finished training is not repeated, even if labels that failed before have been added since.

stepmark run recipes/demo.yaml --only "train verifiers"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepmark.plugins import verifier_card
from stepmark.run.context import RunContext, rationales_name
from stepmark.run.stage import State
from stepmark.run.training_data import Example, TrainingData
from stepmark.stages.train import Trained, TrainSettings, train
from stepmark.text.prompts import Template


@dataclass(frozen=True, slots=True)
class _Job:
    """A verifier to train."""

    name: str
    verifier: str  # the recipe's verifier whose settings it has; another than `name` for a refreshed verifier
    trainee: Any
    place: Path  # its directory
    settings: TrainSettings
    additional: list[Example]  # in addition to the shared examples
    own: list[Example] | None = None  # instead of the shared examples


@dataclass(frozen=True, slots=True)
class TrainVerifiers:
    """Trains every verifier whose kind is trained; those that build on others come after them."""

    name: str = "train verifiers"

    def inputs(self, context: RunContext) -> Sequence[str]:
        recipe = context.recipe
        files = ["problems/train.jsonl", "solutions/train.jsonl", "grades/train.jsonl"]
        labelled = recipe.label is not None or recipe.sample.train.file is not None
        files += ["labels/train.jsonl"] if labelled else []
        files += [f"{rationales_name(writer)}.jsonl" for writer in recipe.writers]
        from_generator = [
            v for v in recipe.verifiers.values() if v.starts_from_model and not (v.base.path or v.base.init)
        ]
        trained = recipe.generator is not None and recipe.generator.train is not None
        return [*files, *(["generator/"] if from_generator and trained else [])]

    def outputs(self, context: RunContext) -> Sequence[str]:
        verifiers = context.recipe.verifiers
        new = [f"bases/{name}/" for name in learning(context) if verifiers[name].base.init is not None]
        return [*(f"verifiers/{name}/" for name in learning(context)), *new]

    def state(self, context: RunContext) -> State:
        names = learning(context)
        return State(sum(context.trained(f"verifiers/{name}") for name in names), len(names))

    def run(self, context: RunContext) -> None:
        todo = [name for name in learning(context) if not context.trained(f"verifiers/{name}")]
        data = TrainingData(context)
        data.need_answers()
        examples = data.examples()
        for builds_on_others in (False, True):
            names = [name for name in todo if bool(context.recipe.verifiers[name].below) == builds_on_others]
            _train_all(context, [_job(context, data, name, examples) for name in names], examples)


def learning(context: RunContext) -> list[str]:
    """The names of the verifiers that are trained."""
    return [name for name, verifier in context.recipe.verifiers.items() if verifier.learns]


def train_again(context: RunContext, verifier: str, name: str, examples: list[Example]) -> None:
    """Trains one of the recipe's verifiers again, with another name and other examples."""
    _train_all(context, [_job(context, TrainingData(context), verifier, examples, name)], examples)


def _job(context: RunContext, data: TrainingData, verifier: str, examples: list[Example], name: str = "") -> _Job:
    settings = context.recipe.verifiers[verifier]
    base = settings.base
    writer = context.recipe.writer(verifier)
    own = data.with_rationales(examples, writer) if writer else None
    path = ""  # no checkpoint to start from
    if base.path is not None or base.init is not None:
        path = data.base_checkpoint(verifier, base, data.verifier_texts(own or examples))
    elif settings.starts_from_model:
        assert context.recipe.generator is not None
        path = context.model_path("generator")
    return _Job(
        name or verifier,
        verifier,
        context.trainee(verifier, path),
        context.path / "verifiers" / (name or verifier),
        context.settings(settings.train),
        [*data.references(settings), *data.replay(settings)],
        own,
    )


def _train_all(context: RunContext, jobs: Sequence[_Job], examples: list[Example]) -> None:
    verifiers = {job.name: job.verifier for job in jobs}
    with context.log.follow_trainings([job.place for job in jobs]):
        for name, trained in context.executor.map(partial(_train, examples=examples), jobs):
            place = context.path / "verifiers" / name
            settings = context.recipe.verifiers[verifiers[name]]
            if not (place / verifier_card.CARD).exists():
                options = {**settings.options, **context.template_option(settings.kind)}
                template = Template(context.recipe.prompt)
                verifier_card.write_card(place, settings.kind, options, {}, template.hash)
            context.log.summary({"verifier": name, **asdict(trained)})


def _train(job: _Job, *, examples: list[Example]) -> tuple[str, Trained]:
    """Trains one verifier, in the process of a worker."""
    shared = examples if job.own is None else job.own
    return job.name, train(job.trainee, [*shared, *job.additional], job.place, job.settings)

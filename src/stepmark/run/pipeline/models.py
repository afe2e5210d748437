"""Stages `train generator`, `train completer` and `train judge`: models that the recipe trains before it uses them.

stepmark run recipes/demo.yaml --only "train generator"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from stepmark.run.context import RunContext
from stepmark.run.pipeline.problems import usable
from stepmark.run.stage import State
from stepmark.run.training_data import TrainingData
from stepmark.stages.train import Generator, train
from stepmark.text.prompts import Template


@dataclass(frozen=True, slots=True)
class TrainModel:
    """Trains the generator, or the recipe's own completer, on the task's demonstrations."""

    role: Literal["generator", "completer"]

    @property
    def name(self) -> str:
        return f"train {self.role}"

    def inputs(self, context: RunContext) -> Sequence[str]:
        return ()

    def outputs(self, context: RunContext) -> Sequence[str]:
        settings = context.role(self.role)
        new = settings is not None and settings.init is not None
        return [f"{self.role}/", *([f"bases/{self.role}/"] if new else [])]

    def state(self, context: RunContext) -> State:
        return State(int(context.trained(self.role)), 1)

    def run(self, context: RunContext) -> None:
        settings = context.role(self.role)
        assert settings is not None and settings.train is not None and context.task is not None
        loaded = usable(context, settings.split, settings.problems, f"{self.role}: ")
        template = Template(context.recipe.prompt)
        texts = [template(p) + (p.demonstration or p.reference) for p in loaded]
        base = TrainingData(context).base_checkpoint(self.role, settings, texts)
        trainee = Generator(base, context.recipe.prompt, settings.prompt_loss_weight)
        train(trainee, loaded, context.path / self.role, context.settings(settings.train), context.log.progress)


@dataclass(frozen=True, slots=True)
class TrainJudge:
    """Trains the judge on verifications that the task writes."""

    name: str = "train judge"

    def inputs(self, context: RunContext) -> Sequence[str]:
        settings = context.recipe.judge
        assert settings is not None
        base = ["generator/"] if settings.path is None and settings.init is None else []
        return ["problems/train.jsonl", "solutions/train.jsonl", "grades/train.jsonl", *base]

    def outputs(self, context: RunContext) -> Sequence[str]:
        settings = context.recipe.judge
        return ["judge/", *(["bases/judge/"] if settings is not None and settings.init is not None else [])]

    def state(self, context: RunContext) -> State:
        return State(int(context.trained("judge")), 1)

    def run(self, context: RunContext) -> None:
        settings = context.recipe.judge
        assert settings is not None and settings.train is not None
        data = TrainingData(context)
        examples = data.for_judge(settings)
        if settings.path is None and settings.init is None:
            path = context.model_path("generator")
        else:
            path = data.base_checkpoint("judge", settings, [p.question + p.demonstration for p in examples])
        trainee = Generator(path, "{question}", settings.prompt_loss_weight)
        place = context.path / "judge"
        trained = train(trainee, examples, place, context.settings(settings.train), context.log.progress)
        context.log.summary(asdict(trained))

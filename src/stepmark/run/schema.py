"""The sections of a recipe, each with its settings and what may not be said in them (run/recipe.py puts them together).

stepmark run recipes/demo.yaml sample.test.n=16 verifiers.prm.train.epochs=2
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WrapValidator, model_validator

from stepmark.data.outcome_counts import Limits
from stepmark.errors import ConfigError
from stepmark.evaluation.aggregate import AGGREGATES
from stepmark.models.checkpoints import Shape
from stepmark.plugins import registry
from stepmark.stages.train import TrainSettings
from stepmark.text.prompts import Template


def collect_faults(value: Any, make: pydantic.ValidatorFunctionWrapHandler) -> Any:
    """Lets pydantic collect what our own settings find wrong with themselves."""
    try:
        return make(value)
    except ConfigError as e:
        raise ValueError("; ".join(e.faults)) from e


def _template(text: str) -> str:
    try:
        Template(text)
    except ConfigError as e:
        raise ValueError(str(e)) from e
    return text


# Settings that stages own are theirs to define; here they only learn to refuse unknown keys.
for _kind in (TrainSettings, Shape, Limits):
    _kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]

Train = Annotated[TrainSettings, WrapValidator(collect_faults)]
Init = Annotated[Shape, WrapValidator(collect_faults)]
Limited = Annotated[Limits, WrapValidator(collect_faults)]
Prompt = Annotated[str, AfterValidator(_template)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # becomes a file's or a directory's name


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Plugin(Settings):
    """A plug-in by name, or by the path of a user's file, and its options."""

    role: ClassVar[str]
    given: ClassVar[Mapping[str, Any]] = {}  # options that the run itself fills in, with values to check the others by
    name: str  # a plug-in, or the path of your own file
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> _Plugin:
        _check_plugin(self.role, self.name, self.options, self.given)
        return self

    def load(self, **given: Any) -> Any:
        """The plug-in object. `given` are the options that the run fills in; one that it doesn't take is left out."""
        taken = registry.options(self.role, self.name)
        return registry.load(self.role, self.name, **{k: v for k, v in given.items() if k in taken}, **self.options)


def _check_plugin(role: str, name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Makes the plug-in, which does no I/O, to see whether it takes these options."""
    try:
        taken = registry.options(role, name)
        both = sorted(set(options) & set(given) & set(taken))
        if both:
            raise ConfigError(f"{role} {name}: {', '.join(both)} is filled in by the run; leave it out")
        registry.load(role, name, **{k: v for k, v in given.items() if k in taken}, **options)
    except ConfigError as e:
        raise ValueError("; ".join(e.faults)) from e
    except (TypeError, ValueError) as e:
        raise ValueError(f"{role} {name} does not take these options: {e}") from e


class Task(_Plugin):
    role = "task"


class Grader(_Plugin):
    role = "grader"


class Labeler(_Plugin):
    """How steps are labelled, or verifications of solutions written."""

    role = "labeler"
    distinct: bool = True  # label one of several solutions of a problem that have the same text


class Format(_Plugin):
    """How a file of solutions is read."""

    role = "format"

    @model_validator(mode="after")
    def _reads(self) -> Format:
        if not hasattr(registry.find("format", self.name), "read"):
            raise ValueError(f"the format {self.name} can be written, but not read")
        return self


class Backend(_Plugin):
    role = "backend"
    given: ClassVar[Mapping[str, Any]] = {"path": "model"}
    name: str = "local"  # a plug-in, or the path of your own file


class Executor(_Plugin):
    role = "executor"
    given: ClassVar[Mapping[str, Any]] = {"workers": 1}


class Stage(_Plugin):
    """A stage of the user's own, by the path of its file (run/stage.py)."""

    role = "stage"

    @property
    def stage_name(self) -> str:
        """The name of the file."""
        return Path(self.name).stem


class Base(Settings):
    """A model to start from: a checkpoint (a directory or a hub id), or a new one of some shape."""

    path: str | None = None  # a checkpoint: a directory or a hub id
    init: Init | None = None  # the shape of a new model with random weights

    @model_validator(mode="after")
    def _one(self) -> Base:
        if self.path is not None and self.init is not None:
            raise ValueError("give either path, a checkpoint, or init, the shape of a new one; not both")
        return self


class Generator(Base):
    """What draws solutions. With `train` it first learns from the demonstrations of the task."""

    train: Train | None = None
    split: str = "train"  # of the task, to learn from
    problems: int | None = Field(default=None, ge=1)  # how many of them; null takes all
    prompt_loss_weight: float = Field(default=0.0, ge=0)  # of the question's own tokens in the loss
    backend: Backend = Backend()  # what runs the model

    @model_validator(mode="after")
    def _whole(self) -> Generator:
        if self.init is not None and self.train is None:
            raise ValueError("a new model (init) can't draw solutions before it is trained: give train too")
        if self.train is not None and self.path is None and self.init is None:
            raise ValueError("train needs a model to start from: give path or init")
        needs = registry.options("backend", self.backend.name)
        if "path" in needs and self.path is None and self.init is None:
            raise ValueError(f"backend {self.backend.name} needs a model: give path or init")
        return self

    @property
    def has_model(self) -> bool:
        """Whether there is a checkpoint of it that others can start from."""
        return self.path is not None or self.train is not None


class Judge(Generator):
    """What marks steps, or writes verifications, in words. With `train` it first learns to write as the task's own
    verifications are, of the solutions of the first `problems` training problems, asked as the recipe's labellers will
    ask it; without `path` or `init` it starts from the generator's model."""

    @model_validator(mode="after")
    def _whole(self) -> Judge:
        needs = registry.options("backend", self.backend.name)
        if "path" in needs and self.path is None and self.init is None and self.train is None:
            raise ValueError(f"backend {self.backend.name} needs a model: give path, init or train")
        if self.init is not None and self.train is None:
            raise ValueError("a new model (init) can't judge before it is trained: give train too")
        if self.train is not None and "path" not in needs:
            raise ValueError(f"backend {self.backend.name} takes no model that was trained here; leave train out")
        if self.split != "train":
            raise ValueError("split: a judge learns from the training solutions; leave it out")
        return self


class SolutionSource(Settings):
    """Solutions to get, by sampling problems of the task or, with `file`, by importing them."""

    split: str | None = None  # of the task
    problems: int | None = Field(default=None, ge=1)  # how many; null takes all
    n: int = Field(default=16, ge=1)  # solutions of each problem; imported ones: the first n
    file: str | None = None  # solutions that somebody else drew
    format: Format | None = None  # how to read the file
    share: tuple[float, float] = (0.0, 1.0)  # of the file's questions, chosen by a hash of their text

    @model_validator(mode="after")
    def _one_source(self) -> SolutionSource:
        if (self.file is None) != (self.format is None):
            raise ValueError("file and format go together")
        if self.file is not None and self.split is not None:
            raise ValueError("give either split, to sample, or file, to import; not both")
        low, high = self.share
        if not 0 <= low < high <= 1:
            raise ValueError(f"share is a range [low, high) within [0, 1], got {list(self.share)}")
        return self


class Sample(Settings):
    """Where solutions come from, and how they are drawn."""

    train: SolutionSource = SolutionSource(split="train", n=4)
    test: SolutionSource = SolutionSource(split="test", n=64)
    out_of_distribution: SolutionSource | None = (
        None  # a second test part, unlike train; by default as large as `test.n`
    )
    temperature: float = Field(default=1.0, ge=0)  # 0 is greedy
    # share of the probability that is sampled from; 1 samples from all of it
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ()  # a text ends before the first of these

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        """A part that is given in part keeps the rest of its defaults."""
        if not isinstance(value, Mapping):
            return value
        usual: dict[str, dict[str, Any]] = {"train": {"split": "train", "n": 4}, "test": {"split": "test", "n": 64}}
        test = value.get("test")
        usual["out_of_distribution"] = {"n": test.get("n", 64) if isinstance(test, Mapping) else 64}
        return dict(value) | {
            part: defaults | dict(value[part])
            for part, defaults in usual.items()
            if isinstance(value.get(part), Mapping) and value[part].get("file") is None
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that there are: train, and those that verifiers are tested on."""
        return ("train", *self.tests)

    @property
    def tests(self) -> tuple[str, ...]:
        """The parts that verifiers are tested on, the one that is like train first."""
        return ("test",) if self.out_of_distribution is None else ("test", "out_of_distribution")

    def source(self, part: str) -> SolutionSource:
        """The settings of a part that there is."""
        found: SolutionSource = getattr(self, part)
        return found

    @model_validator(mode="after")
    def _apart(self) -> Sample:
        for first, second in combinations(self.parts, 2):
            a, b = self.source(first), self.source(second)
            if a.file is not None and a.file == b.file and a.share[0] < b.share[1] and b.share[0] < a.share[1]:
                raise ValueError(f"{first} and {second} share questions of {a.file}: their ranges of `share` overlap")
            if a.file is None and b.file is None and a.split == b.split:
                why = "what is learned from can't be a test" if first == "train" else "two tests on the same problems"
                raise ValueError(f"{first} and {second} are both the split {a.split!r}: {why}")
        far = self.out_of_distribution
        if far is not None and far.file is None and far.split is None:
            raise ValueError("out_of_distribution needs a split of the task, or a file")
        return self


class Verifier(Settings):
    """A verifier to train and to judge."""

    kind: str  # the plug-in
    options: dict[str, Any] = {}
    base: Base = Base()  # what it starts from; by default the run's generator
    # another verifier of this recipe that it builds on, or several; fills in the option `verifier`, or `verifiers`
    builds_on: Name | tuple[Name, ...] | None = None
    train: Train = TrainSettings()
    references: int = Field(default=0, ge=0)  # worked solutions of the generator's problems that it learns to write too
    replay: int = Field(default=0, ge=0)  # demonstrations that the generator learned from, lest it forget them
    rationales: Labeler | None = None  # who writes the verifications that it learns from, if others than the recipe's
    limits: Limited | None = None  # for its own scoring, in place of the recipe's: how much without a score is too much

    @model_validator(mode="after")
    def _known(self) -> Verifier:
        _check_plugin("verifier", self.kind, self.options, {"path": "model", "template": "{question}\n"})
        for name in ("references", "replay"):
            if getattr(self, name) and not getattr(registry.find("verifier", self.kind), "generates", False):
                raise ValueError(f"{name}: a {self.kind} verifier does not learn to write solutions; leave it out")
        if self.rationales is not None and not getattr(registry.find("verifier", self.kind), "generates", False):
            raise ValueError(f"rationales: a {self.kind} verifier does not learn to write any; leave it out")
        return self

    @property
    def below(self) -> tuple[str, ...]:
        """The verifiers that it builds on."""
        return (self.builds_on,) if isinstance(self.builds_on, str) else self.builds_on or ()

    @property
    def learns(self) -> bool:
        """Whether its kind is trained at all; one that only computes is used as it is."""
        found = registry.find("verifier", self.kind)
        return any(callable(getattr(found, way, None)) for way in ("build", "fit"))

    @property
    def starts_from_model(self) -> bool:
        """Whether its kind can't learn without a checkpoint to start from."""
        required = registry.options("verifier", self.kind).get("path", "") is inspect.Parameter.empty
        return self.learns and required


class Evaluate(Settings):
    """How the verifiers are judged."""

    n: tuple[Annotated[int, Field(ge=1, le=256)], ...] = (1, 4, 16, 64)  # candidates
    # how step scores become one score; the first is the one that tables and the report use
    aggregates: tuple[str, ...] = ("min", "prod", "mean", "last")
    # votes of generative verifiers to measure at, beside the powers of two and all of them
    votes: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Evaluate:
        unknown = [name for name in self.aggregates if name not in AGGREGATES]
        if unknown:
            raise ValueError(f"aggregates has {', '.join(unknown)}; there are {', '.join(AGGREGATES)}")
        return self

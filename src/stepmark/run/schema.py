"""The sections of a recipe: their settings and the checks on them. run/recipe.py puts them together.

The comment at a setting is its description on the documentation site.

stepmark run recipes/demo.yaml sample.test.n=16 verifiers.prm.train.epochs=2
"""

from __future__ import annotations

import inspect
import typing
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
from stepmark.plugins import registry, values
from stepmark.stages.train import TrainSettings
from stepmark.text.prompts import Template


def collect_faults(value: Any, validate: pydantic.ValidatorFunctionWrapHandler) -> Any:
    """Turns the ConfigError of our own settings classes into a ValueError, which pydantic collects."""
    try:
        return validate(value)
    except ConfigError as e:
        raise ValueError("; ".join(e.faults)) from e


def _check_template(text: str) -> str:
    try:
        Template(text)
    except ConfigError as e:
        raise ValueError(str(e)) from e
    return text


# These settings are defined beside their stages. Here they are only made to refuse unknown keys.
for _kind in (TrainSettings, Shape, Limits):
    _kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]

Train = Annotated[TrainSettings, WrapValidator(collect_faults)]
Init = Annotated[Shape, WrapValidator(collect_faults)]
Limited = Annotated[Limits, WrapValidator(collect_faults)]
Prompt = Annotated[str, AfterValidator(_check_template)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # is used as the name of a file or a directory


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def types_for(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """The types of the settings, by which `key=value` changes of this section are read (plugins/values.py)."""
        return typing.get_type_hints(cls)


class _Plugin(Settings):
    """A plug-in: its name, or the path of a user's file, and its options."""

    role: ClassVar[str]
    # options that the run itself fills in, with example values for the check
    run_options: ClassVar[Mapping[str, Any]] = {}
    name: str  # name of a plug-in, or the path of your own file
    options: dict[str, Any] = {}  # options of the plug-in, by name

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_options(self) -> _Plugin:
        _check_plugin(self.role, self.name, self.options, self.run_options)
        return self

    @classmethod
    def types_for(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        default = cls.model_fields["name"].default
        return super().types_for(section) | {"options": _option_types(cls.role, section.get("name", default))}

    def load(self, **run_options: Any) -> Any:
        """The plug-in object. `run_options` are filled in by the run; those that the plug-in lacks are left out."""
        allowed = registry.options(self.role, self.name)
        filled_in = {k: v for k, v in run_options.items() if k in allowed}
        return registry.load(self.role, self.name, **filled_in, **self.options)


def _check_plugin(role: str, name: str, options: Mapping[str, Any], run_options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that the plug-in refuses. Constructs it to find out, which does no I/O."""
    try:
        allowed = registry.options(role, name)
        both = sorted(set(options) & set(run_options) & set(allowed))
        if both:
            raise ConfigError(f"{role} {name}: {', '.join(both)} is filled in by the run; leave it out")
        registry.load(role, name, **{k: v for k, v in run_options.items() if k in allowed}, **options)
    except ConfigError as e:
        raise ValueError("; ".join(e.faults)) from e
    except (TypeError, ValueError) as e:
        raise ValueError(f"{role} {name} does not take these options: {e}") from e


def _option_types(role: str, name: Any) -> Any:
    """The types of a plug-in's options, by name. An unknown plug-in is reported later."""
    name = name.text if isinstance(name, values.Unread) else name
    try:
        return registry.types_of(registry.find(role, name)) if isinstance(name, str) else {}
    except ConfigError:
        return {}


class Task(_Plugin):
    """The task: problems with reference answers."""

    role = "task"


class Grader(_Plugin):
    """What compares the answer of a solution with the reference answer."""

    role = "grader"


class Labeler(_Plugin):
    """How the steps of solutions are labelled, or how verifications of solutions are written."""

    role = "labeler"
    distinct: bool = True  # of solutions of one problem with the same text, label only the first


class Format(_Plugin):
    """The format of a file of solutions."""

    role = "format"

    @model_validator(mode="after")
    def _check_readable(self) -> Format:
        if not hasattr(registry.find("format", self.name), "read"):
            raise ValueError(f"the format {self.name} can be written, but not read; choose another")
        return self


class Backend(_Plugin):
    """What runs a model: in this process, or on a server."""

    role = "backend"
    run_options: ClassVar[Mapping[str, Any]] = {"path": "model"}
    name: str = "local"  # name of a plug-in, or the path of your own file


class Executor(_Plugin):
    """What spreads work over processes."""

    role = "executor"
    run_options: ClassVar[Mapping[str, Any]] = {"workers": 1}


class Stage(_Plugin):
    """A stage of your own: the path of its file, and its options (run/stage.py)."""

    role = "stage"
    called: Name | None = None  # name of the stage; null: that of its file, without the suffix

    @property
    def stage_name(self) -> str:
        """The stage's name."""
        return self.called or Path(self.name).stem


class Base(Settings):
    """A model to start from: a checkpoint, or a new model with random weights."""

    path: str | None = None  # checkpoint: a directory or a hub id
    init: Init | None = None  # shape of a new model with random weights, instead of `path`

    @model_validator(mode="after")
    def _check_start(self) -> Base:
        if self.path is not None and self.init is not None:
            raise ValueError("give either path, a checkpoint, or init, the shape of a new model; not both")
        return self


class Generator(Base):
    """A model that writes solutions. With `train` it is first fine-tuned on the demonstrations of the task."""

    train: Train | None = None  # settings of its training; null uses the model as it is
    split: str = "train"  # split of the task that it is trained on
    problems: int | None = Field(default=None, ge=1)  # number of problems that it is trained on; null means all
    # weight of the prompt's tokens in the training loss; 0 trains on the demonstration alone
    prompt_loss_weight: float = Field(default=0.0, ge=0)
    backend: Backend = Backend()  # what runs the model: this process or a server

    @model_validator(mode="after")
    def _check_model(self) -> Generator:
        if self.init is not None and self.train is None:
            raise ValueError("a new model (init) can't write solutions before it is trained: give train too")
        if self.train is not None and self.path is None and self.init is None:
            raise ValueError("train needs a model to start from: give path or init")
        allowed = registry.options("backend", self.backend.name)
        if "path" in allowed and self.path is None and self.init is None:
            raise ValueError(f"backend {self.backend.name} needs a model: give path or init")
        return self

    @property
    def has_model(self) -> bool:
        """Whether it has a checkpoint that other models can start from."""
        return self.path is not None or self.train is not None


class Judge(Generator):
    """A model that marks steps or writes verifications in words, for labelers. With `train` it is first fine-tuned on
    verifications that the task itself writes, of the solutions of the first `problems` training problems. The prompts
    are those that the recipe's labelers will use. Without `path` or `init` it starts from the generator's model."""

    @model_validator(mode="after")
    def _check_model(self) -> Judge:
        allowed = registry.options("backend", self.backend.name)
        if "path" in allowed and self.path is None and self.init is None and self.train is None:
            raise ValueError(f"backend {self.backend.name} needs a model: give path, init or train")
        if self.init is not None and self.train is None:
            raise ValueError("a new model (init) can't judge before it is trained: give train too")
        if self.train is not None and "path" not in allowed:
            raise ValueError(f"backend {self.backend.name} can't run a model that was trained here; leave train out")
        if self.split != "train":
            raise ValueError("split: a judge is always trained on the training solutions; leave it out")
        return self


class SolutionSource(Settings):
    """Solutions of one part: sampled for problems of the task or, with `file`, imported."""

    # split of the task to sample from; with `file`, the split whose problems have the same questions as the file, for
    # their reference answers
    split: str | None = None
    problems: int | None = Field(default=None, ge=1)  # number of problems; null means all
    n: int = Field(default=16, ge=1)  # solutions of each problem; of a file, the first n
    file: str | None = None  # file of solutions to import instead of sampling
    format: Format | None = None  # format of the file
    # range [low, high) of the file's questions to use; a hash of a question's text places it between 0 and 1
    share: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _check_source(self) -> SolutionSource:
        if (self.file is None) != (self.format is None):
            raise ValueError("file and format go together")
        low, high = self.share
        if not 0 <= low < high <= 1:
            raise ValueError(f"share is a range [low, high) within [0, 1], got {list(self.share)}")
        return self


class Sample(Settings):
    """Where the solutions of each part come from, and how they are sampled."""

    train: SolutionSource = SolutionSource(split="train", n=4)  # solutions that verifiers are trained on
    test: SolutionSource = SolutionSource(split="test", n=64)  # solutions that verifiers are tested on
    # a second test part, from another distribution than train; its n is by default that of test; null means none
    out_of_distribution: SolutionSource | None = None
    temperature: float = Field(default=1.0, ge=0)  # sampling temperature; 0 means greedy decoding
    # nucleus sampling: sample from the most likely tokens whose probabilities add up to this; 1 means all tokens
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)  # largest number of new tokens in one solution or rollout
    stop: tuple[str, ...] = ()  # stop strings: a text ends before the first of them
    # worked examples of the task before each question, for a base model: the first problems of the split train that
    # have a reference solution; these are left out of all parts, and a text ends before it begins another question
    few_shot: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_parts(cls, value: Any) -> Any:
        """Settings that a part leaves out get their defaults."""
        if not isinstance(value, Mapping):
            return value
        defaults: dict[str, dict[str, Any]] = {"train": {"split": "train", "n": 4}, "test": {"split": "test", "n": 64}}
        test = value.get("test")
        defaults["out_of_distribution"] = {"n": test.get("n", 64) if isinstance(test, Mapping) else 64}
        return dict(value) | {
            part: of_part | dict(value[part])
            for part, of_part in defaults.items()
            if isinstance(value.get(part), Mapping) and value[part].get("file") is None
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the recipe's parts: train, and those that verifiers are tested on."""
        return ("train", *self.tests)

    @property
    def tests(self) -> tuple[str, ...]:
        """The parts that verifiers are tested on; test comes first."""
        return ("test",) if self.out_of_distribution is None else ("test", "out_of_distribution")

    def source(self, part: str) -> SolutionSource:
        """The settings of one of `parts`."""
        settings: SolutionSource = getattr(self, part)
        return settings

    @model_validator(mode="after")
    def _check_disjoint(self) -> Sample:
        for first, second in combinations(self.parts, 2):
            a, b = self.source(first), self.source(second)
            if a.file is not None and a.file == b.file and a.share[0] < b.share[1] and b.share[0] < a.share[1]:
                raise ValueError(f"{first} and {second} share questions of {a.file}: their ranges of `share` overlap")
            if a.file is None and b.file is None and a.split == b.split:
                reason = (
                    "verifiers can't be tested on them" if first == "train" else "the two tests need different problems"
                )
                raise ValueError(f"{first} and {second} are both the split {a.split!r}: {reason}")
            if a.file is None and b.file is None and "all" in (a.split, b.split):
                raise ValueError(f"{first} and {second} share problems: the split 'all' has those of every other split")
        far = self.out_of_distribution
        if far is not None and far.file is None and far.split is None:
            raise ValueError("out_of_distribution needs split, a split of the task, or file")
        return self


class Verifier(Settings):
    """A verifier to train and to measure."""

    run_options: ClassVar[Mapping[str, Any]] = {"path": "model", "template": "{question}\n"}
    kind: str  # kind of verifier: name of a plug-in, or the path of your own file
    options: dict[str, Any] = {}  # options of the kind, by name
    base: Base = Base()  # model that it starts from; by default the generator
    # another verifier of this recipe that it uses, or several; the run fills in the option `verifier` or `verifiers`
    builds_on: Name | tuple[Name, ...] | None = None
    train: Train = TrainSettings()  # settings of its training
    # number of reference solutions of the generator's training problems that it also learns to write; 0 means none
    references: int = Field(default=0, ge=0)
    # number of the generator's last training demonstrations that it is also trained on, so that it does not forget
    # them; 0 means none
    replay: int = Field(default=0, ge=0)
    rationales: Labeler | None = None  # labeler that writes its training verifications; null uses the recipe's
    limits: Limited | None = None  # limits of its scoring; null uses the recipe's

    @model_validator(mode="after")
    def _check_kind(self) -> Verifier:
        _check_plugin("verifier", self.kind, self.options, self.run_options)
        for name in ("references", "replay"):
            if getattr(self, name) and not getattr(registry.find("verifier", self.kind), "generates", False):
                raise ValueError(f"{name}: a {self.kind} verifier is not trained to write solutions; leave it out")
        if self.rationales is not None and not getattr(registry.find("verifier", self.kind), "generates", False):
            raise ValueError(f"rationales: a {self.kind} verifier is not trained to write verifications; leave it out")
        return self

    @classmethod
    def types_for(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        return super().types_for(section) | {"options": _option_types("verifier", section.get("kind"))}

    @property
    def below(self) -> tuple[str, ...]:
        """The verifiers that it builds on."""
        return (self.builds_on,) if isinstance(self.builds_on, str) else self.builds_on or ()

    @property
    def learns(self) -> bool:
        """Whether its kind is trained. A kind that only computes is used as it is."""
        plugin = registry.find("verifier", self.kind)
        return any(callable(getattr(plugin, method, None)) for method in ("build", "fit"))

    @property
    def starts_from_model(self) -> bool:
        """Whether training its kind needs a checkpoint to start from."""
        required = registry.options("verifier", self.kind).get("path", "") is inspect.Parameter.empty
        return self.learns and required


class Evaluate(Settings):
    """How the verifiers are measured."""

    # numbers of candidates, N in best-of-N, to measure at
    n: tuple[Annotated[int, Field(ge=1, le=256)], ...] = (1, 4, 16, 64)
    # how step scores become the score of a solution; tables and the report use the first
    aggregates: tuple[str, ...] = ("min", "prod", "mean", "last")
    # numbers of votes of generative verifiers to measure at, besides powers of two and all votes
    votes: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _check_aggregates(self) -> Evaluate:
        unknown = [name for name in self.aggregates if name not in AGGREGATES]
        if unknown:
            raise ValueError(f"aggregates has {', '.join(unknown)}; allowed are {', '.join(AGGREGATES)}")
        return self

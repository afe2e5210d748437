"""What a run is made of, typed: a YAML file plus `key=value` changes become one checked configuration.

Every fault is found before anything starts, and all of them are shown at once: unknown keys with the nearest known
one, values out of range, plug-ins and options that don't exist. The order of the stages is in pipeline.py.

    stepmark run recipes/demo.yaml sample.test.n=16 verifiers.prm.train.epochs=2
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WrapValidator, model_validator

from stepmark import plugins
from stepmark.aggregate import AGGREGATES
from stepmark.checkpoints import Shape
from stepmark.errors import ConfigError
from stepmark.outcomes import Limits
from stepmark.prompts import Template
from stepmark.steps import SPLITTERS
from stepmark.train import TrainSettings
from stepmark.types import Place, SamplingParams


def _translated(value: Any, make: pydantic.ValidatorFunctionWrapHandler) -> Any:
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

Train = Annotated[TrainSettings, WrapValidator(_translated)]
Init = Annotated[Shape, WrapValidator(_translated)]
Limited = Annotated[Limits, WrapValidator(_translated)]
Prompt = Annotated[str, AfterValidator(_template)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # becomes a file's or a directory's name


Kind = TypeVar("Kind", TrainSettings, Shape)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Plugin(_Settings):
    """A plug-in by name, or by the path of a user's file, and its options."""

    role: ClassVar[str]
    given: ClassVar[Mapping[str, Any]] = {}  # options that the run itself fills in, with values to check the others by
    name: str
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
        taken = plugins.options(self.role, self.name)
        return plugins.load(self.role, self.name, **{k: v for k, v in given.items() if k in taken}, **self.options)


def _check_plugin(role: str, name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Makes the plug-in, which does no I/O, to see whether it takes these options."""
    try:
        taken = plugins.options(role, name)
        both = sorted(set(options) & set(given) & set(taken))
        if both:
            raise ConfigError(f"{role} {name}: {', '.join(both)} is filled in by the run; leave it out")
        plugins.load(role, name, **{k: v for k, v in given.items() if k in taken}, **options)
    except ConfigError as e:
        raise ValueError("; ".join(e.faults)) from e
    except (TypeError, ValueError) as e:
        raise ValueError(f"{role} {name} does not take these options: {e}") from e


class Task(_Plugin):
    role = "task"


class Grader(_Plugin):
    role = "grader"


class Labeler(_Plugin):
    """How steps are labelled."""

    role = "labeler"
    distinct: bool = True  # label one of several solutions of a problem that have the same text


class Format(_Plugin):
    """How a file of solutions is read."""

    role = "format"

    @model_validator(mode="after")
    def _reads(self) -> Format:
        if not hasattr(plugins.find("format", self.name), "read"):
            raise ValueError(f"the format {self.name} can be written, but not read")
        return self


class Backend(_Plugin):
    role = "backend"
    given: ClassVar[Mapping[str, Any]] = {"path": "model"}
    name: str = "local"


class Executor(_Plugin):
    role = "executor"
    given: ClassVar[Mapping[str, Any]] = {"workers": 1}


class Base(_Settings):
    """A model to start from: a checkpoint (a directory or a hub id), or a new one of some shape."""

    path: str | None = None
    init: Init | None = None

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
    question_weight: float = Field(default=0.0, ge=0)  # of the question's own tokens in the loss
    backend: Backend = Backend()

    @model_validator(mode="after")
    def _whole(self) -> Generator:
        if self.init is not None and self.train is None:
            raise ValueError("a new model (init) can't draw solutions before it is trained: give train too")
        if self.train is not None and self.path is None and self.init is None:
            raise ValueError("train needs a model to start from: give path or init")
        needs = plugins.options("backend", self.backend.name)
        if "path" in needs and self.path is None and self.init is None:
            raise ValueError(f"backend {self.backend.name} needs a model: give path or init")
        return self

    @property
    def has_model(self) -> bool:
        """Whether there is a checkpoint of it that others can start from."""
        return self.path is not None or self.train is not None


class Drawn(_Settings):
    """Solutions to get, by sampling problems of the task or, with `file`, by importing them."""

    split: str | None = None  # of the task
    problems: int | None = Field(default=None, ge=1)  # how many; null takes all
    n: int = Field(default=16, ge=1)  # solutions of each problem; imported ones: the first n
    file: str | None = None  # solutions that somebody else drew
    format: Format | None = None  # how to read the file
    share: tuple[float, float] = (0.0, 1.0)  # of the file's questions, chosen by a hash of their text

    @model_validator(mode="after")
    def _one_source(self) -> Drawn:
        if (self.file is None) != (self.format is None):
            raise ValueError("file and format go together")
        if self.file is not None and self.split is not None:
            raise ValueError("give either split, to sample, or file, to import; not both")
        low, high = self.share
        if not 0 <= low < high <= 1:
            raise ValueError(f"share is a range [low, high) within [0, 1], got {list(self.share)}")
        return self


class Sample(_Settings):
    """Where solutions come from, and how they are drawn."""

    train: Drawn = Drawn(split="train", n=4)
    test: Drawn = Drawn(split="test", n=64)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        """A part that is given in part keeps the rest of its defaults."""
        if not isinstance(value, Mapping):
            return value
        usual = {"train": {"split": "train", "n": 4}, "test": {"split": "test", "n": 64}}
        return dict(value) | {
            part: defaults | dict(value[part])
            for part, defaults in usual.items()
            if isinstance(value.get(part), Mapping) and value[part].get("file") is None
        }

    @model_validator(mode="after")
    def _apart(self) -> Sample:
        a, b = self.train, self.test
        if a.file is not None and a.file == b.file and a.share[0] < b.share[1] and b.share[0] < a.share[1]:
            raise ValueError(f"train and test share questions of {a.file}: their ranges of `share` overlap")
        if a.file is None and b.file is None and a.split == b.split:
            raise ValueError(f"train and test are both the split {a.split!r}: what is learned from can't be a test")
        return self


class Verifier(_Settings):
    """A verifier to train and to judge."""

    kind: str  # the plug-in
    options: dict[str, Any] = {}
    base: Base = Base()  # what it starts from; by default the run's generator
    # another verifier of this recipe that it builds on, or several; fills in the option `verifier`, or `verifiers`
    builds_on: Name | tuple[Name, ...] | None = None
    train: Train = TrainSettings()

    @model_validator(mode="after")
    def _known(self) -> Verifier:
        _check_plugin("verifier", self.kind, self.options, {"path": "model", "template": "{question}\n"})
        return self

    @property
    def below(self) -> tuple[str, ...]:
        """The verifiers that it builds on."""
        return (self.builds_on,) if isinstance(self.builds_on, str) else self.builds_on or ()

    @property
    def learns(self) -> bool:
        """Whether its kind is trained at all; one that only computes is used as it is."""
        found = plugins.find("verifier", self.kind)
        return any(callable(getattr(found, way, None)) for way in ("build", "fit"))

    @property
    def starts_from_model(self) -> bool:
        """Whether its kind can't learn without a checkpoint to start from."""
        required = plugins.options("verifier", self.kind).get("path", "") is inspect.Parameter.empty
        return self.learns and required


class Evaluate(_Settings):
    """How the verifiers are judged."""

    n: tuple[Annotated[int, Field(ge=1, le=256)], ...] = (1, 4, 16, 64)  # candidates
    aggregates: tuple[str, ...] = ("min", "prod", "mean", "last")

    @model_validator(mode="after")
    def _known(self) -> Evaluate:
        unknown = [name for name in self.aggregates if name not in AGGREGATES]
        if unknown:
            raise ValueError(f"aggregates has {', '.join(unknown)}; there are {', '.join(AGGREGATES)}")
        return self


class Recipe(_Settings):
    """A whole run."""

    name: Name
    seed: int = Field(default=0, ge=0)
    task: Task | None = None
    grader: Grader | None = None  # by default the one that the task names
    steps: str | None = None  # how solutions split into steps; by default as the task says
    prompt: Prompt = "{question}\n"
    generator: Generator | None = None
    completer: Generator | None = None  # what continues prefixes; by default the generator
    judge: Generator | None = None  # what marks steps in words, for labellers that ask it to
    sample: Sample = Sample()
    limits: Limited = Limits()  # how much that can't be used is too much
    label: Labeler | None = None  # null: no step labels, verifiers learn from grades alone
    verifiers: dict[Name, Verifier] = {}
    evaluate: Evaluate = Evaluate()
    workers: int = Field(default=2, ge=1)  # processes at a time; changes no result
    executor: Executor | None = None  # by default processes, or serial for one worker

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        faults = list(self._misfits())
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _misfits(self) -> Iterator[str]:
        sampled = [name for name in ("train", "test") if getattr(self.sample, name).file is None]
        if self.steps is not None and self.steps not in SPLITTERS:
            yield f"steps is {self.steps!r}; it can be {', '.join(sorted(SPLITTERS))}"
        if sampled and (self.task is None or self.generator is None):
            yield f"solutions for {' and '.join(sampled)} are to be sampled: that needs a task and a generator"
        if self.label is not None and self.task is None:
            yield "label needs a task, whose answers count"
        if self.label is not None:
            uses: frozenset[str] = getattr(self.label.load(), "uses", frozenset())
            if "completer" in uses and (self.completer or self.generator) is None:
                yield f"label: {self.label.name} draws rollouts; that needs a generator or a completer"
            if "judge" in uses and self.judge is None:
                yield f"label: {self.label.name} asks a judge; give judge, a model"
        if self.judge is not None and self.judge.train is not None:
            yield "judge.train: a run trains no judge; give judge.path, or judge.backend"
        if self.label is not None and self.sample.train.file is not None:
            yield "label needs solutions of the task; imported ones have no reference answer to reach"
        for name, verifier in self.verifiers.items():
            own = verifier.base.path is not None or verifier.base.init is not None
            if verifier.starts_from_model and not own and (self.generator is None or not self.generator.has_model):
                yield f"verifiers.{name}.base: without a generator's model it needs a path or an init"
        first = [name for name, verifier in self.verifiers.items() if not verifier.below]
        for name, verifier in self.verifiers.items():
            taken = plugins.options("verifier", verifier.kind)
            most = math.inf if "verifiers" in taken else 1 if "verifier" in taken else 0
            if len(verifier.below) > most:
                allowed = "one" if most else "no"
                yield f"verifiers.{name}.builds_on: a {verifier.kind} verifier builds on {allowed} other"
            yield from (
                f"verifiers.{name}.builds_on is {below!r}; it can be {', '.join(first)}"
                for below in (verifier.below if most else ())
                if below not in first
            )
        if max(self.evaluate.n) > self.sample.test.n:
            yield f"evaluate.n goes up to {max(self.evaluate.n)}, but sample.test.n is {self.sample.test.n}"

    @property
    def params(self) -> SamplingParams:
        """How solutions and rollouts are drawn."""
        s = self.sample
        return SamplingParams(s.max_tokens, s.temperature, s.top_p, s.stop, self.seed)

    def resolved(self) -> dict[str, Any]:
        """Every setting that can change a result, defaults included, as plain values."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"workers", "executor"})
        return plain


def load(source: Place, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key=value` changes. Raises ConfigError with all faults found."""
    path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no recipe {path} (working directory: {Path.cwd()}).{hint}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not YAML: {e}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}; a recipe is a mapping. See recipes/demo.yaml.")
    raw.setdefault("name", path.stem)
    return parse(changed(raw, changes), str(path))


def changed(raw: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy with each `a.b.c=value` set, values read as YAML. Raises ConfigError for what is not of that form."""
    out: dict[str, Any] = _copy(raw)
    faults = []
    for change in changes:
        key, equals, text = change.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            faults.append(f"{change!r} is not key=value, e.g. sample.test.n=16.")
            continue
        at = out
        for part in parts[:-1]:
            if not isinstance(at.get(part), dict):
                # `label: monte_carlo` is short for `label: {name: monte_carlo}`
                at[part] = {"name": at[part]} if isinstance(at.get(part), str) else {}
            at = at[part]
        try:
            at[parts[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as e:
            faults.append(f"{change!r}: the value is not YAML: {e}")
    if faults:
        raise ConfigError(faults)
    return out


def parse(raw: Mapping[str, Any], where: str) -> Recipe:
    """A checked recipe. Raises ConfigError with all faults found; `where` names the source."""
    try:
        return Recipe.model_validate(raw)
    except pydantic.ValidationError as e:
        raise ConfigError([f"{where}: {_fault(error)}" for error in e.errors(include_url=False)]) from e


def settings(kind: type[Kind], changes: Sequence[str], where: str) -> Kind:
    """TrainSettings or a Shape from `key=value` changes alone. Raises ConfigError with all faults."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(changed({}, changes))
    except pydantic.ValidationError as e:
        raise ConfigError([f"{where}: {_fault(error, kind)}" for error in e.errors(include_url=False)]) from e


def _fault(error: Any, root: Any = None) -> str:
    at = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _fields(error["loc"][:-1], root or Recipe)
        near = difflib.get_close_matches(str(error["loc"][-1]), allowed, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        return f"there is no setting {at!r}.{meant} There are: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"{at} is missing."
    message = error["msg"].removeprefix("Value error, ")
    got = error.get("input")
    shown = f", got {got!r}" if isinstance(got, str | int | float | bool | None) and "got" not in message else ""
    return f"{at + ': ' if at else ''}{message.rstrip('.')}{shown}."


def _fields(loc: Sequence[Any], kind: Any) -> list[str]:
    """The settings that there are at a place below `kind`."""
    for part in loc:
        inner = typing.get_type_hints(kind).get(str(part)) if isinstance(kind, type) else None
        if inner is None and typing.get_origin(kind) is dict:
            inner = typing.get_args(kind)[1]
        kind = _bare(inner)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return list(typing.get_type_hints(kind)) if is_dataclass(kind) else []


def _bare(kind: Any) -> Any:
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((a for a in typing.get_args(kind) if a is not type(None)), None)
    return kind


def _copy(value: Any) -> Any:
    return {str(k): _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value

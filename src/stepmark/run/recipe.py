"""What a run is made of, typed: a YAML file plus `key=value` changes become one checked configuration.

Every fault is found before anything starts, and all of them are shown at once: unknown keys with the nearest known
one, values out of range, plug-ins and options that don't exist. Its sections are in run/schema.py, the order of the
stages is in run/pipeline.py.

    stepmark run recipes/demo.yaml sample.test.n=16 verifiers.prm.train.epochs=2
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, Field, model_validator

from stepmark.data.outcome_counts import Limits
from stepmark.data.store import RunDir
from stepmark.errors import ConfigError
from stepmark.models.checkpoints import Shape
from stepmark.plugins import registry
from stepmark.rl.settings import ReinforceSettings
from stepmark.run import renames
from stepmark.run.reinforce_schema import Reinforce, filled
from stepmark.run.schema import (
    Evaluate,
    Executor,
    Generator,
    Grader,
    Judge,
    Labeler,
    Limited,
    Name,
    Prompt,
    Sample,
    Settings,
    Stage,
    Task,
    Verifier,
)
from stepmark.stages.train import TrainSettings
from stepmark.text.steps import SPLITTERS
from stepmark.types import Place, SamplingParams

Kind = TypeVar("Kind", TrainSettings, Shape, ReinforceSettings)


class Recipe(Settings):
    """A whole run."""

    name: Name  # of the run; by default the name of the file
    seed: int = Field(default=0, ge=0)  # of everything random: problems, weights, order of the data, samples
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()  # instead of seed: a run with each of them (run/seeds.py)
    task: Task | None = None  # where questions and answers come from
    grader: Grader | None = None  # by default the one that the task names
    steps: str | None = None  # how solutions split into steps; by default as the task says
    prompt: Prompt = "{question}\n"  # how a question is put to a model
    generator: Generator | None = None  # the model that writes solutions
    completer: Generator | None = None  # what continues prefixes; by default the generator
    judge: Judge | None = None  # what marks steps, or writes, in words, for labellers that ask it to
    sample: Sample = Sample()  # how many solutions of how many problems, and how they are drawn
    limits: Limited = Limits()  # how much that can't be used is too much
    label: Labeler | None = None  # null: no step labels, verifiers learn from grades alone
    rationales: Labeler | None = None  # who writes verifications of solutions, for generative verifiers to learn from
    verifiers: dict[Name, Verifier] = {}  # noqa: RUF012 - pydantic copies it
    evaluate: Evaluate = Evaluate()  # at how many candidates and votes the verifiers are measured
    reinforce: Reinforce | None = None  # policies that go on from the generator, and how they are judged
    stages: tuple[Stage, ...] = ()  # stages of your own, by the paths of their files
    workers: int = Field(default=2, ge=1)  # processes at a time; changes no result
    executor: Executor | None = None  # by default processes, or serial for one worker

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("reinforce") is None:
            return value
        return {**value, "reinforce": filled(value["reinforce"], value.get("sample"))}

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        faults = list(self._misfits())
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _misfits(self) -> Iterator[str]:
        if self.seeds and "seed" in self.model_fields_set:
            yield "give either seed or seeds; seeds=[] seed=1 runs one alone"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds has one twice: {', '.join(map(str, self.seeds))}"
        sampled = [part for part in self.sample.parts if self.sample.source(part).file is None]
        if self.steps is not None and self.steps not in SPLITTERS:
            yield f"steps is {self.steps!r}; it can be {', '.join(sorted(SPLITTERS))}"
        if sampled and (self.task is None or self.generator is None):
            yield f"solutions for {' and '.join(sampled)} are to be sampled: that needs a task and a generator"
        writers = {f"verifiers.{name}.rationales": verifier.rationales for name, verifier in self.verifiers.items()}
        for part, labeler in ({"label": self.label, "rationales": self.rationales} | writers).items():
            if labeler is not None:
                yield from self._unfit(part, labeler)
        if self.judge is not None and self.judge.train is not None:
            yield from self._untaught(self.judge)
        for name, verifier in self.verifiers.items():
            own = verifier.base.path is not None or verifier.base.init is not None
            if verifier.starts_from_model and not own and (self.generator is None or not self.generator.has_model):
                yield f"verifiers.{name}.base: without a generator's model it needs a path or an init"
            if not verifier.learns and not verifier.below:
                yield from self._unmade(name, verifier)
            for what in ("references", "replay"):
                if getattr(verifier, what) and (self.task is None or self.generator is None):
                    yield f"verifiers.{name}.{what}: these are the generator's; that needs a task and a generator"
        first = [name for name, verifier in self.verifiers.items() if not verifier.below]
        for name, verifier in self.verifiers.items():
            taken = registry.options("verifier", verifier.kind)
            most = math.inf if "verifiers" in taken else 1 if "verifier" in taken else 0
            if len(verifier.below) > most:
                allowed = "one" if most else "no"
                yield f"verifiers.{name}.builds_on: a {verifier.kind} verifier builds on {allowed} other"
            yield from (
                f"verifiers.{name}.builds_on is {below!r}; it can be {', '.join(first)}"
                for below in (verifier.below if most else ())
                if below not in first
            )
        for part in self.sample.tests:
            if max(self.evaluate.n) > (n := self.sample.source(part).n):
                yield f"evaluate.n goes up to {max(self.evaluate.n)}, but sample.{part}.n is {n}"
        if self.reinforce is not None:
            yield from self.reinforce.misfits(self.generator, self.sample, self.verifiers, self.task)

    def _unmade(self, name: str, verifier: Verifier) -> Iterator[str]:
        """What keeps a verifier that is used as it is from being made with what the run can give it."""
        if verifier.base.init is not None:
            yield f"verifiers.{name}.base.init: a {verifier.kind} verifier learns nothing; give a trained model"
        given = {"path": "model"} if verifier.base.path or (self.generator and self.generator.has_model) else {}
        given |= {"template": self.prompt}
        taken = registry.options("verifier", verifier.kind)
        try:
            registry.load(
                "verifier", verifier.kind, **{k: v for k, v in given.items() if k in taken}, **verifier.options
            )
        except ConfigError as e:
            yield from (f"verifiers.{name}: {fault.rstrip('.')}" for fault in e.faults)

    def _unfit(self, part: str, labeler: Labeler) -> Iterator[str]:
        if self.task is None:
            yield f"{part} needs a task, whose answers count"
        uses: frozenset[str] = getattr(labeler.load(), "uses", frozenset())
        if "completer" in uses and (self.completer or self.generator) is None:
            yield f"{part}: {labeler.name} draws rollouts; that needs a generator or a completer"
        if "judge" in uses and self.judge is None:
            yield f"{part}: {labeler.name} asks a judge; give judge, a model"
        if (
            "oracle" in uses
            and self.task is not None
            and not hasattr(registry.find("task", self.task.name), "rationale")
        ):
            yield f"{part}: {labeler.name} lets the task write, and task {self.task.name} has no `rationale`"
        if self.sample.train.file is not None:
            yield f"{part} needs solutions of the task; imported ones have no reference answer to reach"

    def _untaught(self, judge: Judge) -> Iterator[str]:
        """What keeps a judge from being trained."""
        if not any(callable(getattr(writer.load(), "demonstrations", None)) for writer in self.writers.values()):
            yield "judge.train: no labeller under rationales says what a judge would have to write; leave it out"
        if self.task is None or not hasattr(registry.find("task", self.task.name), "rationale"):
            yield "judge.train: it learns from verifications that the task writes, and this one has no `rationale`"
        if judge.path is None and judge.init is None and (self.generator is None or not self.generator.has_model):
            yield "judge.train: without a generator's model it needs a path or an init"

    @property
    def writers(self) -> dict[str, Labeler]:
        """Who writes verifications of solutions: under "" for all verifiers, under a verifier's name for that one. Of
        several that have the same settings the first stands for all: they learn from the same ones."""
        found = {} if self.rationales is None else {"": self.rationales}
        for name, verifier in self.verifiers.items():
            if verifier.rationales is not None and verifier.rationales not in found.values():
                found[name] = verifier.rationales
        return found

    def writer(self, verifier: str) -> str:
        """Whose verifications, of `writers`, a verifier learns from."""
        own = self.verifiers[verifier].rationales
        return next((name for name, writer in self.writers.items() if writer == own), "")

    @property
    def params(self) -> SamplingParams:
        """How solutions and rollouts are drawn."""
        s = self.sample
        return SamplingParams(s.max_tokens, s.temperature, s.top_p, s.stop, self.seed)

    def with_seed(self, seed: int) -> Recipe:
        """The run of one of its seeds, alone in one process."""
        return self.model_copy(update={"seed": seed, "seeds": (), "workers": 1, "executor": None})

    def resolved(self) -> dict[str, Any]:
        """Every setting that can change a result, defaults included, as plain values. Stages of the user's own are not
        among them: they write files of their own, and come to a finished run too. Parts that a recipe need not
        have are not in it where it has none, so that runs from before there were such parts can go on."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"workers", "executor", "stages"})
        del plain["seed" if self.seeds else "seeds"]
        if self.sample.out_of_distribution is None:
            del plain["sample"]["out_of_distribution"]
        if self.rationales is None:
            del plain["rationales"]
        if self.reinforce is None:
            del plain["reinforce"]
        if not self.evaluate.votes:
            del plain["evaluate"]["votes"]
        for name, verifier in self.verifiers.items():
            for what in ("references", "replay", "rationales", "limits"):
                if not getattr(verifier, what):
                    del plain["verifiers"][name][what]
        models = (plain["generator"], plain["completer"], plain["judge"])
        for base in (*models, *(verifier["base"] for verifier in plain["verifiers"].values())):
            if base is not None and base["init"] is not None and not base["init"]["words"]:
                del base["init"]["words"]
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
    """Settings of a training or a Shape from `key=value` changes alone. Raises ConfigError with all faults."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(changed({}, changes))
    except pydantic.ValidationError as e:
        raise ConfigError([f"{where}: {_fault(error, kind)}" for error in e.errors(include_url=False)]) from e


def stored(directory: RunDir) -> Recipe:
    """The recipe of a run directory, whichever version wrote it. Raises DataError for a directory that holds no run."""
    place = directory.path / "config.json"
    return parse(renames.upgraded(directory.read_json("config.json")), str(place))


# Where in a recipe settings stand that a command takes by themselves
_SECTIONS: Mapping[Any, tuple[str, ...]] = {
    TrainSettings: ("generator", "train"),
    ReinforceSettings: ("reinforce", "settings"),
}


def _fault(error: Any, root: Any = None) -> str:
    at = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        place, key = [str(part) for part in error["loc"][:-1]], str(error["loc"][-1])
        if (now := renames.new_key([*_SECTIONS.get(root, ()), *place], key)) is not None:
            return f"the setting {at!r} is now called {'.'.join([*place, now])!r}."
        allowed = _fields(error["loc"][:-1], root or Recipe)
        near = difflib.get_close_matches(key, allowed, n=1)
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

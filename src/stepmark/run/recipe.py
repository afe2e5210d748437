"""The recipe of a run: a YAML file and `key=value` changes become one checked configuration.

All faults are found before anything starts, and all are reported together: unknown keys with the nearest known key,
values out of range, plug-ins and options that don't exist. The sections are in run/schema.py and
run/reinforce_schema.py, the order of the stages is in run/pipeline/.

The comment at a setting is its description on the documentation site.

    stepmark run recipes/demo.yaml sample.test.n=16 verifiers.prm.train.epochs=2
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic import Field, model_validator

from stepmark.data.outcome_counts import Limits
from stepmark.data.paths import nowhere
from stepmark.data.store import RunDir
from stepmark.errors import ConfigError
from stepmark.models.checkpoints import Shape
from stepmark.plugins import registry, values
from stepmark.rl.settings import ReinforceSettings
from stepmark.run import places, renames
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
from stepmark.text.steps import splitter
from stepmark.types import Place, SamplingParams

Kind = TypeVar("Kind", TrainSettings, Shape, ReinforceSettings)


class Recipe(Settings):
    """A whole run."""

    name: Name  # name of the run; by default that of the file
    seed: int = Field(default=0, ge=0)  # seed of everything random: problems, weights, order of the data, samples
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()  # instead of `seed`: one run for each of these (run/seeds.py)
    task: Task | None = None  # where problems and reference answers come from
    grader: Grader | None = None  # what grades the answers of solutions; null uses the task's own grader
    steps: str | None = None  # how solutions are split into steps; null uses the task's own rule
    prompt: Prompt = "{question}\n"  # prompt of the generator and the completer; `{question}` stands for the question
    generator: Generator | None = None  # model that writes solutions
    completer: Generator | None = None  # model that continues prefixes in rollouts; null uses the generator
    judge: Judge | None = None  # model that marks steps or writes verifications, for labelers that use a judge
    sample: Sample = Sample()  # number of problems and solutions, and how solutions are sampled
    limits: Limited = Limits()  # largest shares of failed, truncated or ungradable items before a stage stops
    label: Labeler | None = None  # how steps are labelled; null means no step labels: verifiers learn from grades
    # labeler that writes verifications of the training solutions, which generative verifiers learn from; null: none
    rationales: Labeler | None = None
    # the verifiers, by name
    verifiers: dict[Name, Verifier] = {}  # noqa: RUF012 - pydantic copies it
    evaluate: Evaluate = Evaluate()  # numbers of candidates and votes that verifiers are measured at
    reinforce: Reinforce | None = None  # policies that are trained from the generator, and their test; null: none
    stages: tuple[Stage, ...] = ()  # stages of your own: paths of their files
    workers: int = Field(default=2, ge=1)  # number of processes that work at a time; changes no result
    executor: Executor | None = None  # what spreads work over processes; null: `processes`, or `serial` for one worker

    @model_validator(mode="before")
    @classmethod
    def _fill_reinforce(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("reinforce") is None:
            return value
        return {**value, "reinforce": filled(value["reinforce"], value.get("sample"))}

    @model_validator(mode="after")
    def _check_whole(self) -> Recipe:
        faults = list(self._faults())
        if faults:
            raise ValueError("; ".join(faults))
        most = self._most_candidates()
        if "n" in self.evaluate.model_fields_set or max(self.evaluate.n) <= most:
            return self
        # A default never refuses what the user set. `n` stays out of the fields that were set, for the note.
        n = (*(k for k in self.evaluate.n if k < most), most)
        cut = Evaluate.model_construct(self.evaluate.model_fields_set, **(dict(self.evaluate) | {"n": n}))
        return self.model_copy(update={"evaluate": cut})

    def _most_candidates(self) -> int:
        """The largest N that every test has enough candidates for."""
        return min(self.sample.source(part).n for part in self.sample.tests)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed in the recipe's defaults so that they fit the settings, for the user."""
        default = Evaluate().n
        if "n" in self.evaluate.model_fields_set or self.evaluate.n == default:
            return ()
        part = min(self.sample.tests, key=lambda part: self.sample.source(part).n)
        return (
            f"evaluate.n is {list(self.evaluate.n)} and not the default {list(default)}, since sample.{part}.n is "
            f"{self._most_candidates()}. Set evaluate.n yourself to choose.",
        )

    def _faults(self) -> Iterator[str]:
        if self.seeds and "seed" in self.model_fields_set:
            yield "give either seed or seeds, not both; for one seed alone add seeds=[] seed=1"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds has the same seed twice: {', '.join(map(str, self.seeds))}"
        sampled = [part for part in self.sample.parts if self.sample.source(part).file is None]
        if self.steps is not None:
            try:
                splitter(self.steps)
            except ConfigError as e:
                yield from (f"steps: {fault}" for fault in e.faults)
        if self.task is None:
            yield from (
                f"sample.{part}.split: with file, the reference answers come from a split of the task; give a task"
                for part in self.sample.parts
                if part not in sampled and self.sample.source(part).split is not None
            )
        if sampled and (self.task is None or self.generator is None):
            yield f"sampling solutions for {' and '.join(sampled)} needs a task and a generator"
        trained = self.generator is not None and self.generator.train is not None
        if sampled and self.generator is not None and trained and self.generator.split == "all":
            yield "generator.split is 'all', which has the test problems too; choose train"
        if self.sample.few_shot:
            yield from self._few_shot_faults()
        writers = {f"verifiers.{name}.rationales": verifier.rationales for name, verifier in self.verifiers.items()}
        for part, labeler in ({"label": self.label, "rationales": self.rationales} | writers).items():
            if labeler is not None:
                yield from self._labeler_faults(part, labeler)
        if self.judge is not None and self.judge.train is not None:
            yield from self._judge_faults(self.judge)
        for name, verifier in self.verifiers.items():
            own = verifier.base.path is not None or verifier.base.init is not None
            if verifier.starts_from_model and not own and (self.generator is None or not self.generator.has_model):
                yield f"verifiers.{name}.base: without a generator that has a model, give path or init"
            if not verifier.learns and not verifier.below:
                yield from self._untrained_faults(name, verifier)
            for key in ("references", "replay"):
                if getattr(verifier, key) and (self.task is None or self.generator is None):
                    yield f"verifiers.{name}.{key}: these are the generator's problems; give a task and a generator"
        first = [name for name, verifier in self.verifiers.items() if not verifier.below]
        for name, verifier in self.verifiers.items():
            options = registry.options("verifier", verifier.kind)
            most = math.inf if "verifiers" in options else 1 if "verifier" in options else 0
            if len(verifier.below) > most:
                allowed = "one other verifier" if most else "no other verifier"
                yield f"verifiers.{name}.builds_on: a {verifier.kind} verifier builds on {allowed}"
            yield from (
                f"verifiers.{name}.builds_on is {below!r}; it can be {', '.join(first)}"
                for below in (verifier.below if most else ())
                if below not in first
            )
        for part in self.sample.tests:
            if "n" in self.evaluate.model_fields_set and max(self.evaluate.n) > (n := self.sample.source(part).n):
                yield f"evaluate.n has {max(self.evaluate.n)}, but sample.{part}.n is {n}; raise it"
        if self.reinforce is not None:
            yield from self.reinforce.misfits(self.generator, self.sample, self.verifiers, self.task)

    def _few_shot_faults(self) -> Iterator[str]:
        if self.task is None:
            yield "sample.few_shot shows worked examples of the task; give a task, or leave it out"
        for role in ("generator", "completer"):
            if (model := getattr(self, role)) is not None and model.train is not None:
                yield f"sample.few_shot: {role}.train teaches the model the question alone; leave out one of the two"
        if self.reinforce is not None:
            yield "sample.few_shot: policies learn from the question alone; leave out few_shot or reinforce"

    def _untrained_faults(self, name: str, verifier: Verifier) -> Iterator[str]:
        """The faults of a verifier that is not trained: options that it needs and the run can't fill in."""
        if verifier.base.init is not None:
            yield f"verifiers.{name}.base.init: a {verifier.kind} verifier learns nothing; give path, a trained model"
        run_options = {"path": "model"} if verifier.base.path or (self.generator and self.generator.has_model) else {}
        run_options |= {"template": self.prompt}
        allowed = registry.options("verifier", verifier.kind)
        filled_in = {k: v for k, v in run_options.items() if k in allowed}
        try:
            registry.load("verifier", verifier.kind, **filled_in, **verifier.options)
        except ConfigError as e:
            yield from (f"verifiers.{name}: {fault.rstrip('.')}" for fault in e.faults)

    def _labeler_faults(self, part: str, labeler: Labeler) -> Iterator[str]:
        imported = self.sample.train.file is not None
        if self.task is None and not imported:
            yield f"{part} needs a task, for its reference answers"
        if self.task is None and self.grader is None and imported:
            yield f"{part} compares answers with the file's reference answers; give a grader, or a task"
        uses: frozenset[str] = getattr(labeler.load(), "uses", frozenset())
        if "completer" in uses and (self.completer or self.generator) is None:
            yield f"{part}: {labeler.name} samples rollouts; give a generator or a completer"
        if "judge" in uses and self.judge is None:
            yield f"{part}: {labeler.name} asks a judge; give judge, a model"
        if "oracle" in uses and (self.task is not None or imported):
            name = "null" if self.task is None else self.task.name
            if self.task is None or not hasattr(registry.find("task", name), "rationale"):
                yield f"{part}: {labeler.name} needs a task that writes verifications; {name} has no `rationale`"

    def _judge_faults(self, judge: Judge) -> Iterator[str]:
        """The faults of a judge that is to be trained."""
        if not any(callable(getattr(writer.load(), "demonstrations", None)) for writer in self.writers.values()):
            yield "judge.train: no labeler under rationales has `demonstrations` to train a judge on; leave it out"
        if self.task is None or not hasattr(registry.find("task", self.task.name), "rationale"):
            yield "judge.train: a judge learns from verifications that the task writes; this task has no `rationale`"
        if judge.path is None and judge.init is None and (self.generator is None or not self.generator.has_model):
            yield "judge.train: without a generator that has a model, give path or init"

    @property
    def writers(self) -> dict[str, Labeler]:
        """The labelers that write verifications: "" is the key of the recipe's, a verifier's name that of its own.

        Where several have the same settings, only the first is listed, and all their verifiers learn from it."""
        writers = {} if self.rationales is None else {"": self.rationales}
        for name, verifier in self.verifiers.items():
            if verifier.rationales is not None and verifier.rationales not in writers.values():
                writers[name] = verifier.rationales
        return writers

    def writer(self, verifier: str) -> str:
        """The key in `writers` of the labeler whose verifications a verifier learns from."""
        own = self.verifiers[verifier].rationales
        return next((name for name, writer in self.writers.items() if writer == own), "")

    @property
    def params(self) -> SamplingParams:
        """How solutions and rollouts are sampled."""
        sample = self.sample
        return SamplingParams(sample.max_tokens, sample.temperature, sample.top_p, sample.stop, self.seed)

    def with_seed(self, seed: int) -> Recipe:
        """The recipe of the run with one of the seeds, in one process."""
        return self.model_copy(update={"seed": seed, "seeds": (), "workers": 1, "executor": None})

    def resolved(self) -> dict[str, Any]:
        """Every setting that can change a result, defaults included, as plain values. Not among them are the user's own
        stages: they write their own files, and may join a finished run.

        Optional settings that were added later are left out where they are not used, so that older runs go on."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"workers", "executor", "stages"})
        del plain["seed" if self.seeds else "seeds"]
        if not self.sample.few_shot:
            del plain["sample"]["few_shot"]
        if self.sample.out_of_distribution is None:
            del plain["sample"]["out_of_distribution"]
        if self.rationales is None:
            del plain["rationales"]
        if self.reinforce is None:
            del plain["reinforce"]
        if not self.evaluate.votes:
            del plain["evaluate"]["votes"]
        for name, verifier in self.verifiers.items():
            for key in ("references", "replay", "rationales", "limits"):
                if not getattr(verifier, key):
                    del plain["verifiers"][name][key]
        models = (plain["generator"], plain["completer"], plain["judge"])
        for base in (*models, *(verifier["base"] for verifier in plain["verifiers"].values())):
            if base is not None and base["init"] is not None and not base["init"]["words"]:
                del base["init"]["words"]
        return plain


def first_seed(recipe: Recipe, path: Path) -> tuple[Recipe, Path]:
    """The recipe of the first seed and its directory; for a recipe without seeds the recipe itself and `path`."""
    if not recipe.seeds:
        return recipe, path
    return recipe.with_seed(recipe.seeds[0]), seed_directory(path, recipe.seeds[0])


def seed_directory(path: Path, seed: int) -> Path:
    """The directory of a seed's run."""
    return path / f"seed-{seed}"


def load(source: Place, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key=value` changes. Raises ConfigError with all faults."""
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"no recipe {path} {nowhere(path)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not YAML: {e}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}; a recipe is a mapping. See recipes/demo.yaml.")
    raw.setdefault("name", path.stem)
    return parse(changed(raw, changes), str(path))


class _Loader(yaml.SafeLoader):
    """YAML in which `off` is a word, because a guard can be off. `false` and `no` are booleans as ever."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?i:yes|no|true|false)$"), list("yYnNtTfF"))


def changed(raw: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe with each `a.b.c=value` set. plugins/values.py says how values are read.

    Raises ConfigError for changes of another form."""
    return values.changed(raw, changes, Recipe)


def parse(raw: Mapping[str, Any], where: str) -> Recipe:
    """The checked recipe. Raises ConfigError with all faults; `where` names the source in them."""
    try:
        return Recipe.model_validate(raw)
    except pydantic.ValidationError as e:
        raise ConfigError([f"{where}: {_message(error, raw=raw)}" for error in e.errors(include_url=False)]) from e


def settings(kind: type[Kind], changes: Sequence[str], where: str, **given: Any) -> Kind:
    """Training settings, reinforcement settings or a Shape, from `given` values and `key=value` changes alone.

    Raises ConfigError with all faults; `where` names the source in them."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(values.changed(given, changes, kind))
    except pydantic.ValidationError as e:
        raise ConfigError([f"{where}: {_message(error, kind)}" for error in e.errors(include_url=False)]) from e


def stored(directory: RunDir) -> Recipe:
    """The recipe of a run directory of this or an older version. Raises DataError for a directory without a run."""
    path = directory.path / "config.json"
    return parse(renames.upgraded(directory.read_json("config.json")), str(path))


# The place in a recipe of settings that commands also take by themselves (--set)
_SECTIONS: Mapping[Any, tuple[str, ...]] = {
    TrainSettings: ("generator", "train"),
    ReinforceSettings: ("reinforce", "settings"),
}


def _message(error: Any, root: Any = None, raw: Any = None) -> str:
    """The message of one of pydantic's errors, `root` being the class that was checked, and `raw` the values."""
    at = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section, key = [str(part) for part in error["loc"][:-1]], str(error["loc"][-1])
        if (new_key := renames.new_key([*_SECTIONS.get(root, ()), *section], key)) is not None:
            return f"the setting {at!r} is now called {'.'.join([*section, new_key])!r}."
        allowed = places.names(root or Recipe, error["loc"][:-1])
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.9)
        near = near or places.elsewhere(root or Recipe, section, key, raw)
        near = near or difflib.get_close_matches(key, allowed, n=1)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        if not near and key in places.COMMAND:
            hint = f" It is an option of the command: {places.COMMAND[key]}."
        return f"there is no setting {at!r}.{hint} Allowed here: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"{at} is missing."
    message = error["msg"].removeprefix("Value error, ")
    got = error.get("input")
    shown = f", got {got!r}" if isinstance(got, str | int | float | bool | None) and "got" not in message else ""
    return f"{at + ': ' if at else ''}{message.rstrip('.')}{shown}."

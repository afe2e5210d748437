"""Models, data files, directories and packages that a recipe needs and that are not there: found before a run starts.

Left alone are hub ids (owner/name), what the run itself makes, and what only stages read that are done.

    stepmark run mine.yaml --dry-run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmark.data import rows
from stepmark.data.paths import nowhere
from stepmark.errors import ConfigError, StepmarkError
from stepmark.models import checkpoints, lora
from stepmark.plugins import registry
from stepmark.run.recipe import Recipe
from stepmark.run.schema import Labeler
from stepmark.types import Place

# Stages, by their first words: those that read problems or imported solutions, train verifiers, label, use a model
DATA = ("problems", "train generator", "train completer")
LEARNING = ("train verifiers", "refresh")
LABELLING = ("label", "rationales", "refresh")
MODELS = ("train", "sample", "score", "reinforce", "test", *LABELLING)


@dataclass(frozen=True, slots=True)
class _Named:
    """A path in a recipe."""

    setting: str
    path: str
    check: Callable[[str], None]  # raises an error of ours where it is not there
    readers: tuple[str, ...]  # the first words of the stages that read it

    def fault(self) -> str:
        try:
            self.check(self.path)
        except StepmarkError as e:
            return f"{self.setting}: {e}"
        return ""


def need(recipe: Recipe, place: Place, todo: Callable[[], Sequence[str]]) -> None:
    """Raises ConfigError with every path and package that a stage of the run in the directory `place` will need and
    that is not there. `todo` gives the names of the stages that will run; it is called only where one is missing. Loads
    no model and no torch."""
    made_here = Path(place).resolve()
    named = [n for n in (*_data(recipe), *_models(recipe)) if made_here not in Path(n.path).resolve().parents]
    named += _packages(recipe)
    faults = [(n.readers, fault) for n in named if (fault := n.fault())]
    names = [f"{name} " for name in todo()] if faults else []
    needed = [fault for readers, fault in faults if any(name.startswith(f"{r} ") for name in names for r in readers)]
    if needed:
        raise ConfigError(needed)


def _packages(recipe: Recipe) -> Iterator[_Named]:
    """Optional packages that trainings need."""
    for role in ("generator", "completer", "judge"):
        if (model := getattr(recipe, role)) is not None and model.train is not None and model.train.lora:
            yield _Named(f"{role}.train", "peft", lambda _: lora.need(), (f"train {role}",))
    for name, verifier in recipe.verifiers.items():
        if verifier.train.lora:
            yield _Named(f"verifiers.{name}.train", "peft", lambda _: lora.need(), LEARNING)


def _data(recipe: Recipe) -> Iterator[_Named]:
    """Files and directories of problems and solutions."""
    if recipe.task is not None and recipe.task.name in registry.names("task"):
        task = recipe.task.load()
        for option in ("path", "test_path"):
            if value := getattr(task, option, ""):
                yield _Named(f"task.options.{option}", value, rows.need, DATA)
    for part in recipe.sample.parts:
        source = recipe.sample.source(part)
        # A plug-in of the user's own may mean something else by a path.
        if source.file is not None and source.format is not None and source.format.name in registry.names("format"):
            yield _Named(f"sample.{part}.file", source.file, rows.need, DATA)


def _models(recipe: Recipe) -> Iterator[_Named]:
    for role in ("generator", "completer", "judge"):
        if (model := getattr(recipe, role)) is not None and model.path is not None:
            readers: tuple[str, ...] = MODELS if model.train is None else (f"train {role}",)
            yield _Named(f"{role}.path", model.path, checkpoints.check, readers)
    for name, verifier in recipe.verifiers.items():
        if verifier.base.path is not None:
            readers = LEARNING if verifier.learns else MODELS
            yield _Named(f"verifiers.{name}.base.path", verifier.base.path, checkpoints.check, readers)
        if isinstance(trained := verifier.options.get("verifier"), str) and verifier.kind in registry.names("verifier"):
            yield _Named(f"verifiers.{name}.options.verifier", trained, _need_directory, MODELS)
        if verifier.rationales is not None:
            yield from _of_labeler(f"verifiers.{name}.rationales", verifier.rationales)
    for key in ("label", "rationales"):
        labeler: Labeler | None = getattr(recipe, key)
        if labeler is not None:
            yield from _of_labeler(key, labeler)


def _of_labeler(place: str, labeler: Labeler) -> Iterator[_Named]:
    """The checkpoints that a labeler names, also those of labelers inside it."""
    entries: list[tuple[str, str, Mapping[str, Any]]] = [(place, labeler.name, labeler.options)]
    inner = labeler.options.get("labelers")
    for i, entry in enumerate(inner if isinstance(inner, list | tuple) else ()):
        if isinstance(entry, Mapping):
            entries.append((f"{place}.options.labelers.{i}", str(entry.get("name")), entry.get("options") or {}))
    for at, name, options in entries:
        if isinstance(value := options.get("path"), str) and name in registry.names("labeler"):
            yield _Named(f"{at}.options.path", value, checkpoints.check, LABELLING)


def _need_directory(path: str) -> None:
    if not Path(path).is_dir():
        raise StepmarkError(f"no directory {path} {nowhere(path)}")

"""The inputs of a run: the checkpoints and data files that its recipe names, known by their content.

RUN/inputs.json has their fingerprints (data/fingerprint.py). A run goes on only with the checkpoints that it began
with: another one under the same path is refused, unless all stages that use it are run anew. A changed data file is
read again: it may have more rows, but no other question, answer or solution under an id that the run has.

stepmark run mine.yaml      # and then --from "sample train", with a generator that was trained again
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepmark.data import fingerprint, settings
from stepmark.data.store import Records, write_json
from stepmark.run.context import RunContext
from stepmark.run.pipeline.problems import POLICY_PARTS, imported
from stepmark.run.recipe import Recipe
from stepmark.run.stage import Stage, matches
from stepmark.types import Problem, Quarantined

FILE = "inputs.json"
# section of the recipe -> names, or first words, of the stages that may use its checkpoint first
USED_BY = {
    "generator": ("train generator", "sample"),
    "completer": ("train completer", "label", "rationales"),
    "judge": ("train judge", "label", "rationales"),
    "label": ("label",),
    "rationales": ("rationales",),
    "verifiers": ("train verifiers", "score"),
}


def check(context: RunContext, listed: Sequence[Stage], anew: Sequence[Stage] = ()) -> dict[str, Any]:
    """The inputs as they are now, for `write`. Raises ConfigChanged where one is not what the run began with and a
    stage that used it is not among those that are run `anew`, with all that follow."""
    now = {"models": models(context.recipe), "files": files(context.recipe)}
    stored = settings.read(context.path / FILE)
    if stored is None:  # a new run, or one of an earlier version
        return now
    start = listed.index(anew[0]) if anew and list(anew) == list(listed[listed.index(anew[0]) :]) else len(listed)
    kept = {key for key in now["models"] if _first(key, listed) < start}
    old, new = ({k: v for k, v in models.items() if k in kept} for models in (stored.get("models", {}), now["models"]))
    first = min((_first(key, listed) for key in new if _differ(old.get(key), new[key])), default=0)
    settings.agreed(
        {"models": old},
        {"models": new},
        str(context.path),
        f"Give the checkpoint back its content, run what follows from it anew with --from {listed[first].name!r}, or "
        "give another directory.",
    )
    changed = {k: v for k, v in now["files"].items() if _differ(stored.get("files", {}).get(k), v)}
    if changed and start > 0:
        _same_rows(context, changed)
    return {part: {**stored.get(part, {}), **now[part]} for part in now}


def write(context: RunContext, inputs: Mapping[str, Any]) -> None:
    """Writes RUN/inputs.json. What is run anew must be in the archive by now: else a kill could leave old results with
    new inputs."""
    if settings.read(context.path / FILE) != inputs:
        write_json(context.path / FILE, inputs)


def models(recipe: Recipe) -> dict[str, Any]:
    """Place in the recipe -> path and fingerprint, of each checkpoint whose content is known here."""
    return {
        key: {"path": path, "fingerprint": known}
        for key, path in _paths(recipe.model_dump(mode="json", exclude={"task", "sample", "stages", "executor"}))
        if (known := fingerprint.of_model(path)) is not None
    }


def files(recipe: Recipe) -> dict[str, Any]:
    """Place in the recipe -> path and fingerprint, of each file with data, each directory with data, and the user's own
    task."""
    sections = recipe.model_dump(mode="json", include={"task", "sample"})
    paths = dict(_paths(sections, ("path", "file")))
    if recipe.task is not None and recipe.task.name.endswith(".py"):
        paths["task.name"] = recipe.task.name
    return {
        key: {"path": path, "fingerprint": fingerprint.of_data(path)}
        for key, path in paths.items()
        if path and Path(path).exists()
    }


def problems_of(file: Path) -> Sequence[Problem]:
    """The problems of a run's file, such as RUN/labels/train.jsonl; empty for a file that is not in a run."""
    for run in file.resolve().parents[1:3]:  # rationales/NAME/train.jsonl is one folder deeper
        problems = run / "problems" / file.name
        if (run / "config.json").is_file() and problems.is_file():
            return list(Records(problems, Problem))
    return ()


def _paths(value: Any, names: Sequence[str] = ("path",), place: str = "") -> Iterator[tuple[str, str]]:
    """Dotted places of the texts that may be paths: settings with one of these names, and the options of plug-ins."""
    listed = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in listed:
        inside = f"{place}.{key}" if place else str(key)
        if isinstance(inner, str) and len(inner) < 256 and (key in names or "options" in place.split(".")):
            yield inside, inner
        yield from _paths(inner, names, inside)


def _first(key: str, listed: Sequence[Stage]) -> int:
    """The index of the first stage that uses the checkpoint at a place of the recipe."""
    names = USED_BY.get(key.partition(".")[0], ())
    return next((i for i, stage in enumerate(listed) if any(matches(stage, name) for name in names)), 0)


def _differ(stored: Any, now: Any) -> bool:
    return stored is not None and stored.get("fingerprint") != now.get("fingerprint")


def _same_rows(context: RunContext, changed: Mapping[str, Any]) -> None:
    """Raises ConfigChanged where changed files have another problem or solution under an id that the run has."""
    names = ", ".join(file["path"] for file in changed.values())
    way = "Give the file back its content, run everything anew with --from problems, or give another directory."
    for part, split, most in _parts(context.recipe):
        source = context.recipe.sample.source(part) if part in context.recipe.sample.parts else None
        stored = fingerprint.of_problems(context.problems(part), answers=True)
        if source is None or source.file is None:
            assert context.task is not None and split is not None
            now = fingerprint.of_problems(context.task.load(split, most).problems, answers=True)
        else:
            rows = [row for row in imported(context, source) if not isinstance(row, Quarantined)]
            now = fingerprint.of_problems((row.problem for row in rows), answers=True)
            now |= fingerprint.of_solutions(s for row in rows for s in row.solutions)
            stored |= fingerprint.of_solutions(context.solutions(part))
        place = f"{context.path}, made from {names},"
        settings.agreed({settings.PROBLEMS: stored}, {settings.PROBLEMS: now}, place, way)


def _parts(recipe: Recipe) -> Iterator[tuple[str, str | None, int | None]]:
    """The parts of the run with problems, each with its split and its largest number of problems."""
    for part in recipe.sample.parts:
        yield part, recipe.sample.source(part).split, recipe.sample.source(part).problems
    if (r := recipe.reinforce) is not None:
        splits = ((r.split, r.problems), (r.held_out.split, r.held_out.problems), (r.test.split, r.test.problems))
        for part, (split, most) in zip(POLICY_PARTS, splits, strict=True):
            yield part, split, most

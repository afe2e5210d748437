"""The settings of a stage command: what can change its results, written beside its output and compared there.

Each plug-in is its name and its options, each model what it is (data/fingerprint.py), a user's own file what is in it.
Not among the settings are those that only say how much to do or how: numbers of problems and solutions, workers,
budgets, limits, devices.

    stepmark sample --model generator/ --n 16 --out solutions.jsonl      # and solutions.jsonl.settings.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import typer

from stepmark.cli.parameters import rollouts
from stepmark.data import fingerprint, settings
from stepmark.data.store import Records, StoredRecord
from stepmark.plugins import registry
from stepmark.types import Place, Problem, SamplingParams

Record = TypeVar("Record", bound=StoredRecord)
Settings = dict[str, Any]

ABOUT_TASK = ("task", settings.PROBLEMS)
SERVER = "not known: a server tells only the name of its model"


def of_task(name: str, task: object, split: str, problems: Sequence[Problem], answers: bool = True) -> Settings:
    """The task, its split and the problems, which are known by their texts: so the task's files may move and grow.
    `answers` says whether the results depend on the reference answers."""
    options = {k: Path(v).name if _is_path(v) else v for k, v in _options("task", name, task).items()}
    about = {"name": _shown(name), "options": options, "split": split}
    return {"task": about, settings.PROBLEMS: fingerprint.of_problems(problems, answers)}


def of_plugin(role: str, name: str, plugin: object) -> Settings:
    """A plug-in that is no model: a grader, a labeler. Checkpoints and files among its options are known by their
    content."""
    options = {k: of_checkpoint(v) if _is_path(v) else v for k, v in _options(role, name, plugin).items()}
    return {"name": _shown(name), **_own(name), "options": options}


def of_backend(name: str, backend: object | None) -> Settings | None:
    """What runs a model, and the model; None for none."""
    if backend is None:
        return None
    about = of_plugin("backend", name, backend)
    if getattr(backend, "remote", False):
        server = {"server": backend.server} if hasattr(backend, "server") else {}
        return about | server | {"content": SERVER}
    if isinstance(path := about["options"].get("path"), str):  # a hub id; a directory is known by its content already
        about["options"]["path"] = of_checkpoint(path)
    return about


def of_verifier(place: str, verifier: object) -> Settings:
    """A trained verifier, a public one and how it is read, or a kind that is used as it is."""
    reading: Settings = getattr(verifier, "read_as", {})
    if Path(place).is_dir() or reading:
        return of_checkpoint(getattr(verifier, "path", place)) | {"path": place} | reading
    return of_plugin("verifier", place, verifier)


def of_checkpoint(place: Place) -> Settings:
    """A checkpoint, or a file: its place, and its fingerprint where it is known."""
    known = fingerprint.of_file(place) if Path(place).is_file() else fingerprint.of_model(place)
    return {"path": str(place)} | ({} if known is None else {"fingerprint": known})


def of_input(role: str, path: Path) -> Settings:
    """How an earlier command made the file that this one reads; empty where nobody knows."""
    stored = settings.read(settings.beside(path))
    return {} if stored is None else {role: {k: v for k, v in stored.items() if k not in ABOUT_TASK}}


def of_sampling(prompt: str, params: SamplingParams) -> Settings:
    """How texts are sampled."""
    sampling = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(params).items() if k != "choices"}
    return {"prompt": prompt, "sampling": sampling}


def same_questions(path: Path, given: Mapping[str, Any]) -> None:
    """Raises ConfigChanged with the diff where a file was made for another task, split or questions than `given`, the
    result of `of_task`. Ids such as train-0 say nothing of them. A file of a run has the run's problems, and nothing is
    known of other files without settings."""
    stored = settings.read(settings.beside(path))
    if stored is None:
        from stepmark.run.inputs import problems_of

        stored = {settings.PROBLEMS: fingerprint.of_problems(problems_of(path), answers=True)}
    known = {key: stored[key] for key in ABOUT_TASK if key in stored}
    way = "Give the task, its options (also its seed) and the split that the file was made with."
    settings.agreed(known, given, str(path), way)


@contextmanager
def output(out: Path, kind: type[Record], about: Mapping[str, Any]) -> Iterator[Records[Record]]:
    """The records of `out`, for this process alone, with `about` as the settings beside it.

    Raises ConfigChanged with the diff where `out` or its rollouts have other settings, StageError while another process
    writes it. A file without settings comes from an earlier version and is taken to have these; a note says so."""
    place, bought, new = settings.beside(out), rollouts(out), not out.exists()

    def empty() -> bool:
        return out.stat().st_size == 0 and not any(bought.glob("*.jsonl"))

    with Records(out, kind) as records:
        records.claim()  # first: of two commands at once, only one may write settings
        try:
            if empty():
                place.unlink(missing_ok=True)  # those of a file that was deleted
            elif not place.exists():
                typer.echo(
                    f"stepmark: note: {out} has no settings beside it, as in earlier versions. It is taken to have "
                    f"those of this command, which are now in {place}.",
                    err=True,
                )
            also = f" with {bought}" if bought.is_dir() else ""
            way = f"Give the settings that it was made with or another --out, or delete {out}{also} to start again."
            settings.keep(place, about, str(out), way)
            yield records
        finally:  # a command that fails at once leaves nothing
            if empty():
                place.unlink(missing_ok=True)
            if new and out.stat().st_size == 0:
                out.unlink()


def _options(role: str, name: str, plugin: object) -> Settings:
    """The options of a plug-in that can change results, defaults included, as plain values."""
    free = ("device", *getattr(plugin, "free", ()))
    defaults = registry.options(role, name)
    return {k: _plain(getattr(plugin, k, default)) for k, default in defaults.items() if k not in free}


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float) else type(value).__name__


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value != "" and len(value) < 256 and Path(value).exists()


def _shown(name: str) -> str:
    """A plug-in's name; of a user's own file, that of the file."""
    return Path(name).name if name.endswith(".py") else name


def _own(name: str) -> Settings:
    """The content of a user's own file."""
    return {"path": name, "fingerprint": fingerprint.of_file(name)} if name.endswith(".py") else {}

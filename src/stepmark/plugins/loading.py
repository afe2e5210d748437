"""Loads the objects that stages take, by name or path. For Python users and the command line; stages never call it.

grade = stepmark.load_grader("numeric").grade("so it is 5 + 3 = 8.", problem)
best = stepmark.load_verifier("runs/demo/verifiers/prm").verify(question, solutions)
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from stepmark.plugins import registry, verifier_card
from stepmark.protocols import Backend, Executor, Grader, Task, Verifier
from stepmark.types import Place


def load_task(name: str, /, **options: Any) -> Task:
    """A task by name or by the path of a file. Raises ConfigError for an unknown name or option."""
    return cast(Task, registry.load("task", name, **options))


def load_grader(name: str, /, **options: Any) -> Grader:
    """A grader by name or by the path of a file. Raises ConfigError for an unknown name or option."""
    return cast(Grader, registry.load("grader", name, **options))


def load_backend(name: str, /, **options: Any) -> Backend:
    """A generation backend by name or by the path of a file. Raises ConfigError for an unknown name or option."""
    return cast(Backend, registry.load("backend", name, **options))


def load_verifier(place: Place, /, **options: Any) -> Verifier:
    """A trained verifier by its directory, a public one by its directory or hub id, or a kind of verifier by name or by
    the path of a file.

    For a directory, the options are those of its training (see verifier_card); `options` may replace settings that do
    not change what was learned, such as device. A checkpoint without a card belongs to a public family, which its files
    name (models/detection.py), or the option `reading`. Raises ConfigError for an unknown name or option,
    CheckpointError for a directory that is not a verifier, or whose family is not known."""
    name = str(place)
    if not Path(place).is_dir() and ("/" not in name or name.endswith(".py")):
        if new_name := registry.RENAMED.get(("verifier", name)):
            warnings.warn(f"the verifier {name!r} is now called {new_name!r}", DeprecationWarning, stacklevel=2)
            name = new_name
        return cast(Verifier, registry.load("verifier", name, **options))
    if "reading" in options or _public(Path(place)):
        return cast(Verifier, registry.load("verifier", "public", path=name, **options).identified())
    card = verifier_card.read_card(place)
    return cast(Verifier, registry.load("verifier", card["kind"], **{**card["options"], "path": name, **options}))


def _public(place: Path) -> bool:
    """Whether it is a checkpoint that was not trained here, or a hub id."""
    if not place.is_dir():
        return not place.exists() and not place.is_absolute() and len(place.parts) == 2 and place.parts[0] != ".."
    there = any((place / name).is_file() for name in ("config.json", "adapter_config.json"))
    return there and not (place / verifier_card.CARD).is_file()


def load_member(place: Place, device: str) -> Verifier:
    """A trained verifier that another verifier builds on, loaded on the device of that one if its kind has a device."""
    options = registry.options("verifier", verifier_card.read_card(place)["kind"])
    return load_verifier(place, **({"device": device} if "device" in options else {}))


def load_executor(workers: int = 1) -> Executor:
    """The executor for `workers` workers: worker processes, or this process for one worker."""
    if workers == 1:
        return cast(Executor, registry.load("executor", "serial"))
    return cast(Executor, registry.load("executor", "processes", workers=workers))

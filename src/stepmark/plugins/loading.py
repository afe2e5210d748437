"""Names and paths -> the objects that stages take. For Python users and for the edge; stages never call it.

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
    """A task by name or by the path of a file. Raises ConfigError for a name or an option that there isn't."""
    return cast(Task, registry.load("task", name, **options))


def load_grader(name: str, /, **options: Any) -> Grader:
    """A grader by name or by the path of a file. Raises ConfigError."""
    return cast(Grader, registry.load("grader", name, **options))


def load_backend(name: str, /, **options: Any) -> Backend:
    """A generation backend by name or by the path of a file. Raises ConfigError."""
    return cast(Backend, registry.load("backend", name, **options))


def load_verifier(place: Place, /, **options: Any) -> Verifier:
    """A trained verifier by its directory, or a kind of verifier by name or by the path of a file.

    A directory's card gives the options that it was trained with; `options` change those that don't alter what was
    learned, such as device. Raises ConfigError, or CheckpointError for a directory that is no verifier."""
    name = str(place)
    if not Path(place).is_dir() and ("/" not in name or name.endswith(".py")):
        if now := registry.RENAMED.get(("verifier", name)):
            warnings.warn(f"the verifier {name!r} is now called {now!r}", DeprecationWarning, stacklevel=2)
            name = now
        return cast(Verifier, registry.load("verifier", name, **options))
    card = verifier_card.read_card(place)
    return cast(Verifier, registry.load("verifier", card["kind"], **{**card["options"], "path": name, **options}))


def load_member(place: Place, device: str) -> Verifier:
    """A trained verifier that another one builds on, on that one's device where it runs a model at all."""
    taken = registry.options("verifier", verifier_card.read_card(place)["kind"])
    return load_verifier(place, **({"device": device} if "device" in taken else {}))


def load_executor(workers: int = 1) -> Executor:
    """What runs units of work: worker processes, or this process where one worker is enough."""
    if workers == 1:
        return cast(Executor, registry.load("executor", "serial"))
    return cast(Executor, registry.load("executor", "processes", workers=workers))

"""A description of a training's inputs in plain values. A directory is never resumed with other inputs.

A checkpoint is described by a digest of its content, not by its path; problems are described by their texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from stepmark.models import checkpoints
from stepmark.types import Problem

PLACES = ("path", "verifier", "verifiers")  # the fields in which verifiers name checkpoints


def digest(*parts: Sequence[Problem]) -> str:
    """A digest of lists of problems."""
    texts = [[(p.id, p.question, p.reference) for p in part] for part in parts]
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:16]


def answers(*parts: Sequence[Problem]) -> str:
    """A digest of the gold answers of lists of problems. Earlier versions did not store it."""
    gold = [[(p.id, p.answer) for p in part] for part in parts]
    return hashlib.sha256(repr(gold).encode()).hexdigest()[:16]


def described(thing: Any) -> Any:
    """A reward source or a grader in plain values. Checkpoints are replaced by digests of their content."""
    if isinstance(thing, (str, int, float, bool, type(None))):
        return thing
    if isinstance(thing, Path):
        return str(thing)
    if isinstance(thing, Mapping):
        return {str(k): described(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [described(x) for x in thing]
    field_names = [f.name for f in fields(thing)] if is_dataclass(thing) else list(getattr(thing, "__dict__", {}))
    values = {name: getattr(thing, name) for name in field_names}
    settings = {k: described(v) for k, v in values.items() if k not in ("device", *PLACES)}
    paths = [values[name] for name in PLACES if name in values]
    path_lists = [p if isinstance(p, (list, tuple)) else [p] for p in paths]
    digests = [
        checkpoints.digest(p) if isinstance(p, (str, Path)) and p else described(p)
        for path_list in path_lists
        for p in path_list
    ]
    return {"kind": type(thing).__name__, **settings, **({"places": digests} if digests else {})}

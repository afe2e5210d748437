"""What a training was asked for, in plain values: so that it is never gone on with as another one.

A checkpoint is told by what it holds, wherever it lies; problems by their texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from stepmark.models import checkpoints
from stepmark.types import Problem

PLACES = ("path", "verifier", "verifiers")  # what verifiers call the checkpoints that they stand on


def digest(*parts: Sequence[Problem]) -> str:
    """Of problems, part by part."""
    facts = [[(p.id, p.question, p.reference) for p in part] for part in parts]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def described(thing: Any) -> Any:
    """What a reward source or a grader is, in plain values: a checkpoint is what it holds, wherever it lies."""
    if isinstance(thing, (str, int, float, bool, type(None))):
        return thing
    if isinstance(thing, Path):
        return str(thing)
    if isinstance(thing, Mapping):
        return {str(k): described(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [described(x) for x in thing]
    names = [f.name for f in fields(thing)] if is_dataclass(thing) else list(getattr(thing, "__dict__", {}))
    own = {name: getattr(thing, name) for name in names}
    plain = {k: described(v) for k, v in own.items() if k not in ("device", *PLACES)}
    places = [own[name] for name in PLACES if name in own]
    found = [p if isinstance(p, (list, tuple)) else [p] for p in places]
    digests = [checkpoints.digest(p) if isinstance(p, (str, Path)) and p else described(p) for ps in found for p in ps]
    return {"kind": type(thing).__name__, **plain, **({"places": digests} if digests else {})}

"""Where a setting can stand in a recipe: the names at a place, and the places of a name.

An error about a setting in the wrong place names the right one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any

from pydantic import BaseModel

from stepmark.errors import ConfigError
from stepmark.plugins import registry

NAME = "NAME"  # stands for a name that the user chooses, such as that of a verifier
MOST = 3  # places that are suggested


def names(kind: Any, loc: Sequence[Any]) -> list[str]:
    """The names of the settings at a place below `kind`."""
    for part in loc:
        kind = _inner(kind).get(str(part)) or _inner(kind).get(NAME)
    return [name for name in _inner(kind) if name != NAME]


def elsewhere(kind: Any, section: Sequence[str], key: str, raw: Any) -> list[str]:
    """The places below `kind` where `key` can stand instead of in `section`, as dotted keys: those that share the most
    with the section, and of these the shortest. An option of the section's own plug-in comes before all others."""
    if _is_option(kind, section, key, raw):
        return [".".join([*section, "options", key])]
    found: list[tuple[int, int, str]] = []
    for place in _places(kind, key):
        shared = 0
        while shared < min(len(place) - 1, len(section)) and place[shared] in (section[shared], NAME):
            shared += 1
        found.append((-shared, len(place), ".".join([*section[:shared], *place[shared:]])))
    best = min((x[:2] for x in found), default=None)
    return [x[2] for x in found if x[:2] == best][:MOST]


def _places(kind: Any, key: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in _inner(kind).items():
        if name == key:
            yield (*above, name)
        yield from _places(inner, key, (*above, name))


def _inner(kind: Any) -> dict[str, Any]:
    """The settings of a section and their types; NAME stands for the keys of a mapping."""
    kind = _bare(kind)
    if typing.get_origin(kind) is dict:
        return {NAME: typing.get_args(kind)[1]}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return typing.get_type_hints(kind) if isinstance(kind, type) and is_dataclass(kind) else {}


def _bare(kind: Any) -> Any:
    """The type without Annotated and without None; of several, the first that has settings of its own."""
    if typing.get_origin(kind) is Annotated:
        return _bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [_bare(a) for a in typing.get_args(kind) if a is not type(None)]
        return next((k for k in kinds if _inner(k)), kinds[0])
    return kind


def _is_option(kind: Any, section: Sequence[str], key: str, raw: Any) -> bool:
    """Whether the plug-in that a section names has the option `key`."""
    for part in section:
        inner = _inner(kind)
        kind = inner.get(part, inner.get(NAME))
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    kind = _bare(kind)
    if not isinstance(raw, Mapping) or "options" not in _inner(kind):
        return False
    # Every section with options is that of a plug-in, by its name, except verifiers, which have a kind.
    role, name = getattr(kind, "role", "verifier"), raw.get("name", raw.get("kind"))
    try:
        return isinstance(name, str) and key in registry.options(role, name)
    except ConfigError:
        return False

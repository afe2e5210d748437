"""Where a setting can stand in a recipe: the names at a place, and the places of a name.

An error about a setting in the wrong place names the right one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any

from pydantic import BaseModel

from stepmark.errors import ConfigError
from stepmark.plugins import registry

NAME = "NAME"  # stands for a name that the user chooses, such as that of a verifier
MOST = 3  # places that are suggested
# What other programs call a setting
OTHERWISE = {
    **dict.fromkeys(("learning_rate", "max_lr"), "lr"),
    **dict.fromkeys(("num_epochs", "n_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("batch", "batch_size", "train_batch_size"), "batch_tokens"),
    **dict.fromkeys(("model", "model_path", "model_name", "checkpoint"), "path"),
    **dict.fromkeys(("dataset", "data"), "task"),
    **dict.fromkeys(("num_samples", "samples", "num_generations"), "n"),
    **dict.fromkeys(("max_new_tokens", "max_completion_tokens"), "max_tokens"),
    **dict.fromkeys(("num_workers", "processes"), "workers"),
    **dict.fromkeys(("fewshot", "num_fewshot", "shots"), "few_shot"),
    "random_seed": "seed",
    "torch_dtype": "dtype",
    "sampling": "sample",
    "verifier": "verifiers",
}
# Options of the command line that are no settings
COMMAND = {**dict.fromkeys(("out", "output", "output_dir", "run_dir"), "--out"), "budget": "--budget"}


def names(kind: Any, loc: Sequence[Any]) -> list[str]:
    """The names of the settings at a place below `kind`."""
    for part in loc:
        kind = _inner(kind).get(str(part)) or _inner(kind).get(NAME)
    return [name for name in _inner(kind) if name != NAME]


def elsewhere(kind: Any, section: Sequence[str], key: str, raw: Any) -> list[str]:
    """The places below `kind` that `key` may mean instead of a place in `section`, as dotted keys: in the sections that
    the recipe `raw` has, those that share the most with the section, and of these the shortest. An option of the
    section's own plug-in comes before all others. A name that other programs use stands for ours too."""
    found, ours = _elsewhere(kind, section, key, raw), OTHERWISE.get(key, "")
    if ours in names(kind, section):
        return [ours]
    return list(dict.fromkeys([*found, *(_elsewhere(kind, section, ours, raw) if ours else ())]))[:MOST]


def _elsewhere(kind: Any, section: Sequence[str], key: str, raw: Any) -> list[str]:
    found: list[tuple[int, tuple[str, ...]]] = []  # how much is shared, and the place
    for place in dict.fromkeys([*_places(kind, key, raw), *_options(kind, key, raw)]):
        if place[:-2] == tuple(section) and place[-2] == "options":
            return [".".join(place)]
        shared = 0
        while shared < min(len(place) - 1, len(section)) and place[shared] in (section[shared], NAME):
            shared += 1
        found.append((shared, (*section[:shared], *place[shared:])))
    there = {*raw, *_not_null(kind)} if isinstance(raw, Mapping) else set()
    best = [place for shared, place in found if shared == max(found)[0]]
    best = sorted([place for place in best if place[0] in there] or best, key=len)
    return [".".join(place) for place in best if len(place) <= len(best[0]) + 1]


def _not_null(kind: Any) -> list[str]:
    """The settings that are there without being set."""
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return [name for name, field in fields.items() if field.default is not None]


def _places(kind: Any, key: str, raw: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of a setting. Where the user chooses names, those in `raw` stand for all."""
    for name, inner, below in _sections(kind, raw):
        if name == key:
            yield (*above, name)
        yield from _places(inner, key, below, (*above, name))


def _options(kind: Any, key: str, raw: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of an option of the plug-ins that a recipe uses."""
    inner = _inner(kind)
    raw = {"name": raw} if isinstance(raw, str) else raw
    if "options" in inner and isinstance(raw, Mapping):
        bare = _bare(kind)
        # Every section with options is that of a plug-in, by its name, except verifiers, which have a kind.
        name = raw.get("name", raw.get("kind", bare.model_fields["name"].default if "name" in inner else None))
        filled_in = key in getattr(bare, "run_options", ())
        try:
            if (
                not filled_in
                and isinstance(name, str)
                and key in registry.options(getattr(bare, "role", "verifier"), name)
            ):
                yield (*above, "options", key)
        except ConfigError:
            pass  # an unknown plug-in is reported by itself
    for name, section, below in _sections(kind, raw):
        if below is not None or name == "backend":  # a model has a backend, also where the recipe names none
            yield from _options(section, key, {} if below is None else below, (*above, name))


def _of_plugin(role: str, name: Any) -> Collection[str]:
    try:
        return registry.options(role, name) if isinstance(name, str) else ()
    except ConfigError:
        return ()  # an unknown plug-in is reported by itself


def _sections(kind: Any, raw: Any) -> Iterator[tuple[str, Any, Any]]:
    """The settings of a section with their types and their values in a recipe; None where it has none."""
    values = raw if isinstance(raw, Mapping) else {}
    for name, inner in _inner(kind).items():
        for own in [str(k) for k in values] or [NAME] if name == NAME else [name]:
            yield own, inner, values.get(own)


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

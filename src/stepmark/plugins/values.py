"""Reads the values of `key=value` settings from the command line, each by the type of its setting.

- Text, or text or null: the value as it stands. `-`, `no`, `1e5` and `null` are these texts.
- One of several words (Literal): the word. Numbers: as Python writes them. True or false: as YAML writes them.
- A list: `[a, b]`. Another value is a list of this one item, and no value at all is an empty list.
- A mapping or a section of a recipe: `{a: b}`. Another value is the name of the section's plug-in.
- A setting that may be null, and more than text: `null`, `~`, `none` and no value at all are null.
- A setting of unknown type: the value as YAML understands it.

Inside brackets the same holds for each item by its own type. There YAML can quote, so a `null` without quotes is null
wherever the setting may be null. A value that does not fit stays text, and the check of the setting refuses it.

    stepmark train prm --option bad=- --option tag=no ...
    stepmark run mine.yaml verifiers.prm.options.bad=- 'sample.stop=[no, 1e5]'
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

import yaml

from stepmark.errors import ConfigError

NULL = ("", "~", "null", "none")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True, slots=True)
class Unread:
    """A value whose type is not looked up yet."""

    text: str
    place: Literal["alone", "in brackets", "quoted"] = "alone"  # quoted: in brackets too


def changed(raw: Mapping[str, Any], changes: Sequence[str], kind: Any) -> dict[str, Any]:
    """A copy of `raw` with each `a.b.c=value` set, read by `kind`: a section's class, or a mapping from key to type.

    Raises ConfigError for changes of another form, all of them at once."""
    copy: dict[str, Any] = _copy(raw)
    faults = []
    for change in changes:
        key, equals, text = change.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            faults.append(f"{change!r} is not key=value, e.g. sample.test.n=16.")
            continue
        section = copy
        try:
            for part in parts[:-1]:
                section[part] = _opened(section.get(part))
                section = section[part]
            section[parts[-1]] = Unread(text)
            read(copy, kind)  # so that a fault names its change; a later change may name the plug-in that gives types
        except yaml.YAMLError as e:
            faults.append(f"{change!r}: the value is not YAML: {e}")
            section.pop(parts[-1], None)
    if faults:
        raise ConfigError(faults)
    return typing.cast("dict[str, Any]", read(copy, kind))


def read(value: Any, kind: Any) -> Any:
    """`value` with each Unread in it read by its type. Raises YAMLError for a value in brackets that is not YAML."""
    kinds = _alternatives(kind)
    if isinstance(value, Mapping):
        inner = next((k for k in kinds if _is_mapping(k)), None)
        return {key: read(x, _inner(inner, value, key)) for key, x in value.items()}
    if isinstance(value, list):
        inner = next((k for k in kinds if _is_list(k)), None)
        return [read(x, _item(inner, i)) for i, x in enumerate(value)]
    return _scalar(value, kinds) if isinstance(value, Unread) else value


def _scalar(value: Unread, kinds: Sequence[Any]) -> Any:
    text = value.text
    just_text = str in kinds and all(k in (str, types.NoneType) for k in kinds)
    opened = {"[": _is_list, "{": _is_mapping}.get(text.lstrip()[:1])
    if value.place == "alone" and opened is not None and (inner := [k for k in kinds if opened(k)]):
        return read(_tree(text), inner[0])
    if value.place == "quoted":
        return text
    if types.NoneType in kinds and (not just_text or value.place == "in brackets") and text.strip().lower() in NULL:
        return None
    if str in kinds:
        return text
    for words in (typing.get_args(k) for k in kinds if typing.get_origin(k) is Literal):
        if text in map(str, words):
            return next(word for word in words if str(word) == text)
    if bool in kinds and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    if int in kinds or float in kinds:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    for k in kinds:
        if _is_list(k):
            return [read(value, _item(k, 0))] if text.strip() else []
    return text if all(map(_is_known, kinds)) else yaml.safe_load(text)


def _tree(text: str) -> Any:
    """The lists and mappings of a YAML text, with an Unread for each other value."""

    def plain(node: Any) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [plain(x) for x in node.value]
        if isinstance(node, yaml.MappingNode):
            return {k.value if isinstance(k, yaml.ScalarNode) else str(plain(k)): plain(v) for k, v in node.value}
        return Unread(node.value, "quoted" if node.style else "in brackets")

    try:
        return plain(yaml.compose(text, yaml.SafeLoader))
    except RecursionError:
        raise yaml.YAMLError("it contains itself, or too many brackets") from None


def _opened(value: Any) -> dict[str, Any]:
    """A section that one of its settings is to be set in. `label: monte_carlo` is short for `{name: monte_carlo}`."""
    if isinstance(value, Unread) and value.text.lstrip().startswith("{"):
        value = _tree(value.text)
    if isinstance(value, Unread) and value.text.strip().lower() in NULL:
        return {}
    return value if isinstance(value, dict) else {"name": value} if isinstance(value, str | Unread) else {}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: those of a union, or the type itself."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _alternatives(args[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(x for a in args for x in _alternatives(a))
    return (kind,)


def _is_list(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(kind, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)) or _is_section(kind)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "types_for"))


def _is_known(kind: Any) -> bool:
    known = kind in (str, bool, int, float, types.NoneType) or typing.get_origin(kind) is Literal
    return known or _is_list(kind) or _is_mapping(kind)


def _inner(kind: Any, value: Mapping[str, Any], key: str) -> Any:
    """The type of the setting `key` of a mapping or section. Sections that hold plug-ins tell by their `value`."""
    if isinstance(kind, Mapping):
        return kind.get(key, Any)
    if _is_section(kind):
        hints = kind.types_for(value) if hasattr(kind, "types_for") else typing.get_type_hints(kind)
        return hints.get(key, Any)
    args = typing.get_args(kind)
    return args[1] if len(args) == 2 else Any


def _item(kind: Any, index: int) -> Any:
    """The type of an item of a list."""
    args = [a for a in typing.get_args(kind) if a is not Ellipsis]
    return args[min(index, len(args) - 1)] if args else Any


def _copy(value: Any) -> Any:
    return {str(k): _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value

"""The reference pages of the site, made from the source each time the site is built: nothing here names a command, a
recipe key or a plug-in. Loads no torch.

mkdocs.yml names this file twice: as a hook, which makes the pages, and as an extension of griffe, which reads Python
files for the pages about Python names without importing them.

    make docs
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import html
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import griffe
import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import stepmark
from stepmark import cli
from stepmark.plugins import registry
from stepmark.run.recipe import Recipe

WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null", Any: "anything"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TABLE = "|---|---|---|---|"


# ---- what the source says ----


def comments(source: str) -> dict[str, str]:
    """Of a class's source: the comment of each field, and of each parameter of its constructor. A comment stands on the
    field's own lines, or on lines of its own above it."""
    [found] = ast.parse(source).body
    if not isinstance(found, ast.ClassDef):
        return {}
    said = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not re.match(r"# *(noqa|type:|----)", token.string)
    }
    fields: list[tuple[str, ast.AST]] = []
    for node in found.body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            fields += [(target.id, node)] if isinstance(target, ast.Name) else []
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            fields += [(arg.arg, arg) for arg in (*node.args.args, *node.args.kwonlyargs)]
    out = {}
    for name, node in fields:
        first = start = node.lineno  # type: ignore[attr-defined]
        while said.get(start - 1, ("", False))[1]:
            start -= 1
        parts = [said[i][0] for i in range(start, first)]
        parts += [said[i][0] for i in range(first, node.end_lineno + 1) if i in said]  # type: ignore[attr-defined]
        if parts:
            out[name] = " ".join(parts)
    return out


class Comments(griffe.Extension):
    """The fields of a class become a table in its description, with the comments beside them, which griffe does not
    read by itself."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self._describe(pkg)

    def _describe(self, found: griffe.Module | griffe.Class) -> None:
        for member in found.members.values():
            if member.is_alias:
                continue
            if member.docstring is not None:
                member.docstring.value = plain(member.docstring.value)
            if isinstance(member, griffe.Class) and member.docstring is not None:
                member.docstring.value += _fields_table(member)
            if isinstance(member, griffe.Module | griffe.Class):
                self._describe(member)


def _fields_table(found: griffe.Class) -> str:
    if any("Enum" in str(base) for base in found.bases):
        return "\n\nValues: " + ", ".join(code(m.value) for m in found.members.values() if m.is_attribute) + "."
    said, rows = comments(found.source), []
    for name, member in found.members.items():
        field = isinstance(member, griffe.Attribute) and "property" not in member.labels and not name.startswith("_")
        if not field or "ClassVar" in str(member.annotation or ""):
            continue
        kind = code(member.annotation) if member.annotation is not None else ""
        value = code(member.value) if member.value is not None else ""
        rows.append(f"| `{name}` | {kind} | {value} | {cell(sentence(said.get(name, '')))} |")
    return f"\n\n| field | type | default | meaning |\n{TABLE}\n" + "\n".join(rows) if rows else ""


def fields_of(kind: type[Any]) -> dict[str, str]:
    """The comments of a class's fields, inherited ones included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.startswith("stepmark"):
            found |= comments(inspect.cleandoc("\n" + inspect.getsource(each)))
    return found


# ---- how it is written ----


def plain(text: str) -> str:
    """Text whose signs Markdown is not to take for its own. Code stays as it is."""
    lines = []
    for line in text.split("\n"):
        parts = [line] if line.startswith("    ") else re.split(r"(`[^`]*`)", line)
        for i in range(0, len(parts) if not line.startswith("    ") else 0, 2):
            parts[i] = re.sub(
                r"(?<!\\)([<*\[\]])", lambda m: html.escape(m[1]) if m[1] == "<" else f"\\{m[1]}", parts[i]
            )
        lines.append("".join(parts))
    return "\n".join(lines)


def sentence(text: str) -> str:
    """With a capital and a full stop, unless it begins with code or dots."""
    text = text.strip()
    return (text[:1].upper() + text[1:]) + ("" if text[-1:] in ".:?!" else ".") if text else ""


def cell(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", plain(text).replace("\n", " "))  # a bar in code is no end of a cell to Markdown
    return "".join(part if part.startswith("`") else part.replace("|", "&#124;") for part in parts)


def code(value: object) -> str:
    return f"`{value}`"


def first_sentence(text: str | None) -> str:
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z\"`])", paragraph)[0]


def described(kind: type[Any] | None) -> str:
    """The first sentence about a class, if it has a description of its own."""
    own = vars(kind or type).get("__doc__") if kind else None
    return first_sentence(own) if own and not own.startswith(f"{kind.__name__}(") else ""  # type: ignore[union-attr]


def settings_class(hint: object) -> bool:
    return isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint))


def anchor(kind: type[Any]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__.lstrip("_")).lower()


def type_words(hint: Any) -> str:
    """A type as somebody who writes YAML would name it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin is typing.Literal:
        return " or ".join(code(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_words, args))
    if origin is tuple and Ellipsis not in args:
        return "list of " + " and ".join(map(type_words, args))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping: name to {type_words(args[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {type_words(args[0])}"
    if settings_class(hint):
        return f"[{title(hint)}](#{anchor(hint)})"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(code(x.value) for x in hint)
    return code(getattr(hint, "__name__", hint))


def default_words(value: object) -> str:
    """A default as it would stand in YAML."""
    if value in (inspect.Parameter.empty, PydanticUndefined, dataclasses.MISSING):
        return "**required**"
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return "its own defaults"
    if value is None or isinstance(value, bool):
        return code({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, str):
        return code('"' + value.replace("\n", "\\n") + '"') if len(value) <= 60 else "a longer text, in its file"
    if isinstance(value, Mapping):
        return code("{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}")
    if isinstance(value, Sequence | frozenset | set):
        return code("[" + ", ".join(map(str, value)) + "]")
    return code(value)


# ---- commands ----


def commands() -> str:
    group: Any = typer.main.get_command(cli.app)
    top = typer.Context(group, info_name="stepmark")
    [status] = [p for p in inspect.cleandoc(cli.__doc__ or "").split("\n\n") if p.startswith("Exit status")]
    out = ["# Commands", "`stepmark COMMAND --help` says the same on your terminal. " + plain(status)]
    out += ["| command | what it does |\n|---|---|"]
    out[-1] += "".join(
        f"\n| [`stepmark {name}`](#stepmark-{name}) | {cell(first_sentence(command.help))} |"
        for name, command in group.commands.items()
    )
    for name, command in group.commands.items():
        ctx = typer.Context(command, info_name=name, parent=top)
        out.append(f"## `stepmark {name}` {{ #stepmark-{name} }}")
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            if "\b" not in paragraph:
                out.append(plain(paragraph))
                continue
            head, *lines = paragraph.replace("\b", "").strip().split("\n")
            out += [head, "```bash\n" + inspect.cleandoc("\n".join(lines)) + "\n```"]
        out.append("```text\n" + command.get_usage(ctx) + "\n```")
        rows = ["| argument or option | meaning |\n|---|---|"]
        for parameter in command.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and parameter.name != "help":
                named, said = (" ".join(part.split()) for part in record)
                rows.append(f"| {code(named)} | {cell(said)} |")
        out.append("\n".join(rows))
    return "\n\n".join(out)


# ---- recipe keys ----


def title(kind: type[Any]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__.lstrip("_")).capitalize()


def keys_of(kind: type[Any]) -> Iterator[tuple[str, Any, object, str]]:
    """Name, type, default and bounds of each key of a section."""
    hints = typing.get_type_hints(kind)
    if issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            yield name, hints[name], info.get_default(call_default_factory=True), bounds(info)
        return
    for field in dataclasses.fields(kind):
        made = field.default_factory() if callable(field.default_factory) else field.default
        yield field.name, hints[field.name], made, ""


def bounds(info: FieldInfo) -> str:
    said = [
        f"{word} {value}"
        for m in info.metadata
        for k, word in BOUNDS.items()
        if (value := getattr(m, k, None)) is not None
    ]
    return " and ".join(said)


def sections(kind: type[Any], path: str = "") -> Iterator[tuple[type[Any], str]]:
    """Each section below one, with the dotted path at which it stands."""
    yield kind, path
    for name, hint, _, _ in keys_of(kind):
        for inner, more in inside(hint):
            yield from sections(inner, f"{path}{name}.{more}")


def inside(hint: Any) -> Iterator[tuple[type[Any], str]]:
    if settings_class(hint):
        yield hint, ""
        return
    mapping = typing.get_origin(hint) is dict
    for arg in typing.get_args(hint):
        yield from ((kind, "NAME." * mapping + more) for kind, more in inside(arg))


def recipe() -> str:
    places: dict[type[Any], list[str]] = {}
    for kind, path in sections(Recipe):
        places.setdefault(kind, []).append(path)
    out = [
        "# Recipe keys",
        "A recipe is a YAML file. Each table below is one section of it, and each key has a link of its own. `NAME` "
        "stands for a name that you choose. What stands under `options` belongs to a plug-in: see "
        "[Plug-ins](plugins.md).",
        "Any key can be changed from the command line by its whole name: "
        "`stepmark run recipes/demo.yaml verifiers.prm.train.epochs=2`. "
        "[All keys by their whole names](#all-keys) are at the end of this page.",
    ]
    for kind, paths in places.items():
        out.append(f"## {title(kind)} {{ #{anchor(kind)} }}")
        out.append(plain(inspect.cleandoc(kind.__doc__ or "")) if described(kind) else "")
        if paths != [""]:
            out.append("Stands at " + ", ".join(code(p[:-1]) for p in paths) + ".")
        if role := getattr(kind, "role", ""):
            out.append(
                f"The names and their options: [{role}s](plugins.md#{role}). A name alone is short for its mapping."
            )
        said = fields_of(kind)
        rows = [f"| key | type | default | meaning |\n{TABLE}"]
        for name, hint, default, limits in keys_of(kind):
            meaning = sentence(said.get(name, "")) or described(next((inner for inner, _ in inside(hint)), None))
            kinds = type_words(hint) + (f", {limits}" if limits else "")
            where = f'<span id="{anchor(kind)}.{name}"></span>'
            rows.append(f"| {where}{code(name)} | {kinds} | {default_words(default)} | {cell(meaning)} |")
        out.append("\n".join(rows))
    out.append("## All keys { #all-keys }")
    listed = [
        f"- [`{path}{name}`](#{anchor(kind)}.{name})" for kind, path in sections(Recipe) for name, *_ in keys_of(kind)
    ]
    out.append("\n".join(listed))
    return "\n\n".join(filter(None, out))


# ---- plug-ins ----


def plugins() -> str:
    out = [
        "# Plug-ins",
        "A plug-in is one file with one class. Its options are the parameters of the class. You give them in a recipe "
        "under `options`, or on the command line, as in `--task-option noise=0.5`. Wherever a name from this page "
        "works, the path of [your own file](../howto/extend.md) works too. Options without a meaning here say it by "
        "their names.",
    ]
    for role in registry.ROLES:
        out.append(f"## {role.capitalize()}s {{ #{role} }}")
        out.append(first_sentence(role_protocol(role).__doc__))
        if role == "stage":
            out.append(
                "All stages that recipes name are [your own](../howto/extend.md#a-stage). Those that come with "
                "Stepmark run in every recipe: [the stages of a run](../howto/stages.md)."
            )
        for name in registry.names(role):
            kind = registry.find(role, name)
            module = importlib.import_module(kind.__module__)
            package = importlib.import_module(f"stepmark.{registry.ROLES[role][0]}.{name}")
            opening = inspect.cleandoc(package.__doc__ or module.__doc__ or "")
            out.append(f"### `{name}` {{ #{role}-{name} }}")
            out.append(plain(first_sentence(opening)))
            out.append(options_table(kind))
            lines = "\n".join(f"    {line}".rstrip() for line in opening.split("\n"))
            out.append(f'??? info "What the file says: `{package.__name__}`"\n\n    ```text\n{lines}\n    ```')
    return "\n\n".join(filter(None, out))


def role_protocol(role: str) -> type[Any]:
    home = "stepmark.run.stage" if role == "stage" else "stepmark.protocols"
    found: type[Any] = getattr(importlib.import_module(home), role.capitalize())
    return found


def options_table(kind: type[Any]) -> str:
    said, rows = fields_of(kind), []
    try:
        hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
    except NameError:  # a type that only type checkers load
        hints = {}
    made = {f.name: f.default_factory for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    for name, parameter in inspect.signature(kind).parameters.items():
        default = made[name]() if callable(made.get(name)) else parameter.default  # type: ignore[operator]
        kinds = type_words(hints[name]) if name in hints else code(parameter.annotation)
        rows.append(f"| {code(name)} | {kinds} | {default_words(default)} | {cell(sentence(said.get(name, '')))} |")
    return f"| option | type | default | meaning |\n{TABLE}\n" + "\n".join(rows) if rows else "It has no options."


# ---- Python names ----


def python() -> str:
    out = [
        "# Python",
        'These names are in `stepmark` itself, as in `stepmark.load_task("arithmetic")`. `import stepmark` loads '
        "neither torch nor numpy.",
        "| name | what it is |\n|---|---|",
    ]
    homes = {name: f"{importlib.import_module(f'stepmark.{_home(name)}').__name__}.{name}" for name in stepmark.__all__}
    for name, home in homes.items():
        out[-1] += f"\n| [`{name}`][{home}] | {cell(first_sentence(getattr(stepmark, name).__doc__))} |"
    out.append(
        "More of them: [the types that cross between stages](python-types.md), [the protocols of plug-ins]"
        "(python-protocols.md), [the stages as functions](python-stages.md), [rewards for other trainers]"
        "(python-rewards.md), [errors](python-errors.md)."
    )
    elsewhere = ("stepmark.types.", "stepmark.errors.", "stepmark.stages.")
    out += [f"::: {home}" for home in homes.values() if not home.startswith(elsewhere)]
    return "\n\n".join(out)


def _home(name: str) -> str:
    return next(module for module, names in stepmark._HOMES.items() if name in names)


def stages() -> str:
    package = importlib.import_module("stepmark.stages")
    found = [f"::: stepmark.stages.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return "\n\n".join(["# Stages as functions", *found])


def modules(heading: str, *names: str) -> Callable[[], str]:
    return lambda: "\n\n".join([f"# {heading}", *(f"::: {name}" for name in names)])


PAGES: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "recipe": recipe,
    "plugins": plugins,
    "python": python,
    "python-types": modules("Types", "stepmark.types"),
    "python-protocols": modules("Protocols of plug-ins", "stepmark.protocols"),
    "python-stages": stages,
    "python-rewards": modules(
        "Rewards for other trainers",
        "stepmark.integrations.rewards",
        "stepmark.integrations.response_tokens",
        "stepmark.integrations.turns",
        "stepmark.rl.rewards",
    ),
    "python-errors": modules("Errors", "stepmark.errors"),
}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages to those that lie in docs/."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files

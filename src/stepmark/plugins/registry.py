"""Finds and makes plug-ins, by name or from the path of a user's own file.

A plug-in is one file. `tasks/arithmetic.py` is the task "arithmetic" because it is in the folder of tasks, and
`--task ./mine.py` is a task because that option takes a task. The file defines one public class with the methods of
its role (protocols.py); the parameters of its constructor are the plug-in's options. Nothing is registered by hand.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import numbers
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from stepmark.data.paths import nowhere
from stepmark.errors import ConfigError, UnknownName

# role -> (the folder of its files, methods: a class with any of these is the plug-in)
ROLES = {
    "task": ("tasks", ("load",)),
    "grader": ("graders", ("grade",)),
    "backend": ("backends", ("sample",)),
    "labeler": ("labelers", ("label",)),
    "verifier": ("verifiers", ("verify",)),
    "reading": ("readings", ("encode",)),
    "format": ("formats", ("read", "encode")),
    "executor": ("executors", ("map",)),
    "stage": ("", ("run",)),  # those that come with Stepmark are listed in run/pipeline/; recipes name users' own
}

USER = "stepmark_user_"  # prefix of the module names of users' files

# (role, old name) -> new name. Stored recipes and verifiers are read through this table.
RENAMED = {("verifier", "surprise"): "likelihood_corrected"}


def names(role: str) -> list[str]:
    """The names of the plug-ins of a role that come with Stepmark, sorted. Imports none of them."""
    folder, _ = ROLES[role]
    if not folder:
        return []
    package = importlib.import_module(f"stepmark.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(role: str, name: str) -> type[Any]:
    """The plug-in's class. Raises UnknownName for an unknown name, and ConfigError for a user's file that can't be
    loaded or does not define exactly one class for the role."""
    folder, methods = ROLES[role]
    if name.endswith(".py") or "/" in name:
        module = _from_path(role, Path(name))
    elif name in names(role):
        module = importlib.import_module(f"stepmark.{folder}.{name}")
    elif (role, name) in RENAMED:
        raise ConfigError(f"the {role} {name!r} is now called {RENAMED[role, name]!r}.")
    else:
        raise UnknownName(role, name, names(role), f"A path to your own file works too: ./my_{role}.py")
    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c)
        and c.__module__ == module.__name__
        and not c.__name__.startswith("_")
        and any(callable(getattr(c, method, None)) for method in methods)
    ]
    if len(classes) != 1:
        got = ", ".join(c.__name__ for c in classes) or "none"
        allowed = "` or `".join(methods)
        raise ConfigError(f"{name}: a {role} file defines one public class with a method `{allowed}`; found {got}.")
    return classes[0]


def options(role: str, name: str) -> dict[str, Any]:
    """The options of a plug-in with their defaults (inspect.Parameter.empty for a required option)."""
    return {p.name: p.default for p in inspect.signature(find(role, name)).parameters.values()}


def load_with(role: str, name: str, settings: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """The plug-in, made with its `own` options, and with those of `settings` that it has an option for."""
    accepted = options(role, name)
    return load(role, name, **{k: v for k, v in settings.items() if k in accepted} | dict(own))


def load(role: str, name: str, /, **settings: Any) -> Any:
    """The plug-in, made with these options. Raises ConfigError that names every option that is unknown, missing, or has
    a value of the wrong type."""
    cls = find(role, name)
    allowed = options(role, name)
    faults = [str(UnknownName(f"option of {role} {name}", k, allowed)) for k in settings if k not in allowed]
    faults += [
        f"{role} {name} needs the option {k!r}."
        for k, default in allowed.items()
        if default is inspect.Parameter.empty and k not in settings
    ]
    hints = types_of(cls)
    settings = {
        k: os.fspath(v) if isinstance(v, os.PathLike) and hints.get(k) is str else v for k, v in settings.items()
    }
    faults += [
        f"{role} {name}: {k} takes {_name(hints[k])}, got {v!r} ({type(v).__name__})."
        for k, v in settings.items()
        if k in hints and not _fits(v, hints[k])
    ]
    if faults:
        raise ConfigError(faults)
    try:
        return cls(**settings)
    except TypeError as e:
        values = ", ".join(f"{k}={v!r}" for k, v in settings.items())
        raise ConfigError(f"{role} {name} can't be made with {values or 'no options'}: {e}") from e


def types_of(cls: type[Any]) -> dict[str, Any]:
    """The types of the constructor's parameters; empty if they can't be known without importing more modules."""
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers see, or no annotations to read
        return {}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has a plain type, or is one of the values of a Literal. The plug-in itself checks other types."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if hint in (int, float):  # True is an int in Python, but is no number here
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (str, bool, types.NoneType) else True


def _name(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, args))
    return " or ".join(map(_name, args)) if args else getattr(hint, "__name__", str(hint))


def user_files() -> tuple[str, ...]:
    """The users' files loaded so far. A new process must load them before it can unpickle objects of their classes."""
    return tuple(m.__file__ for name, m in sys.modules.items() if name.startswith(USER) and m.__file__)


def load_user_files(paths: tuple[str, ...]) -> None:
    """Loads in this process the files that `user_files` returned in another one. Raises ConfigError."""
    for path in paths:
        _from_path("plug-in", Path(path))


def _from_path(role: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"no file {path} to load a {role} from {nowhere(path)} Check the path.")
    # The name must be the same in every process, so that objects of the file's class can be pickled.
    name = f"{USER}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise ConfigError(f"{path} can't be loaded as a {role}: {type(e).__name__}: {e}") from e
    return module

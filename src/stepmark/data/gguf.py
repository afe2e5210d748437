"""Paths of GGUF files: `model.gguf`, or `gguf://package` for the one .gguf file inside an installed Python package
(`gguf://package/name.gguf` where there are several). The package is searched and never imported: the file is data.

models/gguf.py reads the files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stepmark.data.paths import nowhere
from stepmark.errors import CheckpointError
from stepmark.types import Place

SCHEME = "gguf://"


def is_gguf(path: Place) -> bool:
    """Whether a model's path names a GGUF file."""
    return str(path).startswith(SCHEME) or str(path).lower().endswith(".gguf")


def file_of(path: Place) -> Path:
    """The file of a GGUF path. Raises CheckpointError where there is none, or a package has several."""
    text = str(path)
    if not text.startswith(SCHEME):
        file = Path(path)
        if not file.is_file():
            raise CheckpointError(f"no file {file} {nowhere(file)}")
        return file
    package, _, name = text.removeprefix(SCHEME).partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"{text}: no package {package!r} is installed. Install it, or give the file's path.")
    files = sorted(f for place in spec.submodule_search_locations for f in Path(place).rglob(name or "*.gguf"))
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise CheckpointError(f"{text}: needs one .gguf file in the package {package}, found {found}. {_which(files)}")
    return files[0]


def _which(files: list[Path]) -> str:
    if files:
        return f"Name one: {SCHEME}PACKAGE/{files[0].name}."
    return "Where a package holds its model in parts, put them together as it says, and give the file's path."

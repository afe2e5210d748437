"""What a path that does not exist was probably meant to be.

stepmark run recipes/demo.yml
"""

from __future__ import annotations

import difflib
from pathlib import Path

from stepmark.types import Place


def nowhere(path: Place) -> str:
    """For the end of an error about a path that does not exist: the working directory, and a path that is there and
    looks like it, if there is one."""
    near = _near(Path(path))
    return f"(working directory: {Path.cwd()})." + (f" Did you mean {near}?" if near else "")


def _near(path: Path) -> Path | None:
    """The path with its first part that does not exist replaced by the name in that place that is most like it."""
    for place in [*reversed(path.parents), path]:
        if not place.exists():
            try:
                names = [p.name for p in place.parent.iterdir()]
            except OSError:
                return None
            close = difflib.get_close_matches(place.name, names, n=1)
            found = place.parent / close[0] / path.relative_to(place) if close else None
            return found if found is not None and found.exists() else None
    return None

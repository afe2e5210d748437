"""The settings that an output was made with, in a file beside it, so that no output mixes results of two settings.

    solutions.jsonl                     the output
    solutions.jsonl.settings.json       every setting that can change it, what its models are, and its problems

The settings are written before the first result, so a kill leaves no results without them. A key that only one side has
is unknown on the other: it is not compared, and is kept. So a file can go on with more problems, and an earlier version
may have stored fewer settings.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepmark.data.store import write_json
from stepmark.errors import ConfigChanged, DataError
from stepmark.types import Place

PROBLEMS = "problems"  # problem id -> fingerprint (data/fingerprint.py); compared apart, since there may be many
SHOWN = 3  # changed problems that a message names


def beside(out: Place) -> Path:
    """The file of an output's settings."""
    return Path(f"{out}.settings.json")


def read(path: Place) -> dict[str, Any] | None:
    """The settings in a file; None where there is none. Raises DataError for a file that is not one."""
    try:
        stored = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise DataError(f"{path} is not JSON: {e}. Delete it to go on without it.") from e
    if not isinstance(stored, dict):
        raise DataError(f"{path} holds no settings. Delete it to go on without it.")
    return stored


def keep(path: Place, given: Mapping[str, Any], place: str, way: str) -> None:
    """Writes the settings to `path`, with those that are there already, completely or not at all.

    `place` and `way` are for the message: whose settings they are, and what to do. Raises ConfigChanged with the diff
    where they differ from those that are there, and then writes nothing."""
    stored = read(path)
    together = given if stored is None else agreed(stored, given, place, way)
    if together != stored:
        write_json(path, together)


def agreed(stored: Mapping[str, Any], given: Mapping[str, Any], place: str, way: str) -> dict[str, Any]:
    """Both together. Raises ConfigChanged with the diff where they differ."""
    old: dict[str, Any] = _filled(stored, given)
    new: dict[str, Any] = _filled(_at_old_places(given, stored), stored)
    problems = old.pop(PROBLEMS, {}), new.pop(PROBLEMS, {})
    differences: list[str] = []
    if old != new:
        before, now = (json.dumps(x, indent=2, sort_keys=True, ensure_ascii=False).splitlines() for x in (old, new))
        differences += difflib.unified_diff(before, now, "stored", "given", lineterm="", n=1)
    # One is the beginning of the other where only one counts the answer.
    changed = [i for i, x in problems[0].items() if not (x.startswith(problems[1][i]) or problems[1][i].startswith(x))]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        differences.append(f"another question, answer or solution: {', '.join(map(repr, changed[:SHOWN]))}{more}")
    if differences:
        raise ConfigChanged(place, "\n".join(differences), way)
    return old | ({PROBLEMS: problems[0]} if problems[0] else {})


def _filled(one: Any, other: Any) -> Any:
    """`one`, with the keys that only `other` has."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return one
    return {**other, **{key: _filled(value, other.get(key)) for key, value in one.items()}}


def _at_old_places(given: Any, stored: Any) -> Any:
    """`given`, with the stored path of each thing whose content is the same: it was only moved or copied."""
    if not (isinstance(given, Mapping) and isinstance(stored, Mapping)):
        return given
    new = {key: _at_old_places(value, stored.get(key)) for key, value in given.items()}
    if "path" in stored and new.get("fingerprint", "") == stored.get("fingerprint"):
        new["path"] = stored["path"]
    return new

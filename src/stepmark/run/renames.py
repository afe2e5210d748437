"""Recipe keys and plug-in names that were renamed or added: the tables through which old recipes and old runs are read.

A recipe with an old key is refused, with a message that names the new key. In the config.json of an old run the
keys are replaced by the new ones and later ones are added, so the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepmark.plugins.registry import RENAMED

# (place of the section, "*" standing for any name; old key) -> new key
KEYS: dict[tuple[tuple[str, ...], str], str] = {
    **{((role,), "question_weight"): "prompt_loss_weight" for role in ("generator", "completer", "judge")},
    **{((role, "train"), "clip"): "max_grad_norm" for role in ("generator", "completer", "judge")},
    (("verifiers", "*", "train"), "clip"): "max_grad_norm",
    (("reinforce", "policies", "*", "train"), "clip"): "max_grad_norm",
    (("reinforce", "settings"), "max_norm"): "max_grad_norm",
    (("reinforce", "policies", "*", "settings"), "max_norm"): "max_grad_norm",
}

# place of the section -> keys that a run of an earlier version lacks, and the values that it goes on with
ADDED: dict[tuple[str, ...], dict[str, Any]] = {
    ("reinforce", "settings"): {"collapse": "stop", "collapse_updates": 10},
    ("reinforce", "policies", "*", "settings"): {"collapse": "stop", "collapse_updates": 10},
}


def new_key(place: Sequence[str], key: str) -> str | None:
    """The new name of an old key in the section at `place`; None for a key that was never renamed."""
    for (section, old), new in KEYS.items():
        if old == key and _matches(section, place):
            return new
    return None


def _matches(section: Sequence[str], place: Sequence[str]) -> bool:
    return len(section) == len(place) and all(s in ("*", p) for s, p in zip(section, place, strict=True))


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the new keys and plug-in names."""
    new_config: dict[str, Any] = _keys(config, ())
    for verifier in (new_config.get("verifiers") or {}).values():
        if isinstance(verifier, dict) and isinstance(verifier.get("kind"), str):
            verifier["kind"] = RENAMED.get(("verifier", verifier["kind"]), verifier["kind"])
    return new_config


def _keys(value: Any, place: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        named = {new_key(place, str(k)) or str(k): (str(k), v) for k, v in value.items()}
        added = {k: v for section, keys in ADDED.items() if _matches(section, place) for k, v in keys.items()}
        return added | {new: _keys(v, (*place, old)) for new, (old, v) in named.items()}
    return value

"""Which family a public verifier belongs to, by what its files say; nothing is guessed, and no code of it runs.

A family is a file in `readings/`. Its `signs` say what such a checkpoint has. The signs are compared in this order:
`architectures` and `auto_map` of config.json, the names of the weights (the headers of safetensors alone), the tokens
of the tokenizer by their texts, and the names of known repositories. Each leaves those families that it
speaks for. When one is left, it is taken; otherwise the error names those that are possible, and what was seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmark.errors import CheckpointError
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.types import Place

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"  # names the weights of a checkpoint of several files
SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]  # of a hub's repository: all that is needed to know its family
BODY = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.\d+\..*|.*\b(?:embed_tokens|wte|norm|ln_f|lm_head)\.\w+")


@dataclass(frozen=True, slots=True)
class Signs:
    """What the checkpoints of a family have. Each is a regular expression; "" or () says nothing."""

    architectures: str = ""  # a name in `architectures` or `auto_map`, which speaks for the family
    weights: tuple[str, ...] = ()  # names of weights that must be there, and speak for the family
    tokens: tuple[str, ...] = ()  # texts of tokens that must be there, and speak for the family
    names: str = ""  # a part of the name of the repository, which speaks for the family
    body: str = ""  # a name in `architectures` that must be there, but speaks for no family
    labels: tuple[int, ...] = ()  # numbers of classes that the head may have

    def fits(self, seen: Evidence) -> bool:
        """Whether a checkpoint can be of the family."""
        allowed = "|".join(filter(None, (self.architectures, self.body)))
        named = not seen.architectures or not allowed or any(re.fullmatch(allowed, a) for a in seen.architectures)
        return (
            named
            and all(any(re.fullmatch(w, name) for name in seen.weights) for w in self.weights)
            and all(token in seen.tokens for token in self.tokens)
            and (not self.labels or seen.labels in self.labels)
        )

    def said_by(self, seen: Evidence) -> dict[str, bool]:
        """Whether each kind of evidence, in order, speaks for the family; of one that `fits`."""
        return {
            "architectures": bool(self.architectures)
            and any(re.fullmatch(self.architectures, a) for a in seen.architectures),
            "weights": bool(self.weights),
            "tokens": bool(self.tokens),
            "names": bool(self.names) and re.search(self.names, seen.repository, re.IGNORECASE) is not None,
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the files of a checkpoint say."""

    place: str  # its directory
    repository: str  # the name of the directory; in the hub's cache, that of the repository
    architectures: tuple[str, ...]  # names of classes in config.json
    weights: frozenset[str]
    tokens: frozenset[str]
    labels: int = 2  # classes of its head, if it has any; transformers' default is 2

    def __str__(self) -> str:
        heads = sorted(name for name in self.weights if not BODY.fullmatch(name))
        return (
            f"its architectures are {', '.join(self.architectures) or 'not named'}, its weights besides the body "
            f"{', '.join(heads[:6]) or 'none'}, and its name {self.repository}"
        )


def local(place: Place, weights: bool = True) -> str:
    """The directory of a checkpoint; of a hub id, that of its files in the cache, fetched where they are missing.
    Without `weights` only the small files are, if they name the weights.

    Raises CheckpointError for what is neither a directory nor on the hub."""
    if Path(place).is_dir() or str(place).count("/") != 1:
        return str(place)
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(str(place), allow_patterns=SMALL))
        if weights or not (found / INDEX).is_file():
            found = Path(snapshot_download(str(place), allow_patterns=[*SMALL, "*.safetensors"]))
        return str(found)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{place} is no directory here, and could not be had from the hub: {e}") from e


def look(place: Place) -> Evidence:
    """What the files of a checkpoint directory say. Raises CheckpointError for files that can't be read."""
    path = Path(place)
    if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
        return Evidence(str(place), _repository(path), ("adapter",), frozenset(_weights(path)), frozenset())
    if not (path / INDEX).is_file():
        checkpoints.check(path)
    config = _json(path / "config.json")
    auto = [str(x).rpartition(".")[2] for x in (config.get("auto_map") or {}).values() if isinstance(x, str)]
    names = tuple(dict.fromkeys([*(config.get("architectures") or ()), *auto]))
    labels = config.get("num_labels") or len(config.get("id2label") or ()) or 2
    return Evidence(str(place), _repository(path), names, frozenset(_weights(path)), _tokens(path), int(labels))


def detect(seen: Evidence) -> str:
    """The name of the one reading that the evidence speaks for. Raises CheckpointError where there is none, or more."""
    signs: Mapping[str, Signs] = {name: registry.find("reading", name).signs for name in registry.names("reading")}
    left = [name for name, s in signs.items() if s.fits(seen)]
    spoken = False
    for kind in ("architectures", "weights", "tokens", "names"):
        found = [name for name in left if signs[name].said_by(seen)[kind]]
        if len(found) == 1:
            return found[0]
        left, spoken = found or left, spoken or bool(found)
    which = "several public families have" if spoken else "no public family is known by"
    raise CheckpointError(
        f"{seen.place} has no verifier.json, so it is no verifier that stepmark train made, and {which} what its files "
        f"say: {seen}. Say how its scores are read: --reading NAME, or load_verifier(path, reading=NAME). "
        f"Possible here: {', '.join(left) or 'none'}. All: {', '.join(signs)}."
    )


def _repository(path: Path) -> str:
    """`owner--name` in the hub's cache, elsewhere the name of the directory."""
    path = path.absolute()
    return path.parent.parent.name.removeprefix("models--") if path.parent.name == "snapshots" else path.name


def _tokens(path: Path) -> frozenset[str]:
    from transformers import AutoTokenizer

    try:
        return frozenset(AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"no tokenizer could be loaded from {path}: {e}") from e


def _weights(path: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    names = set[str](_json(path / INDEX).get("weight_map", ())) if (path / INDEX).is_file() else set[str]()
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                names |= set(weights.keys())
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"{file} can't be read as safetensors: {e}") from e
    return names


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{file} can't be read as JSON: {e}") from e
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got a {type(found).__name__}.")
    return found

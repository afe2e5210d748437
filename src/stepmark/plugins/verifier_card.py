"""`verifier.json`, the card of a verifier directory: its kind, and the settings of its training.

A verifier directory is a Hugging Face checkpoint with this card: the verifier kind, its options, and the token ids of
these options at training time. Scoring compares the ids with those of the tokenizer, and refuses tags whose id changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepmark.data.store import write_json
from stepmark.errors import CheckpointError
from stepmark.plugins.registry import RENAMED
from stepmark.types import Place

CARD = "verifier.json"


def write_card(path: Place, kind: str, options: Mapping[str, Any], ids: Mapping[str, int], template_hash: str) -> None:
    """Writes the card. `kind` is the plug-in's name or the path of a user's file; `options` are the options of its
    constructor, without path."""
    card = {"kind": kind, "options": dict(options), "ids": dict(ids), "template_hash": template_hash, "version": 1}
    write_json(Path(path) / CARD, card)


def read_card(path: Place) -> dict[str, Any]:
    """The card of a verifier directory. Raises CheckpointError if there is no card or it can't be read."""
    file = Path(path) / CARD
    if not file.is_file():
        raise CheckpointError(f"{path} has no {CARD}, so it is no verifier. Train one: stepmark train --help")
    try:
        card: dict[str, Any] = json.loads(file.read_text())
        card["kind"] = RENAMED.get(("verifier", card["kind"]), card["kind"])
        card["options"], card["ids"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{file} can't be read as a verifier's card: {type(e).__name__}: {e}") from e
    return card


def check_card(path: Place, ids: Mapping[str, int], template_hash: str) -> None:
    """Raises CheckpointError if a tag's id or the prompt template differs from the verifier's training. A directory
    without a card, trained by other software, is not checked."""
    if not (Path(path) / CARD).is_file():
        return
    card = read_card(path)
    trained = card["ids"]
    if card.get("template_hash", template_hash) != template_hash:
        raise CheckpointError(
            f"{path} was trained with another prompt template than the one it is to score with. Score with the "
            "template of its training."
        )
    changed = [f"{k}: trained {trained[k]}, now {v}" for k, v in ids.items() if k in trained and trained[k] != v]
    if changed:
        raise CheckpointError(
            f"{path}: the tokenizer gives other ids than at training time ({'; '.join(changed)}). Restore the "
            "tokenizer of its training."
        )

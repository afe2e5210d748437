"""`verifier.json`, the card of a verifier directory: what reads its scores, and with which settings.

A verifier directory is a Hugging Face checkpoint plus this card: the verifier kind, its options, and the token ids that
the options stood for when it was trained. Scoring compares the ids with today's tokenizer and refuses tags that moved.
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
    """`kind` names the plug-in, or is the path of a user's file; `options` are its constructor's, path excepted."""
    card = {"kind": kind, "options": dict(options), "ids": dict(ids), "template_hash": template_hash, "version": 1}
    write_json(Path(path) / CARD, card)


def read_card(path: Place) -> dict[str, Any]:
    """The card of a verifier directory. Raises CheckpointError when there is none or it can't be read."""
    place = Path(path) / CARD
    if not place.is_file():
        raise CheckpointError(f"{path} has no {CARD}, so it is no verifier. Train one: stepmark train --help")
    try:
        card: dict[str, Any] = json.loads(place.read_text())
        card["kind"] = RENAMED.get(("verifier", card["kind"]), card["kind"])
        card["options"], card["ids"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{place} can't be read as a verifier's card: {type(e).__name__}: {e}") from e
    return card


def check_card(path: Place, ids: Mapping[str, int], template_hash: str) -> None:
    """Raises CheckpointError when a tag has another id, or the prompt other words, than when the verifier was
    trained. A directory without a card, which somebody else trained, is taken at its word."""
    if not (Path(path) / CARD).is_file():
        return
    card = read_card(path)
    trained = card["ids"]
    if card.get("template_hash", template_hash) != template_hash:
        raise CheckpointError(f"{path} was trained with another prompt template than the one it is to score with.")
    moved = [f"{k}: trained {trained[k]}, now {v}" for k, v in ids.items() if k in trained and trained[k] != v]
    if moved:
        raise CheckpointError(f"{path}: the tokenizer gives other ids than at training time ({'; '.join(moved)}).")

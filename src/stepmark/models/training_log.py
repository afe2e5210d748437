"""The files that every training writes beside its weights: its settings, and one line per logged update.

OUT/training.json       settings and data of the training; a call with others is refused
OUT/NAME.jsonl          one line per logged update
OUT/tensorboard/        the same figures for TensorBoard
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stepmark.data import store
from stepmark.data.store import write_json
from stepmark.errors import ConfigChanged

# Settings that may change when a training resumes
FREE = ("checkpoint_seconds", "tensorboard", "device")
# Settings that later versions added, as earlier ones trained; at these values they are not compared
ADDED = {"lora": 0, "lora_alpha": 0, "gradient_checkpointing": "auto", "share_prompts": "auto"}
BASE = "base"  # what the checkpoints are that a training starts from
ANSWERS = "answers"  # a digest of the gold answers that rewards and grades compare with
UNSTORED = (BASE, ANSWERS)  # earlier versions did not store them


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Makes the directory this training's. Raises ConfigChanged when it holds another one."""
    out.mkdir(parents=True, exist_ok=True)
    place = out / "training.json"
    if place.exists():
        stored = _upgraded(json.loads(place.read_text()))
        known = {name: x[name] for x in (identity, stored) for name in UNSTORED if name in x}
        identity, stored = known | identity, known | stored  # what is known on one side only is not compared
        old, new = _lines(stored), _lines(identity)
        if old != new:
            diff = "\n".join(difflib.unified_diff(old, new, "there", "asked for", lineterm="", n=1))
            raise ConfigChanged(str(out), diff)
    write_json(place, identity)


def _upgraded(identity: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version stored, with the names of today."""
    settings, trainee = (dict(identity.get(part) or {}) for part in ("settings", "trainee"))
    if "max_grad_norm" not in settings:
        for old in ("max_norm", "clip"):  # of reinforcement, whose `clip` is another setting; of all other trainings
            if old in settings:
                settings["max_grad_norm"] = settings.pop(old)
                break
    if "rollbacks" in settings:  # of reinforcement, before its attempts had a guard
        settings = {"collapse": "stop", "collapse_updates": 10} | settings
    if "question_weight" in trainee:
        trainee["prompt_loss_weight"] = trainee.pop("question_weight")
    if trainee.get("kind") == "SurpriseVerifier":
        trainee["kind"] = "LikelihoodCorrectedVerifier"
    parts = {"settings": settings, "trainee": trainee}
    return {key: parts.get(key, value) for key, value in identity.items()}


def _lines(identity: dict[str, Any]) -> list[str]:
    """The part of `identity` that must stay the same, as lines of JSON."""
    given = identity.get("settings", {})
    settings = {k: v for k, v in given.items() if k not in FREE and not (k in ADDED and ADDED[k] == v)}
    return json.dumps({**identity, "settings": settings}, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


Write = Callable[[int, Mapping[str, Any], Mapping[str, Any]], None]


@contextlib.contextmanager
def writer(out: Path, name: str, update: int, tensorboard: bool) -> Iterator[Write]:
    """A function that writes one line: the update, the figures that also go to TensorBoard, and the other fields.

    Drops lines after `update`, the checkpoint that the training resumes from, since they will be written again."""
    log = out / name
    kept = _whole_lines(log, update)
    store.write_text(log, "".join(line + "\n" for line in kept))
    board = None
    if tensorboard:
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard.writer import SummaryWriter

            board = SummaryWriter(str(out / "tensorboard"), purge_step=update + 1)

    def write(update: int, figures: Mapping[str, Any], other_fields: Mapping[str, Any]) -> None:
        with log.open("a") as f:
            f.write(json.dumps({"update": update, **figures, **other_fields}) + "\n")
        if board is not None:
            for key, value in figures.items():
                board.add_scalar(key, value, update)

    try:
        yield write
    finally:
        if board is not None:
            board.close()


def _whole_lines(log: Path, update: int) -> list[str]:
    kept = []
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["update"] <= update:
                kept.append(line)
    return kept

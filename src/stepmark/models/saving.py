"""Writing a checkpoint directory, and keeping transformers quiet.

Every command that ends in a model calls this: `stepmark init`, `stepmark train`, `stepmark reinforce`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stepmark.types import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save(path: Place, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes model and tokenizer. `config.json` is written last, so a directory that has it is complete."""
    path = Path(path)
    partial = path / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial)
    with quietly():
        model.save_pretrained(partial)
    for file in sorted(partial.rglob("*"), key=lambda p: p.name == "config.json"):
        if file.is_file():
            target = path / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    shutil.rmtree(partial)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Turns off transformers' progress bars and its warning about new heads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]

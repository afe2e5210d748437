"""Prompts that share their beginnings, tokens back to text, and stop strings.

Prompts whose ids begin another prompt's ids become slices of its trunk: that is decided on ids, never on
text, so a tokenizer that merges across the end of a step costs speed and never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAIL = 4  # prompt tokens decoded before a continuation: some tokenizers drop the space that opens a text


def group(ids: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Indices into `ids`: each trunk, a sequence that begins no other, with the sequences that it covers,
    itself included. Longest trunks first."""
    # Sorted backwards, all sequences between a prefix and a longer one that it begins begin with it too,
    # so looking at the latest trunk is enough.
    trunks: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(ids)), key=lambda i: ids[i], reverse=True):
        if trunks and ids[trunks[-1][0]][: len(ids[i])] == ids[i]:
            trunks[-1][1].append(i)
        else:
            trunks.append((i, [i]))
    return sorted(trunks, key=lambda trunk: -len(ids[trunk[0]]))


class Reader:
    """Turns generated ids into text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(s for s in stop if s)
        self._before: dict[tuple[int, ...], str] = {}  # ends of prompts, decoded: rollouts of one prompt share theirs

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[str, bool]:
        """The text of `ids` after `prompt`, cut before the first stop string; and whether there was one."""
        tail = tuple(prompt[-TAIL:])
        before = self._before.get(tail)
        if before is None:
            before = self._before[tail] = decoded(self.tokenizer, tail)
        whole = decoded(self.tokenizer, [*tail, *ids])
        text = whole[len(before) :] if whole.startswith(before) else decoded(self.tokenizer, ids)
        cuts = [at for at in (text.find(s) for s in self.stop) if at >= 0]
        return (text[: min(cuts)], True) if cuts else (text, False)

    def ends_in_stop(self, ids: Sequence[int]) -> bool:
        """Whether the last of `ids` ends a stop string, and brings nothing more than that."""
        return decoded(self.tokenizer, ids).endswith(self.stop)

    def watched(self, vocab: int) -> np.ndarray:
        """[vocab] bool: the tokens that may complete a stop string, so that others need no look at the text.

        A token can only complete one if it brings its last character, or a part of that character's bytes."""
        return _watched(self.tokenizer, frozenset(s[-1] for s in self.stop), vocab)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What `ids` say, special tokens left out."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


@lru_cache(maxsize=8)
def _watched(tokenizer: PreTrainedTokenizerBase, last: frozenset[str], vocab: int) -> np.ndarray:
    found = np.zeros(vocab, dtype=bool)
    if last:
        known = min(vocab, len(tokenizer))
        for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(known)])):
            found[i] = "\ufffd" in text or not last.isdisjoint(text) or (" " in last and not text.strip())
        if " " in last:
            # A word's token may hide the space before it until something precedes it.
            pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
            found[:known] |= np.array([p is not None and p.startswith(("\u2581", "\u0120")) for p in pieces])
    return found

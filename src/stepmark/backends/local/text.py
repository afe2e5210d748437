"""Groups prompts that share a prefix, turns tokens into text, and finds stop strings.

If the ids of a prompt are a prefix of another prompt's ids, it becomes a slice of that prompt's trunk. Ids are
compared, never texts, so a tokenizer that merges across the end of a step makes sampling slower but not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAIL = 4  # prompt tokens decoded before a continuation, since some tokenizers drop the first space of a text


def group(ids: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Groups of indices into `ids`: a trunk, which is no prefix of another sequence, and the indices of its prefixes,
    itself included. The longest trunks come first."""
    # In reverse order, all sequences between a prefix and a longer sequence with that prefix have the prefix too. So it
    # is enough to compare with the latest trunk.
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
        self._before: dict[tuple[int, ...], str] = {}  # decoded ends of prompts; rollouts of one prompt share them

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[str, bool]:
        """The text of `ids` after `prompt`, cut before the first stop string, and whether there was a stop string."""
        tail = tuple(prompt[-TAIL:])
        before = self._before.get(tail)
        if before is None:
            before = self._before[tail] = decoded(self.tokenizer, tail)
        whole = decoded(self.tokenizer, [*tail, *ids])
        text = whole[len(before) :] if whole.startswith(before) else decoded(self.tokenizer, ids)
        cuts = [position for position in (text.find(s) for s in self.stop) if position >= 0]
        return (text[: min(cuts)], True) if cuts else (text, False)

    def ends_in_stop(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids` ends exactly with a stop string."""
        return decoded(self.tokenizer, ids).endswith(self.stop)

    def watched(self, vocab: int) -> np.ndarray:
        """[vocab] bool: tokens that may complete a stop string. After other tokens the text need not be checked.

        A token can complete a stop string only if it contains the last character, or some bytes of it."""
        return _watched(self.tokenizer, frozenset(s[-1] for s in self.stop), vocab)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of `ids` without special tokens."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


@lru_cache(maxsize=8)
def _watched(tokenizer: PreTrainedTokenizerBase, last: frozenset[str], vocab: int) -> np.ndarray:
    watched = np.zeros(vocab, dtype=bool)
    if last:
        known = min(vocab, len(tokenizer))
        for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(known)])):
            watched[i] = "\ufffd" in text or not last.isdisjoint(text) or (" " in last and not text.strip())
        if " " in last:
            # The decoded text of a single token may lack the space before a word.
            pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
            watched[:known] |= np.array([p is not None and p.startswith(("\u2581", "\u0120")) for p in pieces])
    return watched

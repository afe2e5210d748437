"""Text -> token ids, built once and in one place, for sampling, training and scoring alike.

User text is encoded with special tokens taken literally: a solution that contains "<good>" or "<eos>" gets
the ids of those characters, never the special token's. Tags are inserted as ids; joined text is never
tokenised again (traps: mis-merged tags, double BOS, different truncation in training and serving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepmark.errors import EncodingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence to train on or to score.

    T tokens, S places where a score is read."""

    ids: tuple[int, ...]  # [T]
    at: tuple[int, ...] = ()  # [S] index into ids: the score is read from the model's output at this very index
    targets: tuple[float, ...] = ()  # [S] in [0, 1], or empty when the sequence is only scored
    weights: tuple[float, ...] = ()  # [T] weight of ids[t] in the next-token loss (predicted at t-1), or empty

    def __len__(self) -> int:
        return len(self.ids)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character spans of `text`, opened as the tokenizer opens a text (BOS or not), never closed with EOS."""
    out = tokenizer(text, split_special_tokens=True, return_offsets_mapping=True, truncation=False)
    ids, spans = list(out["input_ids"]), list(out["offset_mapping"])
    if (
        ids
        and tokenizer.eos_token_id is not None
        and ids[-1] == tokenizer.eos_token_id
        and spans[-1][0] == spans[-1][1]
    ):
        ids, spans = ids[:-1], spans[:-1]
    return ids, spans


def boundaries(spans: Sequence[tuple[int, int]], cuts: Sequence[int]) -> list[int]:
    """For each character position in `cuts` (rising), how many tokens it takes to cover the text before it.

    A token that straddles a cut belongs to the part before it: a tag that follows can't be seen too early."""
    found, t = [], 0
    for cut in cuts:
        while t < len(spans) and spans[t][0] < cut:
            t += 1
        found.append(t)
    return found


def special_id(tokenizer: PreTrainedTokenizerBase, text: str, what: str) -> int:
    """The one id of a tag. Raises EncodingError when the tokenizer needs several, or none fits."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        got = "unknown to" if len(ids) == 1 else f"{len(ids)} tokens for"
        raise EncodingError(
            f"the {what} {text!r} is {got} this tokenizer; it must be exactly one of its tokens. "
            "Choose a text that is one token, or add it to the tokenizer's special tokens."
        )
    return int(ids[0])

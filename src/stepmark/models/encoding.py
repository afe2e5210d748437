"""Text -> token ids, built once and in one place, for sampling, training and scoring alike.

User text is encoded with special tokens taken literally: a solution that contains "<good>" or "<eos>" gets
the ids of those characters, never the special token's. Tags are inserted as ids; joined text is never
tokenised again (traps: mis-merged tags, double BOS, different truncation in training and serving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stepmark.errors import BackendError, ConfigError, EncodingError
from stepmark.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BEFORE = 32  # characters of a text that decide how what follows it is tokenised
SLOT = "stepmark-question"  # stands for the question while a chat template is taken apart


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence to train on or to score, or several that must be seen together, laid end to end.

    T tokens in all, S places where a score is read."""

    ids: tuple[int, ...]  # [T]
    at: tuple[int, ...] = ()  # [S] index into ids: the score is read from the model's output at this very index
    targets: tuple[float, ...] = ()  # [S] in [0, 1], or empty when the sequence is only scored
    weights: tuple[float, ...] = ()  # [T] weight of ids[t] in the next-token loss (predicted at t-1), or empty
    parts: tuple[int, ...] = ()  # rising indices where further sequences begin, which see nothing of those before them

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence in it: what a model has to have positions for."""
        return max(end - start for start, end in pairwise((0, *self.parts, len(self.ids))))


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


def following_ids(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> tuple[int, ...]:
    """Ids of `text` as it reads after `before`: at its beginning a text may be tokenised otherwise (a space is added
    or lost). Where the two merge across their border, the ids of `text` alone."""
    whole, start = token_ids(tokenizer, before + text)[0], token_ids(tokenizer, before)[0]
    if whole[: len(start)] == start and len(whole) > len(start):
        return tuple(whole[len(start) :])
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def choice_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], choices: Sequence[str]
) -> list[list[tuple[int, ...]]]:
    """Per text the ids of each choice as it reads after it. Raises ConfigError for a choice without a token."""
    if not choices or not all(choices):
        raise ConfigError(f"choices must be texts of at least one token each, got {list(choices)}.")
    tails = [text[-BEFORE:] for text in texts]
    found = {tail: [following_ids(tokenizer, tail, c) for c in choices] for tail in dict.fromkeys(tails)}
    return [found[tail] for tail in tails]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat: bool) -> tuple[int, ...]:
    """The ids to continue. With `chat`, the context is the user's turn and the prefix opens the assistant's.

    Raises BackendError when there is nothing to continue, or no chat template."""
    if not chat:
        ids = token_ids(tokenizer, prompt.text)[0]
        if not ids:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is None:
                raise BackendError(f"prompt {prompt.id!r} is empty and the tokenizer has no token to begin with.")
            ids = [int(start)]
        return tuple(ids)
    if not tokenizer.chat_template:
        raise BackendError("chat_template=True, but the checkpoint's tokenizer has no template. Leave the option off.")

    def opened(content: str) -> str:
        turn = [{"role": "user", "content": content}]
        text: Any = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return str(text)

    def ids_of(text: str, literal: bool) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"])

    # The template writes its own special tokens, BOS included; what it says around the question is its alone.
    before, found, after = opened(SLOT).partition(SLOT)
    if not found:
        raise BackendError("the checkpoint's chat template leaves out what the user says: it can't carry a question.")
    special = set(tokenizer.all_special_ids)
    own = ids_of(before, False), ids_of(after, False)
    joint = ids_of(opened(prompt.context) + prompt.prefix, False)
    if sum(i in special for i in joint) == sum(i in special for part in own for i in part):
        return tuple(joint)
    # The question or the solution has special tokens in its text: there they are nothing but characters.
    return (*own[0], *ids_of(prompt.context.strip(), True), *own[1], *ids_of(prompt.prefix, True))


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

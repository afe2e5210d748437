"""Where the characters of a response lie among its tokens, for rewards of steps on tokens.

A step ends at a character of the text. The verifier that scored it may have another tokenizer than the policy, and the
policy's own tokens may be others than its tokenizer would make of the text, because it sampled them one by one. So the
offsets are those of the very tokens that were sampled: they are decoded a few at a time. Tokens that share a character
(parts of an emoji, say) all span it.

    rewards = on_verl_tokens(tokenizer, response_ids, compute_score(...))     # in a reward manager of verl
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from stepmark.errors import EncodingError
from stepmark.integrations.rewards import CompletionReward
from stepmark.types import Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"  # what a tokenizer writes for bytes that are no character yet
BEFORE = 8  # tokens decoded again before new ones: some tokenizers drop the space at the beginning of what they decode
LONGEST = 16  # tokens after which bytes that are no character are taken as they are


def offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str | None = None) -> list[tuple[int, int]]:
    """[T] the [start, end) of each of the `ids` in `text`, which is by default what the tokenizer decodes them to,
    without special tokens. A special token spans no character.

    Raises EncodingError where the tokens don't add up to the text."""
    whole = _decoded(tokenizer, ids)
    if text is not None and text != whole:
        raise EncodingError(
            f"the response's tokens decode to {whole[:80]!r}..., and its text is {text[:80]!r}.... Rewards of steps "
            "need the text of these very tokens, without special tokens and with nothing stripped from it."
        )
    spans, end, first = list[tuple[int, int]](), 0, 0  # first: of the tokens that wait for the rest of a character
    for i in range(len(ids)):
        start = max(0, first - BEFORE)
        known = _decoded(tokenizer, ids[start:first])
        both = _decoded(tokenizer, ids[start : i + 1])
        new = both[len(known) :]
        waits = new.endswith(INCOMPLETE) and i + 1 - first < LONGEST and i + 1 < len(ids)
        if waits and not whole.startswith(new, end):
            continue
        if not both.startswith(known) or not whole.startswith(new, end):
            return _by_prefixes(tokenizer, ids, whole)
        spans += [(end, end + len(new))] * (i + 1 - first)
        end, first = end + len(new), i + 1
    return spans if end == len(whole) else _by_prefixes(tokenizer, ids, whole)


def _by_prefixes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], whole: str) -> list[tuple[int, int]]:
    """The same from all prefixes, for tokenizers whose tokens are written otherwise in company. Slow for long texts."""
    ends = [0]
    for i in range(1, len(ids) + 1):
        prefix = _decoded(tokenizer, ids[:i])
        agreed = next((k for k, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), None)
        ends.append(max(ends[-1], min(len(prefix), len(whole)) if agreed is None else agreed))
    ends[-1] = len(whole)
    return list(pairwise(ends))


def on_verl_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], score: Mapping[str, float | str]
) -> list[float]:
    """[T] the reward of each of the response's tokens, of the result of a `compute_score` that `rewards.verl` made.
    `ids` are the response's own tokens without padding; their sum is `score["score"]`.

    Each step's reward is on the token with the step's last character, and what is left of the score on the last token,
    so that a lost attempt has its substitute there. Raises EncodingError as `offsets`."""
    steps, ends = (tuple(json.loads(str(score[key]))) for key in ("step_rewards", "step_ends"))
    rest = float(score["score"]) - sum(steps)
    return CompletionReward(Reward("", steps, rest), ends, None).on_tokens(offsets(tokenizer, ids))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))

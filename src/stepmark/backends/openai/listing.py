"""Log-probabilities that a server lists, token by token, read without trusting any of it.

Completions put them in parallel lists, chats in a list of tokens, and some servers answer a completion as a chat. With
`return_tokens_as_token_ids` (vLLM) a token's text is "token_id:" and its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepmark.backends.openai import replies
from stepmark.backends.openai.replies import Malformed

ID = "token_id:"
MORE_THAN_ONE = 1.05  # probabilities that sum to more are none; 16-bit arithmetic may bring them a little above 1
# How tokenizers write a space and a line break, where a server shows their tokens as they are.
_SIGNS = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n"})


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the prompt or of the continuation."""

    text: str
    logprob: float | None  # given all before it, in nats; None where nothing is before it
    top: Mapping[str, float] = field(default_factory=dict)  # the likeliest tokens in its place -> log-probability


@dataclass(frozen=True, slots=True)
class Listing:
    """The first choice of a reply."""

    tokens: tuple[Token, ...]  # with log-probabilities, an echoed prompt's included; none where the server gave none
    text: str | None  # the continuation, or the prompt and it
    prompt_ids: tuple[int, ...] | None  # of the prompt, where the server says


def parse(body: bytes) -> Listing:
    """Reads a completion or a chat completion. Raises Malformed."""
    reply = replies.parse(body)  # whatever is wrong with a reply is wrong here too
    choice = replies.whole(body)["choices"][0]
    found = choice.get("logprobs")
    tokens = _tokens(found) if isinstance(found, dict) else ()
    ids = choice.get("prompt_token_ids")
    there = isinstance(ids, list) and bool(ids) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    return Listing(tokens, reply.choices[0].text, tuple(ids) if there else None)


def plain(text: str) -> str:
    """A token's text with spaces and line breaks as they are in the text."""
    return text.translate(_SIGNS)


def _tokens(found: Mapping[str, Any]) -> tuple[Token, ...]:
    content = found.get("content")
    if isinstance(content, list):
        rows = [x for x in content if isinstance(x, dict)]
        return tuple(Token(_text(x), _number(x.get("logprob")), _top(x.get("top_logprobs"))) for x in rows)
    texts, values, tops = (found.get(k) for k in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(texts, list) or not isinstance(values, list):
        return ()
    tops = tops if isinstance(tops, list) else [None] * len(texts)
    if not len(texts) == len(values) == len(tops):
        raise Malformed(f"{len(texts)} tokens with {len(values)} log-probabilities and {len(tops)} lists of them")
    return tuple(
        Token(t if isinstance(t, str) else "\ufffd", _number(v), _top(top))
        for t, v, top in zip(texts, values, tops, strict=True)
    )


def _top(found: Any) -> dict[str, float]:
    """The likeliest tokens: a mapping, or a list of tokens. A text that two tokens share keeps the likelier one's."""
    if isinstance(found, list):
        pairs = [(_text(x), _number(x.get("logprob"))) for x in found if isinstance(x, dict)]
    elif isinstance(found, dict):
        pairs = [(text, _number(value)) for text, value in found.items()]
    else:
        return {}
    top: dict[str, float] = {}
    for text, value in pairs:
        if value is not None:
            top[text] = max(value, top.get(text, -math.inf))
    if math.fsum(math.exp(min(0.0, v)) for v in top.values()) > MORE_THAN_ONE:
        raise Malformed("log-probabilities of different tokens whose probabilities sum to more than 1")
    return top


def _text(row: Mapping[str, Any]) -> str:
    return row["token"] if isinstance(row.get("token"), str) else "\ufffd"


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed(f"a log-probability that is none: {value!r:.40}")
    return float(value)

"""Reads the log-probabilities of a server's reply, token by token, and checks all of it.

Completions have them in parallel lists, chats in a list of tokens, and some servers answer a completion like a chat.
With `return_tokens_as_token_ids` (vLLM) a token's text is "token_id:" and its id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepmark.backends.openai import replies
from stepmark.backends.openai.replies import Malformed

ID = "token_id:"
MORE_THAN_ONE = 1.05  # probabilities with a larger sum are invalid; 16-bit arithmetic can give slightly more than 1
# A space and a line break as tokenizers write them, for servers that return raw tokens.
_SIGNS = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n"})


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the prompt or of the continuation."""

    text: str
    logprob: float | None  # given all tokens before it, in nats; None for the first token
    top: Mapping[str, float] = field(default_factory=dict)  # the most probable tokens there -> log-probability


@dataclass(frozen=True, slots=True)
class Listing:
    """The first choice of a reply."""

    tokens: tuple[Token, ...]  # with log-probabilities, those of an echoed prompt included; () without any
    text: str | None  # the continuation, or prompt and continuation
    prompt_ids: tuple[int, ...] | None  # of the prompt; None if the server does not give them


def parse(body: bytes) -> Listing:
    """Reads a completion or a chat completion. Raises Malformed."""
    reply = replies.parse(body)  # makes the checks that hold for every reply
    choice = replies.whole(body)["choices"][0]
    logprobs = choice.get("logprobs")
    tokens = _tokens(logprobs) if isinstance(logprobs, dict) else ()
    ids = choice.get("prompt_token_ids")
    valid = isinstance(ids, list) and bool(ids) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    return Listing(tokens, reply.choices[0].text, tuple(ids) if valid else None)


def plain(text: str) -> str:
    """A token's text with ordinary spaces and line breaks."""
    return text.translate(_SIGNS)


def _tokens(logprobs: Mapping[str, Any]) -> tuple[Token, ...]:
    content = logprobs.get("content")
    if isinstance(content, list):
        rows = [x for x in content if isinstance(x, dict)]
        return tuple(Token(_text(x), _number(x.get("logprob")), _top(x.get("top_logprobs"))) for x in rows)
    texts, values, tops = (logprobs.get(k) for k in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(texts, list) or not isinstance(values, list):
        return ()
    tops = tops if isinstance(tops, list) else [None] * len(texts)
    if not len(texts) == len(values) == len(tops):
        raise Malformed(f"{len(texts)} tokens with {len(values)} log-probabilities and {len(tops)} lists of them")
    return tuple(
        Token(t if isinstance(t, str) else "\ufffd", _number(v), _top(top))
        for t, v, top in zip(texts, values, tops, strict=True)
    )


def _top(value: Any) -> dict[str, float]:
    """The most probable tokens, from a mapping or a list of tokens. If two tokens have the same text, the larger
    log-probability is kept."""
    if isinstance(value, list):
        pairs = [(_text(x), _number(x.get("logprob"))) for x in value if isinstance(x, dict)]
    elif isinstance(value, dict):
        pairs = [(text, _number(logprob)) for text, logprob in value.items()]
    else:
        return {}
    top: dict[str, float] = {}
    for text, logprob in pairs:
        if logprob is not None:
            top[text] = max(logprob, top.get(text, -math.inf))
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

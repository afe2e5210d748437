"""Reads a server's replies, refusals and Retry-After headers, and checks all of it.

Servers leave out different fields and report errors in different forms. So only choices with a text are required. A
reply that does not have the expected form is Malformed, and the client retries the request.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from stepmark.text.thoughts import joined

LONGEST = 400  # characters of a server's message that are shown
_CONTEXT = re.compile(
    r"context[ _-]?(?:length|size|window)|maximum (?:model|allowed|sequence) length|maximum input length"
    r"|max_(?:completion_)?tokens must be at least 1, got 0",  # vLLM, where the prompt is just as long as the context
    re.I,
)
_LIMIT = re.compile(
    r"(?:context|model|allowed|sequence|maximum input)[ _-]?(?:length|size|window)[^0-9.]{0,16}(\d+)|\"n_ctx\": *(\d+)",
    re.I,
)


class Malformed(Exception):
    """An answer that is truncated, is no JSON, or has another form than expected."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation."""

    text: str | None  # None if the server gave none
    finish: str | None  # the server's finish_reason
    tokens: int | None  # number of its log-probabilities; None without any
    logprob: float  # their sum, in nats; 0.0 without any


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion or a chat completion."""

    choices: tuple[Choice, ...]  # at least one
    prompt_tokens: int | None  # charged for the request; None if the server does not report it
    completion_tokens: int | None  # generated for all choices; None if the server does not report it


def parse(body: bytes) -> Reply:
    """Reads the body of a completion or a chat completion. Raises Malformed."""
    reply = whole(body)
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    choices = tuple(map(_choice, reply["choices"]))
    return Reply(choices, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def whole(body: bytes) -> Mapping[str, Any]:
    """The JSON of a reply with at least one choice, otherwise unchecked. Raises Malformed."""
    reply = _mapping(_json(body), "the reply")
    if reply.get("error"):
        raise Malformed(f"an error in place of a reply: {message(body)}")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Malformed(f"no choices in {_short(body)}")
    return reply


def parse_models(body: bytes) -> tuple[str, ...]:
    """The names of the models that a server lists. Raises Malformed."""
    listed = _mapping(_json(body), "the list of models").get("data")
    if not isinstance(listed, list):
        raise Malformed(f"no list of models in {_short(body)}")
    return tuple(m["id"] for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str))


def message(body: bytes) -> str:
    """A server's error message, in one line."""
    try:
        error = _json(body)
    except Malformed:
        return _short(body)
    while isinstance(error, dict):  # {"error": {"message": ...}}, {"error": ...}, {"message": ...}, {"detail": ...}
        inner = next((error[k] for k in ("error", "message", "detail") if error.get(k)), None)
        if inner is None:
            return _short(body)
        error = inner
    return _short(error.encode("utf-8", "replace")) if isinstance(error, str) else _short(body)


def names(body: bytes, parameter: str) -> bool:
    """Whether an error message names a parameter."""
    return re.search(rf"(?<![\w\\]){re.escape(parameter)}(?!\w)", body.decode("utf-8", "replace")) is not None


def unsupported(body: bytes) -> bool:
    """Whether an error says that the server lacks a feature. Some servers answer with status 500 for that."""
    return re.search(rb"not supported|unsupported|not implemented", body, re.I) is not None


def too_long(body: bytes) -> bool:
    """Whether an error says that prompt and continuation exceed the model's context."""
    return _CONTEXT.search(body.decode("utf-8", "replace")) is not None


def context_limit(body: bytes) -> int | None:
    """The context's length in tokens, read from such an error; None if it is not there."""
    match = _LIMIT.search(body.decode("utf-8", "replace"))
    return int(next(filter(None, match.groups()))[:12]) if match else None


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait according to a Retry-After header, a number of seconds or an HTTP date. `now` is in seconds since
    1970. None without a header, or for an unreadable one."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Malformed(f"no JSON ({str(e)[:80]}): {_short(body)}") from None


def _choice(value: Any) -> Choice:
    choice = _mapping(value, "a choice")
    if "message" in choice:
        text = _words(_mapping(choice["message"], "a message"), choice.get("finish_reason") == "length")
    elif "text" in choice:
        text = choice["text"]
    else:
        raise Malformed("a choice without a text")
    finish = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise Malformed("a choice whose text or finish_reason is no text")
    logprobs = _logprobs(choice.get("logprobs"))
    if not logprobs:
        return Choice(text, finish, None, 0.0)
    return Choice(text, finish, len(logprobs), min(0.0, math.fsum(logprobs)))


def _words(message: Mapping[str, Any], cut: bool) -> Any:
    """A message's content, behind what its model thought where the server keeps that apart."""
    content = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and isinstance(content, str | None):
        return joined(thought, content or "", cut) or content
    return content


def _logprobs(value: Any) -> list[float]:
    """The log-probabilities of a completion ("token_logprobs") or a chat ("content"). Some servers give "content" for
    completions too."""
    if not isinstance(value, dict):
        return []
    logprobs = value.get("token_logprobs")
    if not isinstance(logprobs, list):
        content = value.get("content")
        rows = content if isinstance(content, list) else []
        logprobs = [x.get("logprob") if isinstance(x, dict) else x for x in rows]
    for x in logprobs:
        if x is not None and not (isinstance(x, int | float) and math.isfinite(x)):
            raise Malformed(f"a log-probability that is none: {x!r:.40}")
    return [float(x or 0.0) for x in logprobs]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is {value!r:.60}")
    return value


def _short(body: bytes) -> str:
    text = " ".join(body[: 4 * LONGEST].decode("utf-8", "replace").split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."

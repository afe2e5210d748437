"""What a server said: replies, refusals and Retry-After, read without trusting any of it.

Servers differ in what they leave out and in how they put an error, so only what is needed is required: choices that
hold a text. Whatever else is not of the expected shape is Malformed, which the client asks for again.
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
    """An answer that is cut, is no JSON, or is not of the shape that was asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation."""

    text: str | None  # None where the server gave none
    finish: str | None  # the server's finish_reason
    tokens: int | None  # how many log-probabilities came with it; None without any
    logprob: float  # their sum, in nats; 0.0 without any


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion or a chat completion."""

    choices: tuple[Choice, ...]  # at least one
    prompt_tokens: int | None  # charged for the request; None where the server does not say
    completion_tokens: int | None  # generated for all choices; None where the server does not say


def parse(body: bytes) -> Reply:
    """Reads the body of a reply of either kind. Raises Malformed."""
    said = whole(body)
    usage = said.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        tuple(map(_choice, said["choices"])), _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    )


def whole(body: bytes) -> Mapping[str, Any]:
    """A reply with at least one choice, its parts as they came. Raises Malformed."""
    said = _mapping(_json(body), "the reply")
    if said.get("error"):
        raise Malformed(f"an error in place of a reply: {message(body)}")
    choices = said.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Malformed(f"no choices in {_short(body)}")
    return said


def parse_models(body: bytes) -> tuple[str, ...]:
    """The names of the models that a server lists. Raises Malformed."""
    listed = _mapping(_json(body), "the list of models").get("data")
    if not isinstance(listed, list):
        raise Malformed(f"no list of models in {_short(body)}")
    return tuple(m["id"] for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str))


def message(body: bytes) -> str:
    """A server's own words about an error, in one line."""
    try:
        said = _json(body)
    except Malformed:
        return _short(body)
    while isinstance(said, dict):  # {"error": {"message": ...}}, {"error": ...}, {"message": ...}, {"detail": ...}
        inner = next((said[k] for k in ("error", "message", "detail") if said.get(k)), None)
        if inner is None:
            return _short(body)
        said = inner
    return _short(said.encode("utf-8", "replace")) if isinstance(said, str) else _short(body)


def names(body: bytes, parameter: str) -> bool:
    """Whether an error speaks of a parameter."""
    return re.search(rf"(?<![\w\\]){re.escape(parameter)}(?!\w)", body.decode("utf-8", "replace")) is not None


def unsupported(body: bytes) -> bool:
    """Whether an error says that the server lacks something: some servers put that as an error of their own, a 500."""
    return re.search(rb"not supported|unsupported|not implemented", body, re.I) is not None


def too_long(body: bytes) -> bool:
    """Whether an error says that the prompt and what is to follow exceed the model's context."""
    return _CONTEXT.search(body.decode("utf-8", "replace")) is not None


def context_limit(body: bytes) -> int | None:
    """The context's length in tokens, as such an error states it."""
    found = _LIMIT.search(body.decode("utf-8", "replace"))
    return int(next(filter(None, found.groups()))[:12]) if found else None


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait according to a Retry-After header: a number of seconds, or an HTTP date; `now` is seconds since
    1970. None for no header, or one that can't be read."""
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
        text = _mapping(choice["message"], "a message").get("content")
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


def _logprobs(value: Any) -> list[float]:
    """Of a completion ("token_logprobs") or of a chat ("content"), which some servers give for completions too."""
    if not isinstance(value, dict):
        return []
    found = value.get("token_logprobs")
    if not isinstance(found, list):
        content = value.get("content")
        found = [x.get("logprob") if isinstance(x, dict) else x for x in content] if isinstance(content, list) else []
    for x in found:
        if x is not None and not (isinstance(x, int | float) and math.isfinite(x)):
            raise Malformed(f"a log-probability that is none: {x!r:.40}")
    return [float(x or 0.0) for x in found]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is {value!r:.60}")
    return value


def _short(body: bytes) -> str:
    text = " ".join(body[: 4 * LONGEST].decode("utf-8", "replace").split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."

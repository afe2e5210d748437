"""Tests what a server can do, once per process.

An error proves nothing, unless it is a refusal that names a parameter; that parameter is then left out. A valid reply
shows which settings a server ignores: too few choices, no log-probabilities, or a prompt that is too long for a
continued turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepmark.backends.openai import replies
from stepmark.backends.openai.client import Client, Refused, Unanswered, Unusable
from stepmark.backends.openai.replies import parse, parse_models
from stepmark.errors import BackendError, UnknownName

# Servers have their own defaults for these settings, or read them from the model's generation_config.json: top_k 40,
# min_p 0.05 and a repetition penalty are common. These values switch them off. vLLM and SGLang support the first three,
# llama.cpp all but the third; a server ignores or refuses the others.
NEUTRAL: dict[str, object] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
}
OTHERWISE: dict[str, object] = {"top_k": 0}  # another value that switches it off, for servers that refuse the first
CONTINUE: dict[str, object] = {"add_generation_prompt": False, "continue_final_message": True}
SHORT, LONG = " apple" * 8, " apple" * 16
NEW_TURN = 2  # extra tokens that show that the server ended the turn after the prefix and began another


@dataclass(frozen=True, slots=True)
class Abilities:
    """The abilities of one model on one server."""

    n: bool  # several choices per request
    logprobs: bool  # log-probabilities of the tokens
    usage: bool  # numbers of tokens
    neutral: tuple[tuple[str, object], ...]  # the settings of NEUTRAL that it accepts
    budget: str  # its parameter for the largest number of tokens of a choice


_known: dict[tuple[str, str, bool], Abilities] = {}
_continues: set[tuple[str, str]] = set()


def forget() -> None:
    """Drops all results, so that the next call tests the server again."""
    _known.clear()
    _continues.clear()


async def abilities(client: Client, model: str, chat: bool) -> Abilities:
    """The abilities of a model, tested once. Raises BackendError without an answer, or for an unknown model."""
    key = (client.url, model, chat)
    if key not in _known:
        try:
            listed = await _models(client)
            if len(listed) == 1 and model not in listed:  # such a server may accept any name
                raise BackendError(f"{client.url}: {UnknownName('model', model, listed)}")
            try:
                _known[key] = await _probe(client, model, chat)
            except Unusable as e:
                if e.status != 404 or not listed or model in listed:
                    raise
                raise BackendError(f"{e} {UnknownName('model', model, listed)}") from None
        except Unanswered as e:
            raise BackendError(f"{client.url} can't be used: {e}. Is the server up, and is this its url?") from None
    return _known[key]


async def need_continuation(client: Client, model: str, able: Abilities) -> None:
    """Raises BackendError unless the server can continue an assistant's turn.

    A server that ignores the settings for it ends the turn and begins another. That adds tokens, so the prompt is
    longer than question and prefix together. The length of the prefix follows from prompts with two prefixes."""
    if (client.url, model) in _continues:
        return
    problem = f"chat: {client.url} can't continue an assistant's turn"
    advice = "Use the completions of this server (chat: false), or a server such as vLLM."
    lengths = []
    for prefix in ("", SHORT, LONG):
        body = {"model": model, "temperature": 1.0, able.budget: 1, **text(True, "Count.", prefix)}
        try:
            reply = await client.ask(path(True), body, parse)
        except Refused as e:
            raise BackendError(f"{problem}: {e}. {advice}") from None
        except Unanswered as e:
            raise BackendError(f"{client.url} can't be used: {e}.") from None
        if reply.prompt_tokens is None:
            raise BackendError(
                f"{problem}, as far as is known: it does not report the number of prompt tokens. {advice}"
            )
        lengths.append(reply.prompt_tokens)
    plain, short, long = lengths
    extra = short - (long - short) * len(SHORT) / (len(LONG) - len(SHORT)) - plain
    if long <= short or extra >= NEW_TURN:
        raise BackendError(f"{problem}: it begins another turn after it, or leaves it out. {advice}")
    _continues.add((client.url, model))


def path(chat: bool) -> str:
    return "/chat/completions" if chat else "/completions"


def text(chat: bool, context: str, prefix: str = "") -> dict[str, object]:
    """The part of a request with the text to continue."""
    if not chat:
        return {"prompt": context + prefix}
    turns = [{"role": "user", "content": context}]
    if not prefix:
        return {"messages": turns}
    return {"messages": [*turns, {"role": "assistant", "content": prefix}], **CONTINUE}


async def _models(client: Client) -> tuple[str, ...]:
    """The models that the server lists; () if it has no list."""
    try:
        return await client.ask("/models", None, parse_models)
    except Refused:
        return ()
    except Unusable as e:
        if e.status in (404, 405):
            return ()
        raise


async def _probe(client: Client, model: str, chat: bool) -> Abilities:
    """Requests two choices of one token with all settings, and leaves out settings that the server refuses."""
    optional: dict[str, object] = {"n": 2, "logprobs": True if chat else 1, **NEUTRAL}
    budget, retry = "max_tokens", True
    while True:
        body = {"model": model, "temperature": 1.0, "top_p": 1.0, budget: 1, **text(chat, "Hello"), **optional}
        try:
            reply = await client.ask(path(chat), body, parse)
        except Refused as e:
            if budget == "max_tokens" and replies.names(e.body, "max_completion_tokens"):
                budget = "max_completion_tokens"
                continue
            refused = [k for k in optional if replies.names(e.body, k)]
            if not refused:
                raise Unusable(f"{client.url} with model {model!r}: {e}.", e.status) from None
            for k in refused:
                if k in OTHERWISE and optional[k] != OTHERWISE[k]:
                    optional[k] = OTHERWISE[k]
                else:
                    del optional[k]
            continue
        if "n" in optional and len(reply.choices) != 2 and retry:
            retry = False  # the first time may be an accident
            continue
        return Abilities(
            n="n" in optional and len(reply.choices) == 2,
            logprobs=any(c.tokens is not None for c in reply.choices),
            usage=reply.completion_tokens is not None,
            neutral=tuple((k, optional[k]) for k in NEUTRAL if k in optional),
            budget=budget,
        )

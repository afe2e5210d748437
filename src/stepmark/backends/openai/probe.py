"""What a server can do, found out once per process by asking it.

Nothing is concluded from an error, unless it is a refusal that names a parameter: that one is left out from then on.
What a server silently ignores shows in a clean reply: fewer choices than asked for, no log-probabilities, a prompt
too long for a continued turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepmark.backends.openai import replies
from stepmark.backends.openai.client import Client, Refused, Unanswered, Unusable
from stepmark.backends.openai.replies import parse, parse_models
from stepmark.errors import BackendError, UnknownName

# Settings that servers have defaults of their own for, or read from the model's generation_config.json: top_k 40,
# min_p 0.05 and a repetition penalty are common. These values switch them off. vLLM and SGLang know the first three,
# llama.cpp all but the third; each ignores or refuses what it does not know.
NEUTRAL: dict[str, object] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
}
OTHERWISE: dict[str, object] = {"top_k": 0}  # a second way to say it, for servers that refuse the first
CONTINUE: dict[str, object] = {"add_generation_prompt": False, "continue_final_message": True}
SHORT, LONG = " apple" * 8, " apple" * 16
NEW_TURN = 2  # tokens from which on a turn was ended after the prefix, and another begun


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one model of one server does."""

    n: bool  # several choices for one request
    logprobs: bool  # log-probabilities of the tokens
    usage: bool  # how many tokens there were
    sanitize: tuple[tuple[str, object], ...]  # what it takes of NEUTRAL
    budget: str  # its name for the most tokens of a choice


_known: dict[tuple[str, str, bool], Abilities] = {}
_continues: set[tuple[str, str]] = set()


def forget() -> None:
    """Asks anew the next time."""
    _known.clear()
    _continues.clear()


async def abilities(client: Client, model: str, chat: bool) -> Abilities:
    """Raises BackendError when nobody answers, or the model is not there."""
    key = (client.url, model, chat)
    if key not in _known:
        try:
            listed = await _models(client)
            if len(listed) == 1 and model not in listed:  # such a server may well answer to any name
                raise BackendError(f"{client.url}: {UnknownName('model', model, listed)}")
            try:
                _known[key] = await _probe(client, model, chat)
            except Unusable as e:
                if e.status != 404 or not listed or model in listed:
                    raise
                raise BackendError(f"{e} {UnknownName('model', model, listed)}") from None
        except Unanswered as e:
            raise BackendError(f"{client.url} can't be used: {e}. Is the server up, and this its url?") from None
    return _known[key]


async def need_continuation(client: Client, model: str, able: Abilities) -> None:
    """Raises BackendError unless the server goes on with an assistant's turn that was begun.

    A server that ignores the settings for that ends the turn and begins another, which costs tokens: the prompt is
    longer than the question and the prefix. How long the prefix alone is follows from two lengths of it."""
    if (client.url, model) in _continues:
        return
    no = f"chat: {client.url} can't go on with a solution that was begun"
    what_to_do = "Use the completions of this server (chat: false), or a server such as vLLM."
    lengths = []
    for prefix in ("", SHORT, LONG):
        body = {"model": model, "temperature": 1.0, able.budget: 1, **text(True, "Count.", prefix)}
        try:
            reply = await client.ask(path(True), body, parse)
        except Refused as e:
            raise BackendError(f"{no}: {e}. {what_to_do}") from None
        except Unanswered as e:
            raise BackendError(f"{client.url} can't be used: {e}.") from None
        if reply.prompt_tokens is None:
            raise BackendError(
                f"{no}, as far as can be told: it does not say how many tokens a prompt had. {what_to_do}"
            )
        lengths.append(reply.prompt_tokens)
    plain, short, long = lengths
    more = short - (long - short) * len(SHORT) / (len(LONG) - len(SHORT)) - plain
    if long <= short or more >= NEW_TURN:
        raise BackendError(f"{no}: it begins another turn after it, or leaves it out. {what_to_do}")
    _continues.add((client.url, model))


def path(chat: bool) -> str:
    return "/chat/completions" if chat else "/completions"


def text(chat: bool, context: str, prefix: str = "") -> dict[str, object]:
    """The part of a request that says what is to be continued."""
    if not chat:
        return {"prompt": context + prefix}
    turns = [{"role": "user", "content": context}]
    if not prefix:
        return {"messages": turns}
    return {"messages": [*turns, {"role": "assistant", "content": prefix}], **CONTINUE}


async def _models(client: Client) -> tuple[str, ...]:
    """The models that the server lists; none where it has no list."""
    try:
        return await client.ask("/models", None, parse_models)
    except Refused:
        return ()
    except Unusable as e:
        if e.status in (404, 405):
            return ()
        raise


async def _probe(client: Client, model: str, chat: bool) -> Abilities:
    """Asks for two choices of one token with all settings, fewer of them when some are refused."""
    optional: dict[str, object] = {"n": 2, "logprobs": True if chat else 1, **NEUTRAL}
    budget, again = "max_tokens", True
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
        if "n" in optional and len(reply.choices) != 2 and again:
            again = False  # once may be a mishap
            continue
        return Abilities(
            n="n" in optional and len(reply.choices) == 2,
            logprobs=any(c.tokens is not None for c in reply.choices),
            usage=reply.completion_tokens is not None,
            sanitize=tuple((k, optional[k]) for k in NEUTRAL if k in optional),
            budget=budget,
        )

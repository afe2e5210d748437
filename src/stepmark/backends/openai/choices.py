"""Probabilities of a few choices after a text, from a server's model. Generative verifiers read them.

A score is p(Yes), renormalised among the choices (GenRM, Zhang et al. 2024, arXiv 2408.15240, equation 2), as in the
backend `local` (local/choices.py). Three kinds of request give the exact values. They are tried in this order:

- Generate one token, and list the most probable tokens at its position. It is enough if all choices are in the list.
  One request covers all choices, and the server can reuse computation for the text.
- The same with the choices' tokens named (vLLM's `logprob_token_ids`). It is not the first kind, because vLLM then
  returns no lists to any request in the same batch, other users' requests included. It becomes the first kind when most
  lists lacked a choice: forms of Yes and No that a verifier never learned are seldom in a list.
- Echo the prompt with a choice after it, with log-probabilities. It works for any choice, with one request for each.

If the server gives token ids (vLLM), texts and choices are tokenised separately, as in `local`, and a choice is its ids
after a text. So no choice merges with the text before it, no tokenizer adds a space between them, there is only one BOS
token, and tokens with the same text are distinct. Without ids, tokens are compared by their text. Then a choice that
the tokenizer merges with its text is an error, and so is a probability that can't be found. A probability is never
guessed, and is never 0 because it is missing.

Servers may ignore a setting or return wrong values. This is tested once (`_find_ways`): missing log-probabilities, a
prompt that is not echoed, and echoed values of other tokens (some servers are off by one). A generated token must have
the same log-probability when it is echoed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stepmark.backends.openai import listing, probe, replies
from stepmark.backends.openai.client import Client, Refused, Unanswered
from stepmark.backends.openai.listing import ID, Listing, Token
from stepmark.backends.openai.probe import Abilities
from stepmark.backends.openai.stream import Put
from stepmark.errors import BackendError
from stepmark.text import sampling

TOPS = (20, 5, 2)  # lengths of the list to request: the limit of vLLM and SGLang, that of OpenAI, the shortest useful
IDS: dict[str, object] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
NAMED = "logprob_token_ids"
NAMES = 128  # largest number of tokens that vLLM accepts in it
PROBES = ("1, 2, 3, 4,", "The capital of France is", "Hello", "Once upon a time", "import", "Yes, no,")
AGREE = 2  # number of generated tokens whose echo must have the same log-probability
SAME = 0.3  # largest difference in nats: in 16-bit arithmetic a logit of 20 has a precision of one eighth
TAIL = 24  # last characters of a text that identify an echo

Ask = str | tuple[int, ...]  # a prompt, as text or as ids


@dataclass(frozen=True, slots=True)
class Ways:
    """The kinds of request that one model on one server supports."""

    top: int  # length of its list of the most probable tokens; 0 without a list
    ids: bool  # gives token ids
    echo: bool  # echoes a prompt with log-probabilities
    named: bool = False  # gives the log-probabilities of named tokens
    least: int = 0  # smallest number of tokens that it generates
    without: str = ""  # the reason why it has no echo
    opening: tuple[int, ...] = ()  # ids of the first of PROBES, if it gives ids


class NoEcho(Exception):
    """The reply can't be read as an echo; the message has the reason."""


_known: dict[tuple[str, str, bool], Ways] = {}


def forget() -> None:
    """Drops all results, so that the next call tests the server again."""
    _known.clear()


@dataclass
class Choosing:
    """The same choices after many texts."""

    client: Client
    model: str
    chat: bool
    choices: tuple[str, ...]
    able: Abilities = field(init=False)
    ways: Ways = field(init=False)
    ids: tuple[tuple[int, ...], ...] = ()  # of the choices, if the server gives ids
    sufficed: int = 0  # lists that had all choices
    lacked: int = 0  # lists that did not; when these are more, lists are no longer requested

    async def all(self, texts: Sequence[str], concurrency: int, put: Put[tuple[int, tuple[float, ...]]]) -> None:
        """Puts each text's index and its probabilities as they arrive. Raises BackendError."""
        try:
            await self._prepare()
            waiting = iter(enumerate(texts))

            async def worker() -> None:
                for i, text in waiting:
                    await put((i, await self._probabilities(text)))

            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(texts))):
                    group.create_task(worker())
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from None

    async def _prepare(self) -> None:
        self.able = await probe.abilities(self.client, self.model, self.chat)
        key = (self.client.url, self.model, self.chat)
        try:
            if key not in _known:
                _known[key] = await self._find_ways()
            self.ways = _known[key]
            if self.ways.ids:
                self.ids = tuple([await self._ids_of(choice) for choice in self.choices])
        except (Refused, Unanswered) as e:
            raise BackendError(f"{self.client.url} gives no log-probabilities: {e}.") from None
        if not (self.ways.top or self.ways.named or self.ways.echo):
            raise BackendError(
                f"{self.client.url} gives no log-probabilities of choices: it lists no probable tokens, and "
                f"{self.ways.without}. Use a server that gives them, such as vLLM, or llama.cpp started with them."
            )

    async def _probabilities(self, text: str) -> tuple[float, ...]:
        try:
            named = self.ways.named and len(self.ids) <= NAMES and all(len(ids) == 1 for ids in self.ids)
            names = [i for ids in self.ids for i in ids] if named else None
            names_first = named and (self.lacked > self.sufficed or not self.ways.top)
            reply = await self._next_token(text, self.ways, names=names if names_first else None)
            sums = self._listed(reply)
            if not names_first:
                self.sufficed, self.lacked = self.sufficed + (sums is not None), self.lacked + (sums is None)
                if sums is None and names:
                    sums = self._listed(await self._next_token(text, self.ways, names=names))
            if sums is None and not self.ways.echo:
                raise BackendError(self._missing(reply))
            if sums is None:
                before: Ask = reply.prompt_ids or text if self.ways.ids else text
                choices: Sequence[Ask] = self.ids or self.choices
                sums = [await self._echoed(before, choice, self.ways) for choice in choices]
        except NoEcho as e:
            raise BackendError(
                f"{self.client.url} gives no probability of a choice after {text[-TAIL:]!r}: {e}. End the text where a "
                "token ends, begin the choice with a space, or use a server that gives token ids, such as vLLM."
            ) from None
        except Refused as e:
            reason = "the text is as long as the model's context" if replies.too_long(e.body) else str(e)
            raise BackendError(f"no choice can follow the text that ends in {text[-TAIL:]!r}: {reason}.") from None
        except Unanswered as e:
            raise BackendError(f"{self.client.url} gave no probabilities of the choices: {e}.") from None
        return sampling.among(sums)

    # ---- lists of tokens ----

    async def _next_token(
        self, text: str, ways: Ways, temperature: float = 1.0, names: Sequence[int] | None = None
    ) -> Listing:
        """One token after a text, with the most probable tokens at its position, or the tokens `names`."""
        body = self._body(probe.text(self.chat, text), ways, temperature) | {self.able.budget: 1}
        if names is not None:
            body |= {"logprobs": 1, NAMED: sorted(set(names))}
        if self.chat:
            body |= {"logprobs": True, "top_logprobs": ways.top}
        return await self.client.ask(probe.path(self.chat), body, listing.parse)

    def _listed(self, reply: Listing) -> list[float] | None:
        """The choices' log-probabilities, if the list of tokens has all of them."""
        top = reply.tokens[0].top if reply.tokens else {}
        if self.ways.ids:
            names = [f"{ID}{ids[0]}" if len(ids) == 1 else "" for ids in self.ids]
        else:
            top = {listing.plain(text): value for text, value in top.items()}
            names = list(self.choices)
        return [top[name] for name in names] if all(name in top for name in names) else None

    def _missing(self, reply: Listing) -> str:
        top = reply.tokens[0].top if reply.tokens else {}
        listed = ", ".join(repr(listing.plain(t)) for t in list(top)[:8])
        return (
            f"{self.client.url} lists the {len(top)} likeliest tokens after a text ({listed}, ...), and not all of "
            f"{', '.join(map(repr, self.choices))} are among them; {self.ways.without or 'a chat is not echoed'}. Use "
            "choices of one token that are probable there, or a server that echoes log-probabilities, such as vLLM."
        )

    # ---- echoes ----

    async def _echoed(self, before: Ask, choice: Ask, ways: Ways) -> float:
        """The log-probability of a choice after a text, from an echo of both. Raises NoEcho."""
        prompt = before + choice  # type: ignore[operator]
        body = self._body({"prompt": prompt}, ways) | {self.able.budget: ways.least, "echo": True}
        reply = await self.client.ask("/completions", body, listing.parse)
        if isinstance(before, tuple):
            tail = _tail_of_ids(reply.tokens, before, tuple(choice))  # type: ignore[arg-type]
        else:
            tail = _tail_of_text(reply.tokens, before, str(choice), ways.least)
        if any(token.logprob is None for token in tail):
            raise NoEcho("a token of the choice was echoed without its log-probability")
        return math.fsum(token.logprob or 0.0 for token in tail)

    async def _ids_of(self, choice: str) -> tuple[int, ...]:
        """A choice's ids after a text. If a token covers the border of the two, the ids of the choice alone, as in
        encoding.following_ids."""
        opening = self.ways.opening
        joint = await self._ids(PROBES[0] + choice)
        if joint[: len(opening)] == opening and len(joint) > len(opening):
            return joint[len(opening) :]
        return await self._ids(choice, add_special_tokens=False)

    async def _ids(self, text: str, **settings: object) -> tuple[int, ...]:
        body = {"model": self.model, "prompt": text, self.able.budget: 1, **IDS, **settings}
        ids = (await self.client.ask("/completions", body, listing.parse)).prompt_ids
        if not ids:
            raise BackendError(f"{self.client.url} gave token ids before, but gives none now. Try again.")
        return ids

    def _body(self, prompt: dict[str, object], ways: Ways, temperature: float = 1.0) -> dict[str, object]:
        return {
            "model": self.model,
            **prompt,
            "temperature": temperature,
            "top_p": 1.0,
            "logprobs": max(1, ways.top),
            **dict(self.able.neutral),
            **(IDS if ways.ids else {}),
        }

    # ---- tests of the server ----

    async def _find_ways(self) -> Ways:
        """Requests everything, and less if that is refused; then tests the echo."""
        tops, ids = list(TOPS), not self.chat
        while True:
            ways = Ways(tops[0], ids, False)
            try:
                reply = await self._next_token(PROBES[0], ways)
                break
            except Refused as e:
                if ids and any(replies.names(e.body, name) for name in IDS):
                    ids = False
                elif len(tops) > 1:
                    del tops[0]
                else:
                    raise
        if not reply.tokens:
            return Ways(0, False, False, without="it ignores the request for log-probabilities")
        ids = ids and reply.prompt_ids is not None and reply.tokens[0].text.startswith(ID)
        top = tops[0] if len(reply.tokens[0].top) > 1 else 0
        opening = reply.prompt_ids or () if ids else ()
        if self.chat:
            return Ways(top, False, False, without="a chat is not echoed")
        named = ids and await self._accepts_names(Ways(top, ids, False), reply.prompt_ids or ())
        without = ""
        for least in (0, 1):
            tried = Ways(top, ids, True, named, least, opening=opening)
            try:
                without = await self._echo_fault(tried)
            except Refused as e:
                without = f"it refuses to echo a prompt ({e})"
            if not without:
                return tried
        return Ways(top, ids, False, named, without=without, opening=opening)

    async def _accepts_names(self, ways: Ways, ids: Sequence[int]) -> bool:
        """Whether the server lists named tokens; the test names the tokens of the prompt."""
        try:
            reply = await self._next_token(PROBES[0], ways, names=ids)
        except Refused:
            return False
        return bool(reply.tokens) and {f"{ID}{i}" for i in ids} <= reply.tokens[0].top.keys()

    async def _echo_fault(self, ways: Ways) -> str:
        """The fault of the server's echo; "" for none. An echoed token must keep its log-probability."""
        agreed, fault = 0, ""
        for text in PROBES:
            reply = await self._next_token(text, ways, temperature=0.0)
            if not reply.tokens or not reply.text or reply.tokens[0].logprob is None:
                continue
            token = reply.tokens[0]
            number = token.text.removeprefix(ID)
            try:
                if ways.ids and reply.prompt_ids and number.isdigit():
                    value = await self._echoed(reply.prompt_ids, (int(number),), ways)
                else:
                    value = await self._echoed(text, listing.plain(token.text), ways)
            except NoEcho as e:
                fault = str(e)
                continue
            if abs(value - (token.logprob or 0.0)) > SAME:
                return "the echoed log-probabilities of a prompt are not those of its tokens"
            agreed += 1
            if agreed == AGREE:
                return ""
        return f"its echo is not reliable: {fault or 'it generated too little to compare'}"


def _tail_of_ids(tokens: Sequence[Token], before: tuple[int, ...], choice: tuple[int, ...]) -> Sequence[Token]:
    """The choice's tokens in an echo of both."""
    end = len(before) + len(choice)
    if [t.text for t in tokens[:end]] != [f"{ID}{i}" for i in before + choice]:
        raise NoEcho("the prompt was not echoed token by token")
    return tokens[len(before) : end]


def _tail_of_text(tokens: Sequence[Token], before: str, choice: str, generated: int) -> Sequence[Token]:
    """The choice's tokens in an echo of both. A server may add a BOS token before, and a new token after."""
    texts = [listing.plain(t.text) for t in tokens]
    expected = (before + choice)[-(TAIL + len(choice)) :]
    for end in sorted({len(texts) - generated, len(texts), len(texts) - 1}, key=lambda e: e != len(texts) - generated):
        # The tokens of a character of several tokens have no text, so the text up to such a character is not compared.
        if end > 0 and "".join(texts[:end]).endswith(_comparable(expected, choice)):
            break
    else:
        raise NoEcho("the prompt was not echoed")
    start, length = end, 0
    while length < len(choice):
        start -= 1
        length += len(texts[start])
    if length != len(choice):
        raise NoEcho(f"the tokenizer merges the beginning of {choice!r} with the text before it")
    return tokens[start:end]


def _comparable(text: str, ending: str) -> str:
    """The end of `text` that is all ASCII, but at least as long as `ending`."""
    start = max((i + 1 for i, c in enumerate(text) if not c.isascii()), default=0)
    return text[min(start, len(text) - len(ending)) :]

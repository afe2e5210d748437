"""How likely a server's model finds each of a few ways to go on: what generative verifiers read.

A score is p(Yes), renormalised among the choices (GenRM, Zhang et al. 2024, arXiv 2408.15240, equation 2), as the
backend `local` has it (local/choices.py). Three requests can tell, and all are exact. They are tried in this order:

- one generated token with the likeliest tokens in its place: enough where all choices are tokens of that list. One
  request brings all choices, and the server may use what it has already computed of the text;
- the same with the choices' tokens named (vLLM's `logprob_token_ids`). Not before the first, because vLLM then
  withholds the lists of the likeliest from all requests that happen to be in the same batch, strangers' among them. At
  once where most lists lacked a choice: forms of Yes and No that a verifier never learned to say are seldom listed;
- the prompt with a choice behind it, echoed with its log-probabilities: whatever the choice, one request for each.

Where the server speaks in token ids (vLLM), texts and choices are tokenised apart, as `local` does, and a choice is its
ids as they follow a text: no choice can merge with the text before it, no tokenizer that opens a text with a space adds
one in between, no BOS token comes twice, and no two tokens look the same. Elsewhere texts are all there is: a token is
known by how it is shown, and a choice that is not cut off from its text by the tokenizer is an error, as is one that
can't be found out. A probability is never guessed, and never 0 for want of one.

What a server only pretends is found out once (`_ways`): log-probabilities that don't come, a prompt that isn't echoed,
and echoed values that belong to other tokens (some servers are off by one): a token that was generated must have the
same log-probability when it is echoed.
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

TOPS = (20, 5, 2)  # likeliest tokens asked for: what vLLM and SGLang give, what OpenAI gives, what is better than none
IDS: dict[str, object] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
NAMED = "logprob_token_ids"
NAMES = 128  # tokens that vLLM takes by it
PROBES = ("1, 2, 3, 4,", "The capital of France is", "Hello", "Once upon a time", "import", "Yes, no,")
AGREE = 2  # generated tokens that must be echoed with the log-probability that they were generated with
SAME = 0.3  # nats between the two: servers calculate in 16 bits, in which a logit of 20 is known to an eighth
TAIL = 24  # characters of a text by which an echo is recognised

Ask = str | tuple[int, ...]  # a prompt, as text or as ids


@dataclass(frozen=True, slots=True)
class Ways:
    """How one model of one server can be asked."""

    top: int  # likeliest tokens that it lists; 0 for none
    ids: bool  # speaks in token ids
    echo: bool
    named: bool = False  # says how likely tokens are that are named to it
    least: int = 0  # tokens that it generates at the least
    without: str = ""  # why there is no echo
    opening: tuple[int, ...] = ()  # ids of the first of PROBES, where it speaks in ids


class NoEcho(Exception):
    """What came can't be read as an echo; says why."""


_known: dict[tuple[str, str, bool], Ways] = {}


def forget() -> None:
    """Asks anew the next time."""
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
    ids: tuple[tuple[int, ...], ...] = ()  # of the choices, where the server says them
    sufficed: int = 0  # lists of the likeliest that held all choices
    lacked: int = 0  # those that did not: where these are more, lists are no longer asked for

    async def all(self, texts: Sequence[str], concurrency: int, put: Put[tuple[int, tuple[float, ...]]]) -> None:
        """Puts each text's place and its probabilities as they come. Raises BackendError."""
        try:
            await self._prepare()
            waiting = iter(enumerate(texts))

            async def worker() -> None:
                for i, text in waiting:
                    await put((i, await self._one(text)))

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
                _known[key] = await self._ways()
            self.ways = _known[key]
            if self.ways.ids:
                self.ids = tuple([await self._ids_of(choice) for choice in self.choices])
        except (Refused, Unanswered) as e:
            raise BackendError(f"{self.client.url} can't be asked for log-probabilities: {e}.") from None
        if not (self.ways.top or self.ways.named or self.ways.echo):
            raise BackendError(
                f"{self.client.url} gives no log-probabilities from which a choice could be read: it lists no likely "
                f"tokens, and {self.ways.without}. Use a server that does, such as vLLM; llama.cpp's has to be started "
                "with them."
            )

    async def _one(self, text: str) -> tuple[float, ...]:
        try:
            named = self.ways.named and len(self.ids) <= NAMES and all(len(ids) == 1 for ids in self.ids)
            names = [i for ids in self.ids for i in ids] if named else None
            at_once = named and (self.lacked > self.sufficed or not self.ways.top)
            found = await self._ask(text, self.ways, names=names if at_once else None)
            sums = self._listed(found)
            if not at_once:
                self.sufficed, self.lacked = self.sufficed + (sums is not None), self.lacked + (sums is None)
                if sums is None and names:
                    sums = self._listed(await self._ask(text, self.ways, names=names))
            if sums is None and not self.ways.echo:
                raise BackendError(self._missing(found))
            if sums is None:
                before: Ask = found.prompt_ids or text if self.ways.ids else text
                ways: Sequence[Ask] = self.ids or self.choices
                sums = [await self._echoed(before, choice, self.ways) for choice in ways]
        except NoEcho as e:
            raise BackendError(
                f"{self.client.url} can't say how likely a choice is after {text[-TAIL:]!r}: {e}. End the text where a "
                "token ends, begin the choice with a space, or use a server that speaks in token ids, such as vLLM."
            ) from None
        except Refused as e:
            why = "the text is as long as the model's context" if replies.too_long(e.body) else str(e)
            raise BackendError(f"no choice can follow the text that ends in {text[-TAIL:]!r}: {why}.") from None
        except Unanswered as e:
            raise BackendError(f"{self.client.url} did not say how likely the choices are: {e}.") from None
        return sampling.among(sums)

    # ---- the likeliest tokens ----

    async def _ask(
        self, text: str, ways: Ways, temperature: float = 1.0, names: Sequence[int] | None = None
    ) -> Listing:
        """One token after a text, with the likeliest in its place, or those named."""
        body = self._body(probe.text(self.chat, text), ways, temperature) | {self.able.budget: 1}
        if names is not None:
            body |= {"logprobs": 1, NAMED: sorted(set(names))}
        if self.chat:
            body |= {"logprobs": True, "top_logprobs": ways.top}
        return await self.client.ask(probe.path(self.chat), body, listing.parse)

    def _listed(self, found: Listing) -> list[float] | None:
        """The choices' log-probabilities, if all are among the likeliest tokens."""
        top = found.tokens[0].top if found.tokens else {}
        if self.ways.ids:
            names = [f"{ID}{ids[0]}" if len(ids) == 1 else "" for ids in self.ids]
        else:
            top = {listing.plain(text): value for text, value in top.items()}
            names = list(self.choices)
        return [top[name] for name in names] if all(name in top for name in names) else None

    def _missing(self, found: Listing) -> str:
        top = found.tokens[0].top if found.tokens else {}
        there = ", ".join(repr(listing.plain(t)) for t in list(top)[:8])
        return (
            f"{self.client.url} lists the {len(top)} likeliest tokens after a text ({there}, ...), and not all of "
            f"{', '.join(map(repr, self.choices))} are among them; {self.ways.without or 'a chat is not echoed'}. Use "
            "choices that are one token each and likely there, or a server that echoes log-probabilities, such as vLLM."
        )

    # ---- echoes ----

    async def _echoed(self, before: Ask, choice: Ask, ways: Ways) -> float:
        """The log-probability of a choice after a text, by an echo of both. Raises NoEcho."""
        prompt = before + choice  # type: ignore[operator]
        body = self._body({"prompt": prompt}, ways) | {self.able.budget: ways.least, "echo": True}
        found = await self.client.ask("/completions", body, listing.parse)
        if isinstance(before, tuple):
            tail = _tail_of_ids(found.tokens, before, tuple(choice))  # type: ignore[arg-type]
        else:
            tail = _tail_of_text(found.tokens, before, str(choice), ways.least)
        if any(token.logprob is None for token in tail):
            raise NoEcho("a token of the choice was echoed without its log-probability")
        return math.fsum(token.logprob or 0.0 for token in tail)

    async def _ids_of(self, choice: str) -> tuple[int, ...]:
        """A choice's ids as they follow a text; where the two merge, those of the choice alone (encoding.following_ids
        has the same rule)."""
        opening = self.ways.opening
        whole = await self._ids(PROBES[0] + choice)
        if whole[: len(opening)] == opening and len(whole) > len(opening):
            return whole[len(opening) :]
        return await self._ids(choice, add_special_tokens=False)

    async def _ids(self, text: str, **how: object) -> tuple[int, ...]:
        body = {"model": self.model, "prompt": text, self.able.budget: 1, **IDS, **how}
        found = (await self.client.ask("/completions", body, listing.parse)).prompt_ids
        if not found:
            raise BackendError(f"{self.client.url} no longer says what ids a text has; it did before. Try again.")
        return found

    def _body(self, prompt: dict[str, object], ways: Ways, temperature: float = 1.0) -> dict[str, object]:
        return {
            "model": self.model,
            **prompt,
            "temperature": temperature,
            "top_p": 1.0,
            "logprobs": max(1, ways.top),
            **dict(self.able.sanitize),
            **(IDS if ways.ids else {}),
        }

    # ---- what there is ----

    async def _ways(self) -> Ways:
        """Asks for all, and for less where that is refused; then puts the echo to the test."""
        tops, ids = list(TOPS), not self.chat
        while True:
            ways = Ways(tops[0], ids, False)
            try:
                found = await self._ask(PROBES[0], ways)
                break
            except Refused as e:
                if ids and any(replies.names(e.body, name) for name in IDS):
                    ids = False
                elif len(tops) > 1:
                    del tops[0]
                else:
                    raise
        if not found.tokens:
            return Ways(0, False, False, without="it ignores that log-probabilities are asked for")
        ids = ids and found.prompt_ids is not None and found.tokens[0].text.startswith(ID)
        top = tops[0] if len(found.tokens[0].top) > 1 else 0
        opening = found.prompt_ids or () if ids else ()
        if self.chat:
            return Ways(top, False, False, without="a chat is not echoed")
        named = ids and await self._takes_names(Ways(top, ids, False), found.prompt_ids or ())
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

    async def _takes_names(self, ways: Ways, ids: Sequence[int]) -> bool:
        """Whether tokens that are named, here those of the prompt, are what it then lists."""
        try:
            found = await self._ask(PROBES[0], ways, names=ids)
        except Refused:
            return False
        return bool(found.tokens) and {f"{ID}{i}" for i in ids} <= found.tokens[0].top.keys()

    async def _echo_fault(self, ways: Ways) -> str:
        """What is wrong with the server's echo; "" for nothing. A token that it generated must be as likely echoed."""
        agreed, fault = 0, ""
        for text in PROBES:
            found = await self._ask(text, ways, temperature=0.0)
            if not found.tokens or not found.text or found.tokens[0].logprob is None:
                continue
            token = found.tokens[0]
            number = token.text.removeprefix(ID)
            try:
                if ways.ids and found.prompt_ids and number.isdigit():
                    value = await self._echoed(found.prompt_ids, (int(number),), ways)
                else:
                    value = await self._echoed(text, listing.plain(token.text), ways)
            except NoEcho as e:
                fault = str(e)
                continue
            if abs(value - (token.logprob or 0.0)) > SAME:
                return "the log-probabilities of a prompt that it echoes are not those of its tokens"
            agreed += 1
            if agreed == AGREE:
                return ""
        return f"its echo can't be relied on: {fault or 'it generated too little to compare'}"


def _tail_of_ids(tokens: Sequence[Token], before: tuple[int, ...], choice: tuple[int, ...]) -> Sequence[Token]:
    """The choice's tokens in an echo of both."""
    end = len(before) + len(choice)
    if [t.text for t in tokens[:end]] != [f"{ID}{i}" for i in before + choice]:
        raise NoEcho("the prompt was not echoed token by token")
    return tokens[len(before) : end]


def _tail_of_text(tokens: Sequence[Token], before: str, choice: str, generated: int) -> Sequence[Token]:
    """The choice's tokens in an echo of both, which a server may open with a BOS token and close with a new token."""
    texts = [listing.plain(t.text) for t in tokens]
    seen = (before + choice)[-(TAIL + len(choice)) :]
    for end in sorted({len(texts) - generated, len(texts), len(texts) - 1}, key=lambda e: e != len(texts) - generated):
        # A character of several tokens has no text of its own: what comes before it is not looked at.
        if end > 0 and "".join(texts[:end]).endswith(_shown(seen, choice)):
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


def _shown(text: str, least: str) -> str:
    """The end of `text` in which each character is ASCII, but `least` at any rate."""
    at = max((i + 1 for i, c in enumerate(text) if not c.isascii()), default=0)
    return text[min(at, len(text) - len(least)) :]

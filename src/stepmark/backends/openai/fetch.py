"""Turns prompts into requests, and replies into rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from stepmark.backends.openai import probe, replies
from stepmark.backends.openai.client import Client, Refused, Unanswered
from stepmark.backends.openai.probe import Abilities
from stepmark.backends.openai.replies import Choice, Reply, parse
from stepmark.backends.openai.stream import Put
from stepmark.errors import BackendError
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

MOST_STOPS = 4  # OpenAI accepts no more
ENDS = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class Fetch:
    """Requests to one model with the same sampling parameters."""

    client: Client
    model: str
    chat: bool
    params: SamplingParams
    seed: Callable[[int, str, int], int] | None  # (seed, prompt id, index) -> the request's seed

    async def all(
        self, prompts: Sequence[Prompt], most: int, concurrency: int, priced: bool, put: Put[list[Rollout]]
    ) -> None:
        """Puts the rollouts of each request as they arrive; a request has at most `most` rollouts of a prompt.

        Cancels the other requests and raises BackendError on an error."""
        able = await probe.abilities(self.client, self.model, self.chat)
        if priced and not (able.usage or able.logprobs):
            raise BackendError(
                f"{self.client.url} does not report how many tokens it used, so no price can be computed. "
                "Leave out price_input and price_output, or use another server."
            )
        if self.chat and any(prompt.prefix for prompt in prompts if prompt.n):
            await probe.need_continuation(self.client, self.model, able)
        # Many servers refuse several greedy choices, and each rollout has its own seed.
        single = not able.n or self.seed is not None or self.params.temperature == 0
        parts = _parts(prompts, 1 if single else most)

        async def worker() -> None:
            for part in parts:
                await self._part(part, able, put)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from None

    async def _part(self, prompt: Prompt, able: Abilities, put: Put[list[Rollout]]) -> None:
        """Puts all rollouts of one prompt whose `n` fits into a request."""
        request, spent = _Request(prompt, self.params.max_tokens), (0, 0)
        while request.prompt.n:
            try:
                reply = await self.client.ask(probe.path(self.chat), self._body(request, able), parse)
            except Unanswered as e:
                return await put(_empty(request.prompt, Finish.FAILED, str(e)))
            except Refused as e:
                if not replies.too_long(e.body) or request.fitted:
                    return await put(_empty(request.prompt, Finish.FAILED, str(e)))
                budget, spent = await self._remaining(request, able, e)
                if not budget:
                    return await put(_empty(request.prompt, Finish.LENGTH))
                if budget < 0:
                    return await put(_empty(request.prompt, Finish.FAILED, str(e)))
                request = replace(request, max_tokens=budget, fitted=True)
                continue
            received = min(len(reply.choices), request.prompt.n)
            await put(self._rollouts(request.prompt, reply, spent))
            spent = (0, 0)
            rest = replace(request.prompt, first=request.prompt.first + received, n=request.prompt.n - received)
            request = replace(request, prompt=rest)
        return None

    async def _remaining(self, request: _Request, able: Abilities, refusal: Refused) -> tuple[int, tuple[int, int]]:
        """The number of tokens that can follow the prompt (0 for none, -1 if unknown), and the prompt tokens and
        generated tokens that finding out cost.

        The prompt's length in a refusal is often only a bound. So it sends a request for one token, whose reply has
        the prompt's length."""
        trial = replace(request, prompt=replace(request.prompt, n=1), max_tokens=1)
        try:
            reply = await self.client.ask(probe.path(self.chat), self._body(trial, able), parse)
        except Refused as e:
            return (0 if replies.too_long(e.body) else -1), (0, 0)
        except Unanswered:
            return -1, (0, 0)
        limit, used = replies.context_limit(refusal.body), reply.prompt_tokens
        cost = (used or 0, reply.completion_tokens or 0)
        if limit is None or used is None or not 0 < limit - used < request.max_tokens:
            return -1, cost
        return limit - used, cost

    def _body(self, request: _Request, able: Abilities) -> dict[str, object]:
        prompt, params = request.prompt, self.params
        body: dict[str, object] = {
            "model": self.model,
            **probe.text(self.chat, prompt.context, prompt.prefix),
            "temperature": params.temperature,
            "top_p": params.top_p,
            able.budget: request.max_tokens,
            **dict(able.neutral),
        }
        if prompt.n > 1:
            body["n"] = prompt.n
        if able.logprobs:
            body["logprobs"] = True if self.chat else 1
        if stop := _stops(params)[:MOST_STOPS]:
            body["stop"] = stop
        if self.seed is not None:
            body["seed"] = self.seed(params.seed, prompt.id, prompt.first)
        return body

    def _rollouts(self, prompt: Prompt, reply: Reply, spent: tuple[int, int]) -> list[Rollout]:
        counts = tokens(reply)
        choices = reply.choices[: prompt.n]
        rollouts = [
            self._rollout(prompt.id, prompt.first + i, choice, count)
            for i, (choice, count) in enumerate(zip(choices, counts, strict=False))
        ]
        # The first rollout is charged for the request's prompt, and for generated tokens that were not used.
        rollouts[0] = replace(
            rollouts[0],
            prompt_tokens=(reply.prompt_tokens or 0) + spent[0],
            tokens=rollouts[0].tokens + sum(counts[len(choices) :]) + spent[1],
        )
        return rollouts

    def _rollout(self, prompt_id: str, index: int, choice: Choice, count: int) -> Rollout:
        finish = ENDS.get(choice.finish or "")
        if choice.text is None or finish is None:
            reason = f"the server ended it with finish_reason {choice.finish!r}" + (
                " and no text" if choice.text is None else ""
            )
            return Rollout(prompt_id, index, "", Finish.FAILED, count, reason=reason)
        cuts = [position for position in (choice.text.find(s) for s in _stops(self.params)) if position >= 0]
        if cuts:
            return Rollout(prompt_id, index, choice.text[: min(cuts)], Finish.STOP, count, choice.logprob)
        return Rollout(prompt_id, index, choice.text, finish, count, choice.logprob)


@dataclass(frozen=True, slots=True)
class _Request:
    prompt: Prompt  # asks for the rollouts that are still missing
    max_tokens: int
    fitted: bool = field(default=False)  # max_tokens was reduced to fit into the context


def tokens(reply: Reply) -> list[int]:
    """The tokens of each choice: its number of log-probabilities, else an even share of the request's tokens."""
    known = [c.tokens for c in reply.choices]
    if all(x is not None for x in known):
        return [x or 0 for x in known]
    total, count = reply.completion_tokens or 0, len(known)
    return [total // count + (i < total % count) for i in range(count)]


def _parts(prompts: Sequence[Prompt], most: int) -> Iterator[Prompt]:
    for prompt in prompts:
        for first in range(prompt.first, prompt.first + prompt.n, most):
            yield replace(prompt, first=first, n=min(most, prompt.first + prompt.n - first))


def _empty(prompt: Prompt, finish: Finish, reason: str = "") -> list[Rollout]:
    """Rollouts without text, one for each that `prompt` asks for."""
    return [Rollout(prompt.id, prompt.first + i, "", finish, 0, reason=reason) for i in range(prompt.n)]


def _stops(params: SamplingParams) -> list[str]:
    return [s for s in params.stop if s]

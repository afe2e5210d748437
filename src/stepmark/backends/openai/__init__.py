"""Backend `openai`: any server that speaks OpenAI's API (vLLM, SGLang, llama.cpp, a cloud), its completions or chats.

Many requests are under way at a time; each rollout is handed out as its request ends. A request that fails is tried
again where that can help (client.py); a rollout that could not be got comes back as Finish.FAILED with the reason,
never as a text. What the server can do is found out before the first request (probe.py):

- A server that ignores `n` gets one request per rollout. A reply with fewer choices than asked for is completed by
  asking for the rest; of one with more the rest is dropped, and its tokens are charged to the first rollout.
- Tokens are counted by their log-probabilities; without these the request's total is split evenly among its choices,
  and `logprob` is 0.0. A server that gives no total either leaves `tokens` at 0, so no price can be put on it.
- Sampling that the server would do behind one's back (top_k, min_p, repetition penalties) is switched off where the
  server takes the setting (probe.NEUTRAL). What it refuses can't be; see the server's own defaults then.
- Stop strings are cut here too: the first four go to the server, which is as many as some take.
- Choices are left to `choice_probs`: `SamplingParams.choices` goes nowhere, and rollouts come without them.
- A prompt as long as the model's context comes back as Finish.LENGTH with no tokens, and one that is nearly as long
  gets the room there is, as with the backend `local`.

A context, a prefix and a text travel as text: the server adds the BOS token, and reads a special token's name inside
a prompt as that token if its tokenizer does. `seeds` makes rollouts repeatable on a server that honours them; without,
a rollout is the same again only because a ledger keeps it.

    stepmark sample --task gsm8k --backend openai --backend-option model=Qwen/Qwen3-8B --n 16 --out solutions.jsonl
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepmark.errors import ConfigError
from stepmark.text import sampling
from stepmark.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from stepmark.backends.openai.client import Client


@dataclass(frozen=True)
class OpenAIBackend:
    """Samples from a model behind a URL. Raises ConfigError for settings that can't be."""

    model: str  # the name by which the server knows it
    url: str = "http://127.0.0.1:8000/v1"  # what comes before /completions
    key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if there is one; never the key
    chat: bool = False  # context becomes the user's turn, prefix the opening of the assistant's
    concurrency: int = 16  # requests under way at once
    n_per_request: int = 8  # most rollouts of a prompt in one request; they arrive together
    retries: int = 5  # further tries of a request that failed in a way that may pass
    backoff: float = 0.5  # seconds before the first of them, doubled each time, a minute at most
    timeout: float = 300.0  # seconds for one try
    deadline: float = 900.0  # seconds for all tries of a request together
    seeds: bool = False  # seeded requests, of one rollout each; many of them side by side crash some servers
    price_input: float = 0.0  # money per million prompt tokens
    price_output: float = 0.0  # money per million generated tokens

    remote: ClassVar[bool] = True

    def __post_init__(self) -> None:
        faults = [] if self.model else ["model must be the name of a model of the server, got ''."]
        if not self.url.startswith(("http://", "https://")):
            faults.append(f"url must begin with http:// or https://, got {self.url!r}.")
        least = {"concurrency": 1, "n_per_request": 1, "retries": 0, "backoff": 0, "price_input": 0, "price_output": 0}
        faults += [
            f"{name} must be at least {low}, got {getattr(self, name)}."
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
        faults += [
            f"{name} must be above 0 seconds, got {getattr(self, name)}."
            for name in ("timeout", "deadline")
            if not getattr(self, name) > 0
        ]
        if faults:
            raise ConfigError(faults)

    @property
    def price(self) -> tuple[float, float]:
        """Money per million prompt tokens and per million generated ones."""
        return self.price_input, self.price_output

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollouts as they come. Raises BackendError when no request could succeed, ConfigError without httpx."""
        sampling.check(params)
        if not any(prompt.n for prompt in prompts):
            return
        _need_httpx()
        from stepmark.backends.openai.fetch import Fetch
        from stepmark.backends.openai.stream import Put, stream

        async def produce(put: Put[list[Rollout]]) -> None:
            async with self._client() as client:
                fetch = Fetch(client, self.model, self.chat, params, seed_of if self.seeds else None)
                priced = any(self.price)
                await fetch.all(prompts, self.n_per_request, self.concurrency, priced, put)

        for rollouts in stream(produce):
            yield from rollouts

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Per text, the probability that it goes on with each choice, given that it goes on with one of them: exact, or
        BackendError (choices.py). With `chat` a text is the user's turn, and a choice begins the assistant's."""
        if not choices or not all(choices):
            raise ConfigError(f"choices must be texts of at least one token each, got {list(choices)}.")
        if not texts:
            return []
        _need_httpx()
        from stepmark.backends.openai.choices import Choosing
        from stepmark.backends.openai.stream import Put, stream

        distinct = list(dict.fromkeys(texts))

        async def produce(put: Put[tuple[int, tuple[float, ...]]]) -> None:
            async with self._client() as client:
                await Choosing(client, self.model, self.chat, tuple(choices)).all(distinct, self.concurrency, put)

        found = {distinct[i]: probabilities for i, probabilities in stream(produce)}
        return [found[text] for text in texts]

    def _client(self) -> Client:
        from stepmark.backends.openai.client import Client

        return Client(
            self.url,
            self.key_env,
            connections=self.concurrency,
            retries=self.retries,
            pause=self.backoff,
            timeout=self.timeout,
            deadline=self.deadline,
        )


def _need_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("the backend openai needs httpx: pip install 'stepmark[api]'.") from None


def seed_of(seed: int, prompt_id: str, index: int) -> int:
    """The seed of one rollout: 31 bits, which every server takes."""
    digest = hashlib.sha256(f"{seed}|{prompt_id}|{index}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1

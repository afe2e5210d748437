"""Backend `openai`: any server with OpenAI's API (vLLM, SGLang, llama.cpp, a cloud service), completions or chats.

Many requests run at a time, and rollouts are returned when their request ends. A failed request is retried if that can
help (client.py). A rollout that still fails is Finish.FAILED with the reason, never a text. Before the first request,
the backend tests what the server can do (probe.py):

- If a server ignores `n`, each rollout is one request. If a reply has too few choices, another request asks for the
  rest. If it has too many, the extra ones are dropped, and their tokens are charged to the first rollout.
- Tokens are counted by their log-probabilities. Without these, the request's total is split evenly among its choices,
  and `logprob` is 0.0. Without a total too, `tokens` is 0, so no price can be computed.
- Servers may apply sampling settings that were not requested (top_k, min_p, repetition penalties). They are switched
  off if the server accepts the setting (probe.NEUTRAL). For settings that it refuses, see the server's defaults.
- Stop strings are also cut here. The first four are sent to the server, since some servers accept no more.
- `SamplingParams.choices` is ignored, and rollouts have no choices; use `choice_probs`.
- If a prompt is as long as the model's context, its rollouts are Finish.LENGTH with no tokens. If it is nearly as long,
  they get the tokens that are left, as with the backend `local`.

Contexts, prefixes and texts are sent as text. The server adds the BOS token, and may read a special token's name inside
a prompt as that token. `seeds` makes rollouts repeatable on a server that honours them. Without seeds, only a ledger
makes rollouts repeatable.

The server is the option `url` (or `base_url`, the same under OpenAI's name), else $OPENAI_BASE_URL, else
http://127.0.0.1:8000/v1. The key is in the environment variable that `key_env` names, by default $OPENAI_API_KEY.

    stepmark sample --task gsm8k --backend openai --model Qwen/Qwen3-8B --n 16 --out solutions.jsonl
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepmark.errors import ConfigError
from stepmark.text import sampling
from stepmark.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from stepmark.backends.openai.client import Client

URL_ENV = "OPENAI_BASE_URL"
LOCAL = "http://127.0.0.1:8000/v1"  # where vLLM serves by default


@dataclass(frozen=True)
class OpenAIBackend:
    """Samples from a model behind a URL. Raises ConfigError for invalid settings."""

    model: str  # its name on the server
    # the part before /completions; by default that in the environment variable OPENAI_BASE_URL, else
    # http://127.0.0.1:8000/v1
    url: str = ""
    key_env: str = "OPENAI_API_KEY"  # the environment variable with the key, if any; never the key itself
    chat: bool = False  # context is the user's turn, prefix begins the assistant's turn
    concurrency: int = 16  # largest number of concurrent requests
    n_per_request: int = 8  # largest number of rollouts of a prompt in one request; they arrive together
    retries: int = 5  # further attempts after a temporary failure of a request
    backoff: float = 0.5  # seconds before the first retry, doubled each time, at most a minute
    timeout: float = 300.0  # seconds for one attempt
    deadline: float = 900.0  # seconds for all attempts of a request together
    seeds: bool = False  # seeded requests, with one rollout each; many concurrent ones crash some servers
    price_input: float = 0.0  # money per million prompt tokens
    price_output: float = 0.0  # money per million generated tokens
    base_url: str = ""  # another name of `url`

    remote: ClassVar[bool] = True
    # options that change no result; where the server is counts through `server`
    free: ClassVar[tuple[str, ...]] = (
        *("url", "base_url", "key_env", "concurrency", "n_per_request", "retries", "backoff", "timeout", "deadline"),
        *("price_input", "price_output"),
    )

    def __post_init__(self) -> None:
        faults = [] if self.model else ["model must be the name of a model on the server, got ''."]
        if self.url and self.base_url and self.url != self.base_url:
            faults.append(f"url and base_url are one setting; got {self.url!r} and {self.base_url!r}. Give one.")
        faults += [
            f"{name} {_bad_url(url)}" for name in ("url", "base_url") if (url := getattr(self, name)) and _bad_url(url)
        ]
        minima = {"concurrency": 1, "n_per_request": 1, "retries": 0, "backoff": 0, "price_input": 0, "price_output": 0}
        faults += [
            f"{name} must be at least {minimum}, got {getattr(self, name)}."
            for name, minimum in minima.items()
            if not getattr(self, name) >= minimum
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

    @property
    def server(self) -> str:
        """The URL of the server. Raises ConfigError for an environment that names none."""
        return self.url or self.base_url or _url_of_environment() or LOCAL

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollouts as they finish. Raises BackendError when no request can succeed, ConfigError without httpx."""
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
        """For each text, the probability that each choice follows it, given that one of the choices follows.

        It is exact, or BackendError is raised (choices.py). With `chat` a text is the user's turn, and a choice begins
        the assistant's turn."""
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

        by_text = {distinct[i]: probabilities for i, probabilities in stream(produce)}
        return [by_text[text] for text in texts]

    def _client(self) -> Client:
        from stepmark.backends.openai.client import Client

        return Client(
            self.server,
            self.key_env,
            connections=self.concurrency,
            retries=self.retries,
            pause=self.backoff,
            timeout=self.timeout,
            deadline=self.deadline,
        )


def _bad_url(url: str) -> str:
    return "" if url.startswith(("http://", "https://")) else f"must begin with http:// or https://, got {url!r}."


def _url_of_environment() -> str:
    """The server that the environment names, "" for none. Raises ConfigError for what is no URL."""
    url = os.environ.get(URL_ENV, "").strip()
    if url and (fault := _bad_url(url)):
        raise ConfigError(f"the environment variable {URL_ENV} {fault}")
    return url


def _need_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("the backend openai needs httpx: pip install 'stepmark[api]'.") from None


def seed_of(seed: int, prompt_id: str, index: int) -> int:
    """The seed of one rollout: 31 bits, which every server accepts."""
    digest = hashlib.sha256(f"{seed}|{prompt_id}|{index}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1

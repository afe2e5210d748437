"""Backend `local`: samples from any Hugging Face causal language model in this process, on CPU or GPU.

It is made for many independent rollouts of every step prefix of a solution (Math-Shepherd, section 3.3). Each solution
is encoded once, its prefixes are slices of that cache, and their rollouts share it (rolling.py, engine.py, cohort.py).
To sample whole solutions, the question is the prefix.

If a prompt is as long as the model's positions, its rollouts are Finish.LENGTH with no tokens and no text, since a bad
rollout is data and no error. If it is nearly as long, the rollouts get the positions that are left.

    stepmark sample --task arithmetic --model generator/ --n 16 --out solutions.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from stepmark.errors import ConfigError
from stepmark.models.encoding import choice_ids, prompt_ids
from stepmark.text import sampling
from stepmark.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepmark.backends.local.engine import Engine


@dataclass(frozen=True)
class LocalBackend:
    """Samples from the checkpoint at `path`. Loads it on first use, once per process."""

    free: ClassVar[tuple[str, ...]] = ("device", "batch", "sharing")  # options that change no result

    path: str  # a checkpoint directory, or a hub id
    dtype: str = "auto"  # float32, bfloat16, float16; auto: bfloat16 where it is faster and agrees (precision.py)
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda where there is one, else cpu
    batch: int = 0  # largest number of concurrent rollouts, fewer if memory is short; 0 chooses by model size
    chat_template: bool = False  # context is the user's turn, prefix begins the assistant's turn
    trust_remote_code: bool = False  # run code that comes with the checkpoint
    sharing: bool = True  # False encodes every prefix separately: slow, a reference for tests

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ConfigError(f"batch must be at least 1 rollout, or 0 for the default number, got {self.batch}.")

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollouts as they finish. Raises CheckpointError, ConfigError, BackendError."""
        sampling.check(params)
        from stepmark.backends.local.rolling import roll

        engine, tokenizer = self._load()
        for rolled in roll(engine, tokenizer, prompts, params, chat=self.chat_template, sharing=self.sharing):
            yield rolled.rollout

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """For each text, the probability that each choice follows it, given that one of the choices follows."""
        from stepmark.backends.local.choices import probabilities

        engine, tokenizer = self._load()
        ids = choice_ids(tokenizer, texts, choices)
        starts = [prompt_ids(tokenizer, Prompt(str(i), text), self.chat_template) for i, text in enumerate(texts)]
        return probabilities(engine, starts, ids)

    def _load(self) -> tuple[Engine, PreTrainedTokenizerBase]:
        # A checkpoint that was written again under the same path must be loaded again.
        mtime = max((f.stat().st_mtime_ns for f in Path(self.path).glob("*.safetensors")), default=0)
        loaded = _loaded(self.path, self.dtype, self.device, self.batch, self.trust_remote_code, mtime)
        loaded[0].say()  # each stage that uses it says so, not only that which loads it
        return loaded


@lru_cache(maxsize=2)
def _loaded(
    path: str, dtype: str, device: str, batch: int, trust_remote_code: bool, _mtime: int
) -> tuple[Engine, PreTrainedTokenizerBase]:
    from stepmark.backends.local.engine import Engine
    from stepmark.models import gguf, precision
    from stepmark.models.checkpoints import load_model, load_tokenizer, resolve_device
    from stepmark.models.encoding import token_ids

    path = gguf.directory(path)
    tokenizer = load_tokenizer(path, trust_remote_code)
    text = token_ids(tokenizer, precision.TEXT)[0]

    def load(dtype: str) -> PreTrainedModel:
        return load_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code, attention=None)

    said = []
    if dtype == "auto" and precision.bfloat16_is_faster(path, resolve_device(device)):
        model = load("bfloat16")
        if (differs := precision.divergence(model, text)) <= precision.MOST:
            return Engine(model, batch, text), tokenizer
        said.append(
            f"{path} is loaded in float32: bfloat16 moves its probabilities by {differs:.2g} nats, more than "
            f"{precision.MOST:g}. That takes 1.6 to 4 times as long as bfloat16 would."
        )
    return Engine(load(dtype), batch, text, said), tokenizer

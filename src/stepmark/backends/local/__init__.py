"""Backend `local`: rolls out any Hugging Face causal language model in this process, on CPU or GPU.

What it is for: many independent rollouts of every step prefix of a solution (Math-Shepherd, section 3.3), where
each solution is encoded once, its prefixes are slices of that cache, and their rollouts share it (rolling.py,
engine.py, cohort.py). Sampling whole solutions is the same with the question as the prefix.

A prompt as long as the model's positions leaves no room: its rollouts come back as Finish.LENGTH with no tokens
and no text, because a bad rollout is data. One that is nearly as long gets the room there is.

    stepmark sample --task arithmetic --model generator/ --n 16 --out solutions.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from stepmark.errors import ConfigError
from stepmark.models.encoding import choice_ids, prompt_ids
from stepmark.text import sampling
from stepmark.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stepmark.backends.local.engine import Engine


@dataclass(frozen=True)
class LocalBackend:
    """Rolls out the checkpoint at `path`. Loads it on first use, once per process."""

    path: str  # a checkpoint directory, or a hub id
    dtype: str = "auto"  # auto (bfloat16 on a GPU, float32 on a CPU), float32, bfloat16, float16
    device: str = "auto"  # auto (a GPU where there is one), cpu, cuda, cuda:1, ...
    batch: int = 0  # most rollouts under way at once, fewer where memory is short; 0 fits the model's size
    chat_template: bool = False  # context becomes the user's turn, prefix the opening of the assistant's
    trust_remote_code: bool = False  # run code that comes with the checkpoint
    sharing: bool = True  # False encodes every prefix alone: a slow reference

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ConfigError(f"batch must be at least 1 rollout, or 0 for the usual number, got {self.batch}.")

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollouts as they finish. Raises CheckpointError, ConfigError, BackendError."""
        sampling.check(params)
        from stepmark.backends.local.rolling import roll

        engine, tokenizer = self._load()
        for rolled in roll(engine, tokenizer, prompts, params, chat=self.chat_template, sharing=self.sharing):
            yield rolled.rollout

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Per text, the probability that it goes on with each choice, given that it goes on with one of them."""
        from stepmark.backends.local.choices import probabilities

        engine, tokenizer = self._load()
        ways = choice_ids(tokenizer, texts, choices)
        starts = [prompt_ids(tokenizer, Prompt(str(i), text), self.chat_template) for i, text in enumerate(texts)]
        return probabilities(engine, starts, ways)

    def _load(self) -> tuple[Engine, PreTrainedTokenizerBase]:
        # A checkpoint that was written anew under the same path is another one.
        written = max((f.stat().st_mtime_ns for f in Path(self.path).glob("*.safetensors")), default=0)
        return _loaded(self.path, self.dtype, self.device, self.batch, self.trust_remote_code, written)


@lru_cache(maxsize=2)
def _loaded(
    path: str, dtype: str, device: str, batch: int, trust_remote_code: bool, written: int
) -> tuple[Engine, PreTrainedTokenizerBase]:
    from stepmark.backends.local.engine import Engine
    from stepmark.models.checkpoints import load_model, load_tokenizer

    model = load_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code, attention=None)
    return Engine(model, batch), load_tokenizer(path, trust_remote_code)

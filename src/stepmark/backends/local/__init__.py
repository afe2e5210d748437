"""Backend `local`: rolls out any Hugging Face causal language model in this process, on CPU or GPU.

What it is for: many independent rollouts of every step prefix of a solution (Math-Shepherd, section 3.3), where
each solution is encoded once, its prefixes are slices of that cache, and their rollouts share it (engine.py,
cohort.py). Sampling whole solutions is the same with the question as the prefix.

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

from stepmark import sampling
from stepmark.encoding import choice_ids, prompt_ids
from stepmark.errors import ConfigError
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    import numpy as np
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
        import numpy as np

        from stepmark.backends.local import plain
        from stepmark.backends.local.cohort import Row, Trunk
        from stepmark.backends.local.draw import key
        from stepmark.backends.local.engine import Draws
        from stepmark.backends.local.text import Reader, group

        engine, tokenizer = self._load()
        ids = [_ids(tokenizer, prompt.id, prompt.context, prompt.prefix, self.chat_template) for prompt in prompts]
        rows: list[tuple[int, int]] = []  # a row's name is its place here: prompt, index of the rollout
        trunks: list[Trunk] = []
        for longest, members in group([x if len(x) < engine.limit else () for x in ids]):
            todo: list[Row] = []
            for i in members:
                prompt, at = prompts[i], len(ids[i])
                for index in range(prompt.first, prompt.first + prompt.n):
                    room = min(params.max_tokens, engine.limit - at - bool(params.choices))  # one to ask with
                    if room < 1:
                        yield Rollout(prompt.id, index, "", Finish.LENGTH, 0)
                        continue
                    todo.append(Row(len(rows), at, key(params.seed, prompt.id, index), room))
                    rows.append((i, index))
            if todo:
                trunks.append(Trunk(ids[longest], tuple(todo)))
        vocab = engine.vocab
        reader = Reader(tokenizer, params.stop)
        ends = np.zeros(vocab, dtype=bool)
        ends[[e for e in engine.end_ids(tokenizer.eos_token_id) if e < vocab]] = True

        def stopped(name: int, own: np.ndarray) -> bool:
            return reader.text(ids[rows[name][0]], own.tolist())[1]

        choices = self._choices(tokenizer, params)
        draws = Draws(params.temperature, params.top_p, ends, reader.watched(vocab), stopped, choices)
        reach = max((len(t.ids) + max(row.budget for row in t.rows) for t in trunks), default=0) + bool(params.choices)
        shared = self.sharing and engine.sharing and reach <= engine.window
        for done in engine.run(trunks, draws) if shared else plain.run(engine, trunks, draws):
            i, index = rows[done.name]
            text, _ = reader.text(ids[i], done.ids)
            finish = Finish.STOP if done.stopped else Finish.LENGTH
            chosen = done.choices if done.choices and reader.ends_in_stop(done.ids) else ()
            yield Rollout(prompts[i].id, index, text, finish, len(done.ids), done.logprob, choices=chosen)

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Per text, the probability that it goes on with each choice, given that it goes on with one of them."""
        from stepmark.backends.local.choices import probabilities

        engine, tokenizer = self._load()
        ways = choice_ids(tokenizer, texts, choices)
        starts = [prompt_ids(tokenizer, Prompt(str(i), text), self.chat_template) for i, text in enumerate(texts)]
        return probabilities(engine, starts, ways)

    def _choices(self, tokenizer: PreTrainedTokenizerBase, params: SamplingParams) -> np.ndarray | None:
        """The tokens of `params.choices`, where each is the same one token after every stop string."""
        import numpy as np

        if not params.choices or not params.stop:
            return None
        ways = set(map(tuple, choice_ids(tokenizer, params.stop, params.choices)))
        found = ways.pop()
        return None if ways or any(len(ids) != 1 for ids in found) else np.array([ids[0] for ids in found])

    def _load(self) -> tuple[Engine, PreTrainedTokenizerBase]:
        # A checkpoint that was written anew under the same path is another one.
        written = max((f.stat().st_mtime_ns for f in Path(self.path).glob("*.safetensors")), default=0)
        return _loaded(self.path, self.dtype, self.device, self.batch, self.trust_remote_code, written)


@lru_cache(maxsize=1 << 13)  # labelling asks for the same prefixes again, wave after wave
def _ids(tokenizer: PreTrainedTokenizerBase, name: str, context: str, prefix: str, chat: bool) -> tuple[int, ...]:
    return prompt_ids(tokenizer, Prompt(name, context, prefix), chat)


@lru_cache(maxsize=2)
def _loaded(
    path: str, dtype: str, device: str, batch: int, trust_remote_code: bool, written: int
) -> tuple[Engine, PreTrainedTokenizerBase]:
    from stepmark.backends.local.engine import Engine
    from stepmark.checkpoints import load_model, load_tokenizer

    model = load_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code, attention=None)
    return Engine(model, batch), load_tokenizer(path, trust_remote_code)

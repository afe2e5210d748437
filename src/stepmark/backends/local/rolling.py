"""Prompts -> rollouts of a loaded model, with the token ids that were drawn.

Training on a rollout needs these ids, since tokenising its text again may give other tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from stepmark.backends.local import plain
from stepmark.backends.local.cohort import Stream, Trunk
from stepmark.backends.local.draw import key
from stepmark.backends.local.engine import Draws, Engine
from stepmark.backends.local.text import Reader, group
from stepmark.data import notes
from stepmark.models.encoding import choice_ids, prompt_ids
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rolled:
    """A rollout with its token ids."""

    rollout: Rollout
    prompt: tuple[int, ...]  # ids that it continues
    ids: tuple[int, ...]  # ids drawn, with those of the end token or stop string; () if the prompt left no positions


def roll(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    chat: bool = False,
    sharing: bool = True,
) -> Iterator[Rolled]:
    """Rollouts as they finish. `sharing=False` encodes every prefix separately. Raises ConfigError, BackendError."""
    ids = [_ids(tokenizer, prompt.id, prompt.context, prompt.prefix, chat) for prompt in prompts]
    rollouts: list[tuple[int, int]] = []  # (prompt, index of the rollout); a stream's name is an index into this list
    trunks: list[Trunk] = []
    for longest, members in group([x if len(x) < engine.limit else () for x in ids]):
        streams: list[Stream] = []
        for i in members:
            prompt, length = prompts[i], len(ids[i])
            for index in range(prompt.first, prompt.first + prompt.n):
                # With choices, one position stays free for the pass that reads them.
                budget = min(params.max_tokens, engine.limit - length - bool(params.choices))
                if budget < 1:
                    yield Rolled(Rollout(prompt.id, index, "", Finish.LENGTH, 0), ids[i], ())
                    continue
                streams.append(Stream(len(rollouts), length, key(params.seed, prompt.id, index), budget))
                rollouts.append((i, index))
        if streams:
            trunks.append(Trunk(ids[longest], tuple(streams)))
    vocab = engine.vocab
    reader = Reader(tokenizer, params.stop)
    ends = np.zeros(vocab, dtype=bool)
    ends[[e for e in engine.end_ids(tokenizer.eos_token_id) if e < vocab]] = True

    def stopped(name: int, own: np.ndarray) -> bool:
        return reader.text(ids[rollouts[name][0]], own.tolist())[1]

    choices = _choices(tokenizer, params)
    draws = Draws(params.temperature, params.top_p, ends, reader.watched(vocab), stopped, choices)
    shared = sharing and engine.sharing
    for done in engine.run(trunks, draws) if shared else plain.run(engine, trunks, draws):
        i, index = rollouts[done.name]
        text, _ = reader.text(ids[i], done.ids)
        finish = Finish.STOP if done.stopped else Finish.LENGTH
        chosen = done.choices if done.choices and reader.ends_in_stop(done.ids) else ()
        rollout = Rollout(prompts[i].id, index, text, finish, len(done.ids), done.logprob, choices=chosen)
        yield Rolled(rollout, ids[i], done.ids)


def _choices(tokenizer: PreTrainedTokenizerBase, params: SamplingParams) -> np.ndarray | None:
    """The tokens of `params.choices`, if each is one token, and the same after every stop string; else None."""
    if not params.choices or not params.stop:
        return None
    variants = set(map(tuple, choice_ids(tokenizer, params.stop, params.choices)))
    first = variants.pop()
    if not variants and all(len(ids) == 1 for ids in first):
        return np.array([ids[0] for ids in first])
    names = " or ".join(params.choices)
    notes.say(
        log,
        f"whether {names} follows is not read in passing, since these are more than one token of this tokenizer, or "
        "differ after a stop string. It is asked in a second call, which reads each text once more.",
    )
    return None


@lru_cache(maxsize=1 << 13)  # labelling samples the same prefixes in several waves
def _ids(tokenizer: PreTrainedTokenizerBase, name: str, context: str, prefix: str, chat: bool) -> tuple[int, ...]:
    return prompt_ids(tokenizer, Prompt(name, context, prefix), chat)

"""Attempts of a policy as it is now: drawn with its live weights, kept as the token ids that were drawn.

A policy learns from those very ids; text that is tokenised again may be other tokens. A step's reward is given at the
last token of the step, found by character offsets in the text that the ids decode to: never on padding, which isn't
part of an episode, and never after the end token, which is its last id.

    found = episodes(engine, tokenizer, problems, samples=8, params=params, template=template, steps="line")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from stepmark.backends.local.rolling import roll
from stepmark.backends.local.text import Reader, decoded
from stepmark.models.encoding import boundaries
from stepmark.stages.sample import solution as sampled
from stepmark.text.prompts import Template
from stepmark.types import Finish, Problem, Prompt, SamplingParams, Solution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stepmark.backends.local.engine import Engine


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt: T tokens of the policy's own after P of the prompt, and S steps."""

    problem: Problem
    solution: Solution
    prompt: tuple[int, ...]  # [P]
    ids: tuple[int, ...]  # [T], an end token included
    ends: tuple[int, ...]  # [S] index into ids of each step's last token, not counting white space after the step

    @property
    def truncated(self) -> bool:
        return self.solution.finish is not Finish.STOP


def episodes(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    samples: int,
    params: SamplingParams,
    template: Template,
    steps: str,
    chat: bool = False,
    name: str = "",
) -> list[Episode]:
    """`samples` attempts at each problem, problem by problem in order. They are a function of the weights, `params`
    and `name`, whatever else is drawn; a problem that is there twice gets others. One whose prompt leaves no room for a
    token has none. With `chat` the rendered question is the user's turn."""
    prompts = [Prompt(f"{name}{i}/{p.id}", template(p), n=samples) for i, p in enumerate(problems)]
    place = {prompt.id: i for i, prompt in enumerate(prompts)}
    found: list[list[Episode | None]] = [[None] * samples for _ in problems]
    for rolled in roll(engine, tokenizer, prompts, params, chat=chat):
        if not rolled.ids:
            continue
        at, index = place[rolled.rollout.prompt_id], rolled.rollout.index
        solution = sampled(replace(rolled.rollout, prompt_id=problems[at].id), steps)
        ends = last_tokens(tokenizer, rolled.prompt, rolled.ids, solution.text, solution.spans)
        found[at][index] = Episode(problems[at], solution, rolled.prompt, rolled.ids, ends)
    return [e for group in found for e in group if e is not None]


def last_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    text: str,
    spans: Iterable[tuple[int, int]],
) -> tuple[int, ...]:
    """For each step, a span of `text`, the index into `ids` of the token that completes it. `text` is what `ids` say
    after `prompt`, perhaps cut before a stop string."""
    cuts = [start + len(text[start:end].rstrip()) for start, end in spans]
    if not cuts:
        return ()
    pieces = [_piece(tokenizer, i) for i in ids]
    if "".join(pieces).startswith(text):  # each token is some characters: nearly always
        reach = list(accumulate(map(len, pieces), initial=0))
        return tuple(count - 1 for count in boundaries(list(pairwise(reach)), cuts))
    reader = Reader(tokenizer, ())
    found, low = [], 1
    for cut in cuts:
        high = len(ids)
        while low < high:
            middle = (low + high) // 2
            # A character of several tokens is there with the last of them.
            if reader.text(prompt, ids[:middle])[0].startswith(text[:cut]):
                high = middle
            else:
                low = middle + 1
        found.append(low - 1)
    return tuple(found)


@lru_cache(maxsize=1 << 18)
def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What one token says, where it says whole characters."""
    return decoded(tokenizer, [token])

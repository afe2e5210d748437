"""Attempts sampled with a policy's current weights, stored as the sampled token ids.

The policy learns from exactly these ids, because decoding and tokenising again may give other tokens. A step's reward
falls on the last token of the step, which is found by character offsets in the decoded text. So no reward falls on
padding, which is not part of an episode, or after the end token, which is the last id.

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
    """One attempt: T sampled tokens after P prompt tokens, and S steps."""

    problem: Problem
    solution: Solution
    prompt: tuple[int, ...]  # [P]
    ids: tuple[int, ...]  # [T], with the end token if there is one
    ends: tuple[int, ...]  # [S] index into ids of each step's last token, without the white space after the step

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
    """`samples` attempts at each problem, in the order of the problems. They depend only on the weights, `params`,
    `name`, and a problem's id and position, so a problem that occurs twice gets different attempts. A problem whose
    prompt leaves no room for a token gets none. With `chat` the rendered question becomes the user's turn."""
    prompts = [Prompt(f"{name}{i}/{p.id}", template(p), n=samples) for i, p in enumerate(problems)]
    problem_of = {prompt.id: i for i, prompt in enumerate(prompts)}
    by_problem: list[list[Episode | None]] = [[None] * samples for _ in problems]
    for drawn in roll(engine, tokenizer, prompts, params, chat=chat):
        if not drawn.ids:
            continue
        problem_index, index = problem_of[drawn.rollout.prompt_id], drawn.rollout.index
        solution = sampled(replace(drawn.rollout, prompt_id=problems[problem_index].id), steps)
        ends = last_tokens(tokenizer, drawn.prompt, drawn.ids, solution.text, solution.spans)
        by_problem[problem_index][index] = Episode(problems[problem_index], solution, drawn.prompt, drawn.ids, ends)
    return [e for group in by_problem for e in group if e is not None]


def last_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    text: str,
    spans: Iterable[tuple[int, int]],
) -> tuple[int, ...]:
    """The index into `ids` of the token that completes each step. `spans` are the steps' character spans in `text`.
    `text` is the decoded `ids` after `prompt`, possibly cut before a stop string."""
    step_ends = [start + len(text[start:end].rstrip()) for start, end in spans]
    if not step_ends:
        return ()
    pieces = [_piece(tokenizer, i) for i in ids]
    if "".join(pieces).startswith(text):  # nearly always: each token decodes to whole characters
        lengths = list(accumulate(map(len, pieces), initial=0))
        return tuple(count - 1 for count in boundaries(list(pairwise(lengths)), step_ends))
    reader = Reader(tokenizer, ())
    last_indices, low = [], 1
    for step_end in step_ends:
        high = len(ids)
        while low < high:
            middle = (low + high) // 2
            # A character that several tokens encode appears with the last of them.
            if reader.text(prompt, ids[:middle])[0].startswith(text[:step_end]):
                high = middle
            else:
                low = middle + 1
        last_indices.append(low - 1)
    return tuple(last_indices)


@lru_cache(maxsize=1 << 18)
def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token, if it encodes whole characters."""
    return decoded(tokenizer, [token])

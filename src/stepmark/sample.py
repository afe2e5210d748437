"""Stage: problems -> solutions, n independent samples each.

Math-Shepherd (section 4.1) draws 15 solutions per training problem to label and 256 per test problem to choose
among; that is this stage with another n. Asking for more later adds to what is there, it draws nothing twice.

    stepmark sample --task arithmetic --split test --model generator/ --n 16 --out solutions.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from stepmark import units
from stepmark.errors import ConfigError
from stepmark.protocols import Backend, Executor
from stepmark.steps import split
from stepmark.store import Records
from stepmark.types import Finish, Problem, Progress, Prompt, Rollout, SamplingParams, Solution

Missing = tuple[Problem, tuple[int, ...]]  # a problem and the samples of it that are wanted, rising


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the file holds after sampling."""

    problems: int  # asked for
    solutions: int
    truncated: int  # solutions that ran out of tokens
    tokens: int  # generated for them, all together
    failed: tuple[units.Failed, ...]  # problems that lack samples


def sample(
    problems: Sequence[Problem],
    generator: Backend,
    out: Records[Solution],
    *,
    n: int,
    context: Callable[[Problem], str],
    params: SamplingParams,
    steps: str,
    executor: Executor,
    progress: Callable[[Progress], None] | None = None,
    rows: int = 512,
) -> Sampled:
    """Draws samples 0..n-1 of every problem, those that `out` lacks. `steps` names how texts split into steps.

    About `rows` solutions make a unit of work: enough to fill the engine, few enough to lose little to a kill.
    Raises ConfigError for n below 1, StageError when nearly everything fails."""
    if n < 1:
        raise ConfigError(f"n, the samples of each problem, must be at least 1, got {n}.")
    there = out.keys()
    missing = [(p, tuple(i for i in range(n) if f"{p.id}#{i}" not in there)) for p in problems]
    todo: list[Missing] = [m for m in missing if m[1]]
    failed = units.run(
        "sample",
        partial(_sample, generator=generator, context=context, params=params, steps=steps),
        todo,
        out,
        name=_name,
        weigh=_weigh,
        size=rows,
        already=n * len(problems) - sum(map(_weigh, todo)),
        executor=executor,
        progress=progress,
    )
    count = truncated = tokens = 0
    for solution in out:
        count += 1
        truncated += solution.finish is Finish.LENGTH
        tokens += solution.tokens
    return Sampled(len(problems), count, truncated, tokens, failed)


def solution(rollout: Rollout, steps: str) -> Solution:
    """A rollout of a whole problem as a solution."""
    return Solution(
        id=f"{rollout.prompt_id}#{rollout.index}",
        problem_id=rollout.prompt_id,
        sample=rollout.index,
        text=rollout.text,
        spans=split(rollout.text, steps),
        finish=rollout.finish,
        tokens=rollout.tokens,
        logprob=rollout.logprob,
    )


def _sample(
    unit: tuple[Missing, ...],
    *,
    generator: Backend,
    context: Callable[[Problem], str],
    params: SamplingParams,
    steps: str,
) -> list[Solution]:
    prompts = [
        Prompt(id=problem.id, context=context(problem), n=count, first=first)
        for problem, indices in unit
        for first, count in _runs(indices)
    ]
    return [solution(rollout, steps) for rollout in generator.sample(prompts, params)]


def _runs(indices: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Rising indices as (first, how many) runs: a kill may leave holes, and a prompt asks for a run."""
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(indices), 1) if b > a + 1), len(indices)]
    for start, end in pairwise(starts):
        yield indices[start], end - start


def _name(item: Missing) -> str:
    return item[0].id


def _weigh(item: Missing) -> int:
    return len(item[1])

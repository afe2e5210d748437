"""Stage: problems -> solutions, n independent samples of each problem.

Math-Shepherd (section 4.1) labels 15 solutions per training problem and selects among 256 per test problem; both are
this stage with another n. A later call with a larger n draws only the missing samples.

    stepmark sample --task arithmetic --split test --model generator/ --n 16 --out solutions.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from stepmark.data import outcome_counts, work_units
from stepmark.data.ledger import Budget, Ledger, Recorded, runs
from stepmark.data.outcome_counts import LimitCheck, Limits
from stepmark.data.store import Records
from stepmark.errors import ConfigError
from stepmark.protocols import Backend, Executor
from stepmark.text.steps import split
from stepmark.text.thoughts import answer_of
from stepmark.types import Finish, Problem, Progress, Prompt, Rollout, SamplingParams, Solution


@dataclass(frozen=True, slots=True)
class _Missing:
    """The samples of a problem that are not stored yet."""

    problem: Problem
    indices: tuple[int, ...]  # in rising order
    known: dict[str, Rollout] = field(default_factory=dict)  # rollouts that a failed unit of work has drawn


@dataclass(frozen=True, slots=True)
class Sampled:
    """Counts over the whole file after sampling."""

    problems: int  # problems that the call was given
    solutions: int
    truncated: int  # solutions that ran out of tokens
    tokens: int  # generated tokens of all solutions
    failed: tuple[work_units.Failed, ...]  # problems with missing samples


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
    ledger: Ledger | None = None,
    budget: Budget | None = None,
    limits: Limits | None = None,
    progress: Callable[[Progress], None] | None = None,
    rows: int = 512,
) -> Sampled:
    """Draws samples 0..n-1 of every problem, except those that `out` has. `steps` names the step splitter.

    About `rows` solutions are asked for together, enough for a full batch; each is in `out` within two seconds. With a
    `ledger` each sample of a paid server is stored before anything else, and nothing is paid for twice. Raises
    ConfigError for n below 1 or a budget without a ledger, BudgetReached when the budget is spent, and StageError when
    nearly everything fails or the share of unusable solutions exceeds `limits`."""
    if n < 1:
        raise ConfigError(f"n, the number of samples per problem, must be at least 1, got {n}.")
    if budget is not None and ledger is None:
        raise ConfigError("a budget needs a ledger for the generator. Pass one, or leave out the budget.")
    if ledger is not None:
        out.claim()  # before the ledger is read: two runs at once would both pay
    stored_keys = out.keys()
    if ledger is not None:
        ids = {p.id for p in problems}
        paid = [r for rollouts in ledger.open(ids.__contains__).values() for r in rollouts if r.key not in stored_keys]
        out.append(solution(r, steps) for r in paid if r.index < n)
        stored_keys = out.keys()
    missing = [_Missing(p, tuple(i for i in range(n) if f"{p.id}#{i}" not in stored_keys)) for p in problems]
    todo = [m for m in missing if m.indices]
    failed = work_units.run(
        "sample",
        partial(
            _sample, generator=generator, context=context, params=params, steps=steps, ledger=ledger, budget=budget
        ),
        todo,
        out,
        name=_name,
        weigh=_weigh,
        keys=_keys,
        size=rows,
        already=n * len(problems) - sum(map(_weigh, todo)),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, outcome_counts.of_solutions, "solutions"),
        most_tokens=sum(map(_weigh, todo)) * params.max_tokens,
    )
    count = truncated = tokens = 0
    for s in out:
        count += 1
        truncated += s.finish is Finish.LENGTH
        tokens += s.tokens
    return Sampled(len(problems), count, truncated, tokens, failed)


def solution(rollout: Rollout, steps: str) -> Solution:
    """Converts a rollout that continues a problem's prompt into a Solution with its steps."""
    return Solution(
        id=f"{rollout.prompt_id}#{rollout.index}",
        problem_id=rollout.prompt_id,
        sample=rollout.index,
        text=rollout.text,
        spans=split(rollout.text, steps),
        finish=rollout.finish if answer_of(rollout.text) is not None else Finish.LENGTH,  # it ended inside a thought
        tokens=rollout.tokens,
        logprob=rollout.logprob,
    )


def _sample(
    unit: tuple[_Missing, ...],
    *,
    generator: Backend,
    context: Callable[[Problem], str],
    params: SamplingParams,
    steps: str,
    ledger: Ledger | None,
    budget: Budget | None,
) -> Iterator[Solution | work_units.Failed]:
    known = {key: r for missing in unit for key, r in missing.known.items()}
    backend = generator if ledger is None else Recorded(generator, ledger, known, budget)
    prompts = [
        Prompt(id=missing.problem.id, context=context(missing.problem), n=count, first=first)
        for missing in unit
        for first, count in runs([i for i in missing.indices if ledger or f"{missing.problem.id}#{i}" not in known])
    ]
    try:
        for rollout in backend.sample(prompts, params):
            known[rollout.key] = rollout
            if rollout.finish is Finish.FAILED:
                yield work_units.Failed(rollout.key, rollout.reason)
            else:
                yield solution(rollout, steps)
    except Exception:
        # The problems are now sampled again one at a time, without the rollouts that have come already.
        for missing in unit:
            missing.known.update((key, r) for key, r in known.items() if r.prompt_id == missing.problem.id)
        raise


def _name(item: _Missing) -> str:
    return item.problem.id


def _weigh(item: _Missing) -> int:
    return len(item.indices)


def _keys(item: _Missing) -> list[str]:
    return [f"{item.problem.id}#{index}" for index in item.indices]

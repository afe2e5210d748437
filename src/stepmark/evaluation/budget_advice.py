"""Recommends how to spend a budget of tokens per problem: on more samples, on votes of a verifier, or on no verifier.

"When To Solve, When To Verify" (arXiv 2504.01005) finds that plain voting is ahead of generative verification at equal
compute, until the budget is several times what voting needs to level off. This module finds that point for the models
of a finished run: of all selection methods that the run measured (evaluation/token_curves.py), it takes the best one
within the budget.

It recommends the simplest of one sample, a plain vote and a verifier, unless another one within the budget is clearly
better: the 95% interval of the paired difference excludes zero. Deviation: the paper fits curves and extrapolates. We
use only what the run has measured, so we never recommend more samples than the run drew.

    stepmark plan --optimal runs/genrm_last_letter --tokens 500 --tokens 4000
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from stepmark.errors import ConfigError, DataError
from stepmark.evaluation.rank import SELF_CONSISTENCY
from stepmark.evaluation.stats import Interval
from stepmark.evaluation.token_curves import WEIGHTED, Compute, Point, Split


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommendation for one budget."""

    budget: float  # tokens per problem
    chosen: Point
    verify: bool  # whether `chosen` uses a verifier
    plain: Point  # the best without a verifier: one sample or a plain vote
    verified: Point | None  # the best with a verifier; None if the budget is too small for one
    gain: Interval | None  # of `verified` over `plain`, paired by problem
    reason: str  # in a few words


@dataclass(frozen=True, slots=True)
class Part:
    """The recommendations from one part of a run's test problems."""

    name: str  # in_distribution or out_of_distribution
    problems: int
    ways: int  # number of selection methods, with their N and K, compared on these problems
    voting: Point | None  # the largest plain vote that was measured
    advice: tuple[Advice, ...]  # by rising budget
    notes: tuple[str, ...]  # the run's notes on how tokens were counted


class Measured(Protocol):
    """The part of a run's metrics that is used here: for one part of its test problems, and for a second part if it
    has one."""

    @property
    def problems(self) -> int: ...
    @property
    def compute(self) -> Compute | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def out_of_distribution(self) -> Measured | None: ...


def advise(metrics: Measured, budgets: Sequence[float], run: Path) -> list[Part]:
    """Recommendations from the metrics of a finished run, for each of `budgets` (or powers of two), for each part of
    its test problems.

    `run` is the run's directory, for messages. A run of several seeds counts as one run (run/seeds.py). Raises
    DataError for a run without accuracy against tokens, ConfigError for a budget that is too small for one sample."""
    parts = [_part("in_distribution", metrics, budgets, run)]
    if metrics.out_of_distribution is not None:
        parts.append(_part("out_of_distribution", metrics.out_of_distribution, budgets, run))
    return parts


def _part(name: str, metrics: Measured, budgets: Sequence[float], run: Path) -> Part:
    compute = metrics.compute
    notes = tuple(note for note in metrics.notes if "accuracy against tokens" in note.lower())
    if compute is None or not compute.splits:
        reason = next((note for note in notes if "was not" in note), "")
        raise DataError(
            f"{run / 'metrics.json'} has no accuracy against tokens. {reason or 'It is older than that measure.'} "
            f"Run `stepmark evaluate {run}` to measure again; imported solutions need their `tokens`."
        )
    least, most = compute.splits[0].tokens, compute.splits[-1].tokens
    if too_small := [b for b in budgets if not (b >= least and math.isfinite(b))]:
        raise ConfigError(
            f"--tokens is {', '.join(f'{b:g}' for b in too_small)}; one sample takes {least:,.1f} tokens for a problem "
            f"on average: give at least {math.ceil(least)}."
        )
    powers = range(max(0, math.ceil(math.log2(least))), max(0, math.ceil(math.log2(most))) + 1)
    ascending = sorted(set(budgets)) or [2.0**i for i in powers]
    advice = tuple(_advice(b, [s for s in compute.splits if s.tokens <= b][-1]) for b in ascending)
    votes = [p for p in compute.points if p.method == SELF_CONSISTENCY]
    return Part(name, metrics.problems, len(compute.points), votes[-1] if votes else None, advice, notes)


def _advice(budget: float, split: Split) -> Advice:
    one, voting, verified = split.one, split.voting, split.verified
    # Compare the verifier with a vote only if the vote is better than one sample.
    plain, gain = one, split.verified_over_one
    if voting is not None and voting.accuracy.mean > one.accuracy.mean:
        plain, gain = voting, split.verified_over_voting
    if verified is not None and _is_clear(gain):
        reason = f"better than {_plain_method(plain)} beyond the noise"
        return Advice(budget, verified, True, plain, verified, gain, reason)
    one_is_beaten = plain is not one and (_is_clear(split.voting_over_one) or _is_clear(split.verified_over_one))
    chosen = plain if one_is_beaten else one
    if verified is None:
        reason = "the budget pays for no verifier"
    elif gain is not None and gain.high < 0:
        reason = f"leave verification out: {_plain_method(plain)} is better than the {_method(verified)}"
    else:
        reason = (
            f"leave verification out: {_plain_method(chosen)} is as good within the noise as the {_method(verified)}"
        )
    return Advice(budget, chosen, False, plain, verified, gain, reason)


def _is_clear(gain: Interval | None) -> bool:
    return gain is not None and gain.low > 0


def _plain_method(point: Point) -> str:
    return "one sample" if point.n == 1 else "plain voting"


def _method(point: Point) -> str:
    """The selection method of a point, as text that a user can follow."""
    if point.n == 1:
        return "one sample"
    if point.method == SELF_CONSISTENCY:
        return f"vote of N = {point.n}"
    name, votes = point.method.removeprefix(WEIGHTED), f", K = {point.k}" if point.k else ""
    if point.method == name:
        return f"best of N = {point.n} by {name}{votes}"
    return f"vote of N = {point.n} weighted by {name}{votes}"


def table(found: Sequence[Part]) -> str:
    """The recommendations as a table for a terminal."""
    return "\n\n".join(map(_table, found))


def _table(part: Part) -> str:
    rows: list[tuple[str, ...]] = [("tokens", "do this", "takes", "accuracy", "and verification")]
    rows += _rows(part.advice)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"Best use of a budget of tokens for each problem, {part.name.replace('_', ' ')}",
        *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows),
        "",
        "N: candidates of a problem. K: rationales that the verifier writes of each. In percent, with 95% intervals.",
        f"Each is the best that its budget pays for, of {part.ways} ways compared on the same "
        f"{part.problems:,} problems: expect a little less on others.",
    ]
    largest = part.voting
    if largest is not None and part.advice[-1].budget >= 2 * largest.tokens:
        lines.append(
            f"Voting was measured up to N = {largest.n} ({largest.tokens:,.0f} tokens): a larger budget could pay for "
            "more candidates than this run drew."
        )
    return "\n".join([*lines, *part.notes])


def _rows(advice: Sequence[Advice]) -> Iterator[tuple[str, ...]]:
    """A row for each budget; neighbouring budgets with the same recommendation share a row."""
    for cells, group in groupby(advice, _cells):
        same = list(group)
        yield f"{same[0].budget:,.0f}" + (f" to {same[-1].budget:,.0f}" if len(same) > 1 else ""), *cells


def _cells(a: Advice) -> tuple[str, str, str, str]:
    return _method(a.chosen), f"{a.chosen.tokens:,.0f}", _percent(a.chosen.accuracy), _verification_gain(a)


def _verification_gain(a: Advice) -> str:
    """What verification gains or loses at this budget."""
    if a.verify and a.gain is not None:
        g = a.gain
        loss = f"{100 * g.mean:.1f} points ({100 * g.low:.1f} to {100 * g.high:.1f})"
        return f"leaving it out loses {loss}: {_method(a.plain)}, {100 * a.plain.accuracy.mean:.1f}"
    if a.verified is None or a.gain is None:
        return "leave it out: the budget pays for none"
    gain = f"{100 * a.gain.mean:+.1f} points ({100 * a.gain.low:+.1f} to {100 * a.gain.high:+.1f})"
    return f"leave it out: {_method(a.verified)} has {gain}{'' if a.gain.high < 0 else ', no clear gain'}"


def _percent(i: Interval) -> str:
    return f"{100 * i.mean:.1f} ({100 * i.low:.1f}-{100 * i.high:.1f})"

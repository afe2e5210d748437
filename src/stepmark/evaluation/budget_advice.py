"""How to spend a budget of tokens for each problem: on more samples, on votes of a verifier, or on no verifier at all.

"When To Solve, When To Verify" (arXiv 2504.01005) finds plain voting ahead of generative verification at equal compute
until the budget is several times what voting needs to level off. Here a finished run says where that point lies for its
own models: from every way of choosing that it measured (evaluation/token_curves.py), the best that the budget pays for.

Of one sample, a plain vote and a verifier, the simplest is recommended that nothing else within the budget beats
beyond the noise: the 95% interval of the paired difference has to leave out zero. Deviation: the paper fits curves
and extends them; nothing is said here beyond what the run has measured, so more samples than it drew are never advised.

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
    """What to do with a budget."""

    budget: float  # tokens for a problem
    chosen: Point
    verify: bool  # whether what is chosen uses a verifier
    plain: Point  # the best without one: one sample or a plain vote
    verified: Point | None  # the best with one; None where the budget pays for none
    gain: Interval | None  # of `verified` over `plain`, paired by problem
    reason: str  # in a few words


@dataclass(frozen=True, slots=True)
class Part:
    """What the problems of one part of a run's test say."""

    name: str  # in_distribution or out_of_distribution
    problems: int
    ways: int  # of choosing, compared on these problems
    voting: Point | None  # the largest plain vote that was measured
    advice: tuple[Advice, ...]  # by rising budget
    notes: tuple[str, ...]  # what the run says of how the tokens were counted


class Measured(Protocol):
    """What is read of a run's metrics: of one part of its test, and of the second part where there is one."""

    @property
    def problems(self) -> int: ...
    @property
    def compute(self) -> Compute | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def out_of_distribution(self) -> Measured | None: ...


def advise(metrics: Measured, budgets: Sequence[float], run: Path) -> list[Part]:
    """What the metrics of a finished run advise for each of `budgets`, or for powers of two, by each part of its test.

    `run` is the run's directory, for messages. A run of several seeds is advised on as one (run/seeds.py). Raises
    DataError for a run without accuracy against tokens, ConfigError for a budget below one sample."""
    parts = [_part("in_distribution", metrics, budgets, run)]
    if metrics.out_of_distribution is not None:
        parts.append(_part("out_of_distribution", metrics.out_of_distribution, budgets, run))
    return parts


def _part(name: str, metrics: Measured, budgets: Sequence[float], place: Path) -> Part:
    found = metrics.compute
    notes = tuple(note for note in metrics.notes if "accuracy against tokens" in note.lower())
    if found is None or not found.splits:
        why = next((note for note in notes if "was not" in note), "")
        raise DataError(
            f"{place / 'metrics.json'} has no accuracy against tokens. {why or 'It is older than that measure.'} "
            f"`stepmark evaluate {place}` measures anew; imported solutions need their `tokens`."
        )
    least, most = found.splits[0].tokens, found.splits[-1].tokens
    if bad := [b for b in budgets if not (b >= least and math.isfinite(b))]:
        raise ConfigError(
            f"--tokens is {', '.join(f'{b:g}' for b in bad)}; one sample takes {least:,.1f} tokens for a problem on "
            f"average: give at least {math.ceil(least)}."
        )
    powers = range(max(0, math.ceil(math.log2(least))), max(0, math.ceil(math.log2(most))) + 1)
    wanted = sorted(set(budgets)) or [2.0**i for i in powers]
    advice = tuple(_advice(b, [s for s in found.splits if s.tokens <= b][-1]) for b in wanted)
    votes = [p for p in found.points if p.method == SELF_CONSISTENCY]
    return Part(name, metrics.problems, len(found.points), votes[-1] if votes else None, advice, notes)


def _advice(budget: float, split: Split) -> Advice:
    one, voting, verified = split.one, split.voting, split.verified
    # A vote that is worse than one sample is nobody's rival.
    plain, gain = one, split.verified_over_one
    if voting is not None and voting.accuracy.mean > one.accuracy.mean:
        plain, gain = voting, split.verified_over_voting
    if verified is not None and _clear(gain):
        why = f"better than {_words(plain)} beyond the noise"
        return Advice(budget, verified, True, plain, verified, gain, why)
    settled = plain is not one and (_clear(split.voting_over_one) or _clear(split.verified_over_one))
    chosen = plain if settled else one
    if verified is None:
        reason = "the budget pays for no verifier"
    elif gain is not None and gain.high < 0:
        reason = f"leave verification out: {_words(plain)} is better than the {_way(verified)}"
    else:
        reason = f"leave verification out: {_words(chosen)} is as good within the noise as the {_way(verified)}"
    return Advice(budget, chosen, False, plain, verified, gain, reason)


def _clear(gain: Interval | None) -> bool:
    return gain is not None and gain.low > 0


def _words(point: Point) -> str:
    return "one sample" if point.n == 1 else "plain voting"


def _way(point: Point) -> str:
    """What to do, in words that can be followed."""
    if point.n == 1:
        return "one sample"
    if point.method == SELF_CONSISTENCY:
        return f"vote of N = {point.n}"
    name, votes = point.method.removeprefix(WEIGHTED), f", K = {point.k}" if point.k else ""
    if point.method == name:
        return f"best of N = {point.n} by {name}{votes}"
    return f"vote of N = {point.n} weighted by {name}{votes}"


def table(found: Sequence[Part]) -> str:
    """The advice for a terminal."""
    return "\n\n".join(map(_table, found))


def _table(part: Part) -> str:
    rows: list[tuple[str, ...]] = [("tokens", "do this", "takes", "accuracy", "and verification")]
    rows += _rows(part.advice)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    said = [
        f"Best use of a budget of tokens for each problem, {part.name.replace('_', ' ')}",
        *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows),
        "",
        "N: candidates of a problem. K: rationales that the verifier writes of each. In percent, with 95% intervals.",
        f"Each is the best that its budget pays for, of {part.ways} ways compared on the same "
        f"{part.problems:,} problems: expect a little less on others.",
    ]
    last = part.voting
    if last is not None and part.advice[-1].budget >= 2 * last.tokens:
        said.append(
            f"Voting was measured up to N = {last.n} ({last.tokens:,.0f} tokens): a larger budget could pay for more "
            "candidates than this run drew."
        )
    return "\n".join([*said, *part.notes])


def _rows(advice: Sequence[Advice]) -> Iterator[tuple[str, ...]]:
    """A row for each budget; neighbours that come to the same share one."""
    for said, group in groupby(advice, _advised):
        same = list(group)
        yield f"{same[0].budget:,.0f}" + (f" to {same[-1].budget:,.0f}" if len(same) > 1 else ""), *said


def _advised(a: Advice) -> tuple[str, str, str, str]:
    return _way(a.chosen), f"{a.chosen.tokens:,.0f}", _share(a.chosen.accuracy), _verification(a)


def _verification(a: Advice) -> str:
    """What it is worth here."""
    if a.verify and a.gain is not None:
        g = a.gain
        worth = f"{100 * g.mean:.1f} points ({100 * g.low:.1f} to {100 * g.high:.1f})"
        return f"leaving it out loses {worth}: {_way(a.plain)}, {100 * a.plain.accuracy.mean:.1f}"
    if a.verified is None or a.gain is None:
        return "leave it out: the budget pays for none"
    gain = f"{100 * a.gain.mean:+.1f} points ({100 * a.gain.low:+.1f} to {100 * a.gain.high:+.1f})"
    return f"leave it out: {_way(a.verified)} has {gain}{'' if a.gain.high < 0 else ', no clear gain'}"


def _share(i: Interval) -> str:
    return f"{100 * i.mean:.1f} ({100 * i.low:.1f}-{100 * i.high:.1f})"

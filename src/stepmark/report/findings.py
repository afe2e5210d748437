"""What the numbers say, in sentences: the headline, and what a careful reader would point out.

Computed from the metrics alone and never rosier than they are: a verifier that loses to plain voting, a difference
within its interval and a curve that falls with more candidates are all said out loud.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from stepmark.report.data import (
    NO_VERIFIER,
    ORACLE,
    PLAIN_VOTE,
    VOTE_BY,
    Difference,
    Metrics,
    phrase,
    verifier_of,
)
from stepmark.report.policies import SFT, Policies
from stepmark.report.reading import Estimate

FALL = 0.02  # a curve that ends this far (as a share) below its own peak has fallen
LOST = ("truncated", "no_answer", "ungradable", "unparsed", "failed")  # how names of rates end that lower all else
RARE = 0.01  # rates of truncated or ungradable work below this are not worth a sentence


def percent(share: float | None, digits: int = 1) -> str:
    """0.953 -> "95.3%"; a dash for what is not a number."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f}%"


def best_method(metrics: Metrics) -> tuple[str, int]:
    """The best way to use a verifier and the N it is judged at: the largest that it shares with plain voting, where
    there is plain voting. ("", N) without any verifier."""
    rows = metrics.best_of_n
    ns = set(rows.get(PLAIN_VOTE) or metrics.ns)
    with_verifier = {m: ns & set(rows[m]) for m in metrics.main_methods if m not in NO_VERIFIER and ns & set(rows[m])}
    if not with_verifier:
        return "", max(ns, default=0)
    n = max(max(shared) for shared in with_verifier.values())
    return max((m for m in with_verifier if n in with_verifier[m]), key=lambda m: rows[m][n].mean), n


def headline(metrics: Metrics) -> str:
    """The result in a sentence or two."""
    best, n = best_method(metrics)
    if not n:
        return "No way of choosing among candidates was evaluated."
    vote = metrics.best_of_n.get(PLAIN_VOTE, {}).get(n)
    of = f"of {metrics.problems:,} problems" if metrics.problems else "of the problems"
    start = f"With {n} candidates" if n != 1 else "With one candidate"
    if not best:
        rest = [f"{phrase(m)} answers {percent(row[n].mean)}" for m, row in _known(metrics) if n in row and m != ORACLE]
        return f"{start} and no verifier, {'; '.join(rest)} {of}." if rest else f"{start}, there is only the oracle."
    mine = metrics.best_of_n[best][n]
    verb = "answer" if best.startswith(VOTE_BY) else "answers"
    if vote is None:
        return f"{start}, {_subject(best)} {verb} {percent(mine.mean)} {of}."
    if mine.mean <= vote.mean:
        many = _rules(metrics) > 1
        lead, other = (
            ("no verifier beats", "the best other way") if many else ("the verifier does not beat", "the other way")
        )
        return (
            f"{start}, {lead} plain voting: voting answers {percent(vote.mean)} {of}; "
            f"{other}, {_subject(best)}, {percent(mine.mean)}.{_doubt(metrics, best, n)}"
        )
    return (
        f"{start}, {_subject(best)} {verb} {percent(mine.mean)} {of}; plain voting answers {percent(vote.mean)}."
        f"{_doubt(metrics, best, n)}"
    )


def findings(metrics: Metrics) -> list[str]:
    """Sentences that belong beside the headline, most important first."""
    best, n = best_method(metrics)
    said = of_policies(metrics)
    ceiling = metrics.best_of_n.get(ORACLE, {})
    if n in ceiling:
        said.append(
            f"Some candidate among {n} is right for {percent(ceiling[n].mean)} of the problems: "
            "no way of choosing among them can do better."
        )
    if _rules(metrics) > 1:
        said.append(
            f"The rule in the headline is the best of {_rules(metrics)} on these same problems; the table has them all."
        )
    said += filter(None, (_fell(m, row, metrics) for m, row in _known(metrics) if m not in NO_VERIFIER))
    if metrics.label_quality:
        rollouts = max(metrics.label_quality)
        accuracy = metrics.label_quality[rollouts].get("accuracy")
        if accuracy is not None:
            said.append(
                f"Labels from {rollouts} rollouts per step agree with the oracle on {percent(accuracy)} of steps."
            )
    for verifier, chosen in metrics.errors_selected.items():
        errors = {kind: share for kind, share in chosen.items() if share >= RARE}
        if verifier == verifier_of(best) and errors:
            kind = max(errors, key=lambda k: errors[k])
            said.append(
                f"Where {verifier} alone chooses among {max(metrics.ns)}, it is most often taken in by “{kind}”: "
                f"{percent(errors[kind])} of the problems, of {percent(sum(chosen.values()))} that it gets wrong."
            )
    for verifier, kinds in metrics.errors_missed.items():
        worst = max((k for k in kinds if k.total), key=lambda k: k.rate, default=None)
        if worst and verifier == verifier_of(best) and worst.missed:
            share = f"{percent(worst.rate, 0)} of {worst.total:,}"
            said.append(f"{verifier} most often misses errors of kind “{worst.kind}”: {share}.")
    lost = [
        f"{k.replace('_', ' ')} {percent(rate)}"
        for k, rate in metrics.rates.items()
        if k.endswith(LOST) and rate >= RARE
    ]
    if lost:
        said.append(f"Candidates that could not count in full: {', '.join(lost)}.")
    return said


def winning(means: Iterable[float]) -> float | None:
    """The highest, or None where all are the same and nobody won."""
    found = set(means)
    return max(found) if len(found) > 1 else None


def difference(metrics: Metrics, left: str, right: str, n: int) -> Difference | None:
    """The paired difference left - right at n, turned round where it is stored the other way."""
    for d in metrics.differences:
        if d.n == n and (d.left, d.right) == (left, right):
            return d
        if d.n == n and (d.left, d.right) == (right, left):
            e = d.estimate
            turned = Estimate(-e.mean, None if e.high is None else -e.high, None if e.low is None else -e.low)
            return Difference(left, right, n, turned)
    return None


def _known(metrics: Metrics) -> list[tuple[str, Mapping[int, Estimate]]]:
    return [(m, metrics.best_of_n[m]) for m in metrics.main_methods]


def _rules(metrics: Metrics) -> int:
    return sum(m not in NO_VERIFIER for m in metrics.main_methods)


def _subject(method: str) -> str:
    if method.startswith(VOTE_BY):
        return f"votes weighted by the verifier {verifier_of(method)}"
    return f"the candidate that the verifier {verifier_of(method)} scores best"


def _doubt(metrics: Metrics, best: str, n: int) -> str:
    d = difference(metrics, best, PLAIN_VOTE, n)
    if d is None or d.clear or not d.estimate.interval:
        return ""
    shares = (d.estimate.mean, *d.estimate.interval)
    mean, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in shares)
    return (
        f" The difference of {mean} points has a 95% interval from {low} to {high}: too wide to tell which is better."
    )


def _fell(method: str, row: Mapping[int, Estimate], metrics: Metrics) -> str:
    if len(row) < 2:
        return ""
    peak, last = max(row, key=lambda n: row[n].mean), max(row)
    if row[peak].mean - row[last].mean < FALL:
        return ""
    vote = metrics.best_of_n.get(PLAIN_VOTE, {}).get(last)
    below = ", below plain voting" if vote and row[last].mean < vote.mean else ""
    words = phrase(method)
    return (
        f"{words[0].upper()}{words[1:]}: accuracy falls from {percent(row[peak].mean)} at N = {peak} to "
        f"{percent(row[last].mean)} at N = {last}{below}: more candidates hold more errors that it does not see."
    )


def of_policies(metrics: Metrics) -> list[str]:
    """What is to be said of reinforcement."""
    found = metrics.policies
    if found is None or SFT not in found.greedy or not found.trained:
        return []
    return [*_winner(found), *_losers(found), *_stopped(found), *_stale(found)]


def _winner(found: Policies) -> Iterator[str]:
    start, best = found.greedy[SFT], found.best
    if best == SFT:
        yield f"Greedily, no policy is better than the generator it started from, which answers {percent(start.mean)}."
        return
    gain = found.difference(best, SFT)
    doubt = f" ({_points(gain)})" if gain is not None else ""
    yield (
        f"Greedily, {best} is best: it answers {percent(found.greedy[best].mean)}, "
        f"the generator it started from {percent(start.mean)}{doubt}."
    )
    rivals = [name for name in found.trained if name != best]
    close = [name for name in rivals if (d := found.difference(best, name)) is not None and not d.clear]
    if close:
        yield f"Whether {best} is better than {_listed(close)} can't be told: the difference is within the noise."


def _losers(found: Policies) -> Iterator[str]:
    for name in found.trained:
        d = found.difference(name, SFT)
        if d is not None and d.mean < 0:
            yield f"{name} ended below the generator: {_points(d)}{'' if d.clear else ', within the noise'}."


def _stopped(found: Policies) -> Iterator[str]:
    for name, course in found.courses.items():
        if course.stopped:
            after = f" after update {course.updates:g}" if course.updates == int(course.updates) else ""
            yield f"{name} stopped early{after}: {course.stopped.rstrip('.')}."


def _stale(found: Policies) -> Iterator[str]:
    """Where a verifier does more harm than good on a policy's samples."""
    for name, pairs in found.after_differences.items():
        for (left, right), row in pairs.items():
            n = max(row, default=1)
            alone = right == PLAIN_VOTE and not left.startswith(VOTE_BY)
            if name != SFT and alone and n > 1 and row[n].mean < 0 and row[n].clear:
                yield f"On samples of {name}, the best of {n} by {left} is below plain voting: {_points(row[n])}."


def _points(e: Estimate) -> str:
    ends = f", 95% interval {100 * e.interval[0]:+.1f} to {100 * e.interval[1]:+.1f}" if e.interval else ""
    return f"{100 * e.mean:+.1f} points{ends}".replace("-", "\u2212")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

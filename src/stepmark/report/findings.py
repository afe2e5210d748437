"""The results in sentences: the headline and the findings.

They are computed from the metrics alone and state bad results too: a verifier that is worse than plain voting, a
difference whose interval contains zero, and an accuracy that falls with more candidates.
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

FALL = 0.02  # a curve whose last accuracy is this far (as a share) below its peak has fallen
LOST = ("truncated", "no_answer", "ungradable", "unparsed", "failed")  # endings of the rates of unusable candidates
RARE = 0.01  # lower rates get no sentence


def percent(share: float | None, digits: int = 1) -> str:
    """0.953 -> "95.3%"; a dash for None and NaN."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f}%"


def best_method(metrics: Metrics) -> tuple[str, int]:
    """The best method with a verifier, and the N at which it is compared: the largest N at which plain voting was
    measured too, if it was measured at all. ("", N) without any verifier."""
    rows = metrics.best_of_n
    ns = set(rows.get(PLAIN_VOTE) or metrics.ns)
    with_verifier = {m: ns & set(rows[m]) for m in metrics.main_methods if m not in NO_VERIFIER and ns & set(rows[m])}
    if not with_verifier:
        return "", max(ns, default=0)
    n = max(max(shared) for shared in with_verifier.values())
    return max((m for m in with_verifier if n in with_verifier[m]), key=lambda m: rows[m][n].mean), n


def headline(metrics: Metrics) -> str:
    """The result in one sentence, short enough for one line of a wide page."""
    best, n = best_method(metrics)
    if not n:
        return "No way of choosing among candidates was evaluated."
    vote = metrics.best_of_n.get(PLAIN_VOTE, {}).get(n)
    start = f"With {n} candidates" if n != 1 else "With one candidate"
    if not best:
        measured = [(m, row[n].mean) for m, row in _main_rows(metrics) if n in row and m != ORACLE]
        answers = ", ".join(
            f"{phrase(m)} {'answers ' if not i else ''}{percent(x)}" for i, (m, x) in enumerate(measured)
        )
        return f"{start} and no verifier, {answers}." if answers else f"{start}, there is only the oracle."
    chosen = metrics.best_of_n[best][n]
    subject, verb = (phrase(best), "answer") if best.startswith(VOTE_BY) else (f"the {phrase(best)}", "answers")
    if vote is None:
        return f"{start}, {subject} {verb} {percent(chosen.mean)}."
    doubt = ": within the noise" if _doubt(metrics, best, n) else ""
    if chosen.mean > vote.mean:
        return f"{start}, {subject} {verb} {percent(chosen.mean)}, plain voting {percent(vote.mean)}{doubt}."
    lead = "no verifier beats" if _rules(metrics) > 1 else "the verifier does not beat"
    return f"{start}, {lead} plain voting: {percent(vote.mean)}, {subject} {percent(chosen.mean)}."


def findings(metrics: Metrics) -> list[str]:
    """The sentences below the headline, most important first."""
    best, n = best_method(metrics)
    sentences = of_policies(metrics)
    if doubt := _doubt(metrics, best, n):
        sentences.append(doubt)
    ceiling = metrics.best_of_n.get(ORACLE, {})
    if n in ceiling:
        sentences.append(
            f"Some candidate among {n} is right for {percent(ceiling[n].mean)} of the problems: "
            "no way of choosing among them can do better."
        )
    if _rules(metrics) > 1:
        sentences.append(
            f"The rule in the headline is the best of {_rules(metrics)} on these same problems; the table has them all."
        )
    sentences += filter(
        None, (_fall_sentence(m, row, metrics) for m, row in _main_rows(metrics) if m not in NO_VERIFIER)
    )
    if metrics.label_quality:
        rollouts = max(metrics.label_quality)
        accuracy = metrics.label_quality[rollouts].get("accuracy")
        if accuracy is not None:
            sentences.append(
                f"Labels from {rollouts} rollouts per step agree with the oracle on {percent(accuracy)} of steps."
            )
    for verifier, chosen in metrics.errors_selected.items():
        errors = {kind: share for kind, share in chosen.items() if share >= RARE}
        if verifier == verifier_of(best) and errors:
            kind = max(errors, key=lambda k: errors[k])
            sentences.append(
                f"Where {verifier} alone chooses among {max(metrics.ns)}, it is most often taken in by “{kind}”: "
                f"{percent(errors[kind])} of the problems, of {percent(sum(chosen.values()))} that it gets wrong."
            )
    for verifier, kinds in metrics.errors_missed.items():
        worst = max((k for k in kinds if k.total), key=lambda k: k.rate, default=None)
        if worst and verifier == verifier_of(best) and worst.missed:
            share = f"{percent(worst.rate, 0)} of {worst.total:,}"
            sentences.append(f"{verifier} most often misses errors of kind “{worst.kind}”: {share}.")
    lost = [
        f"{k.replace('_', ' ')} {percent(rate)}"
        for k, rate in metrics.rates.items()
        if k.endswith(LOST) and rate >= RARE
    ]
    if lost:
        sentences.append(f"Candidates that could not count in full: {', '.join(lost)}.")
    return sentences


def winning(means: Iterable[float]) -> float | None:
    """The highest mean, or None if all are equal."""
    distinct = set(means)
    return max(distinct) if len(distinct) > 1 else None


def difference(metrics: Metrics, left: str, right: str, n: int) -> Difference | None:
    """The paired difference left - right at n; if right - left is stored, its negative."""
    for d in metrics.differences:
        if d.n == n and (d.left, d.right) == (left, right):
            return d
        if d.n == n and (d.left, d.right) == (right, left):
            e = d.estimate
            estimate = Estimate(-e.mean, None if e.high is None else -e.high, None if e.low is None else -e.low)
            return Difference(left, right, n, estimate)
    return None


def _main_rows(metrics: Metrics) -> list[tuple[str, Mapping[int, Estimate]]]:
    return [(m, metrics.best_of_n[m]) for m in metrics.main_methods]


def _rules(metrics: Metrics) -> int:
    return sum(m not in NO_VERIFIER for m in metrics.main_methods)


def _doubt(metrics: Metrics, best: str, n: int) -> str:
    """A sentence on the headline's difference, where it is within the noise; "" otherwise."""
    d = difference(metrics, best, PLAIN_VOTE, n)
    if d is None or d.clear or not d.estimate.interval:
        return ""
    shares = (d.estimate.mean, *d.estimate.interval)
    mean, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in shares)
    return (
        f"{_first_upper(phrase(best))} minus plain voting: {mean} points, with a 95% interval from {low} to {high}, "
        "too wide to tell which is better."
    )


def _fall_sentence(method: str, row: Mapping[int, Estimate], metrics: Metrics) -> str:
    if len(row) < 2:
        return ""
    peak, last = max(row, key=lambda n: row[n].mean), max(row)
    if row[peak].mean - row[last].mean < FALL:
        return ""
    vote = metrics.best_of_n.get(PLAIN_VOTE, {}).get(last)
    below = ", below plain voting" if vote and row[last].mean < vote.mean else ""
    return (
        f"{_first_upper(phrase(method))}: accuracy falls from {percent(row[peak].mean)} at N = {peak} to "
        f"{percent(row[last].mean)} at N = {last}{below}: more candidates hold more errors that it does not see."
    )


def _first_upper(words: str) -> str:
    return words[:1].upper() + words[1:]


def of_policies(metrics: Metrics) -> list[str]:
    """The sentences about reinforcement."""
    policies = metrics.policies
    if policies is None or SFT not in policies.greedy or not policies.trained:
        return []
    return [*_winner(policies), *_losers(policies), *_stopped(policies), *_stale(policies)]


def _winner(policies: Policies) -> Iterator[str]:
    before, best = policies.greedy[SFT], policies.best
    if best == SFT:
        yield f"Greedily, no policy is better than the generator it started from, which answers {percent(before.mean)}."
        return
    gain = policies.difference(best, SFT)
    doubt = f" ({_points(gain)})" if gain is not None else ""
    yield (
        f"Greedily, {best} is best: it answers {percent(policies.greedy[best].mean)}, "
        f"the generator it started from {percent(before.mean)}{doubt}."
    )
    rivals = [name for name in policies.trained if name != best]
    close = [name for name in rivals if (d := policies.difference(best, name)) is not None and not d.clear]
    if close:
        yield f"Whether {best} is better than {_joined(close)} can't be told: the difference is within the noise."


def _losers(policies: Policies) -> Iterator[str]:
    for name in policies.trained:
        d = policies.difference(name, SFT)
        if d is not None and d.mean < 0:
            yield f"{name} ended below the generator: {_points(d)}{'' if d.clear else ', within the noise'}."


def _stopped(policies: Policies) -> Iterator[str]:
    for name, course in policies.courses.items():
        if course.stopped:
            after = f" after update {course.updates:g}" if course.updates == int(course.updates) else ""
            yield f"{name} stopped early{after}: {course.stopped.rstrip('.')}."


def _stale(policies: Policies) -> Iterator[str]:
    """The verifiers that are worse than plain voting on a policy's samples."""
    for name, pairs in policies.after_differences.items():
        for (left, right), row in pairs.items():
            n = max(row, default=1)
            alone = right == PLAIN_VOTE and not left.startswith(VOTE_BY)
            if name != SFT and alone and n > 1 and row[n].mean < 0 and row[n].clear:
                yield f"On samples of {name}, the best of {n} by {left} is below plain voting: {_points(row[n])}."


def _points(e: Estimate) -> str:
    interval = f", 95% interval {100 * e.interval[0]:+.1f} to {100 * e.interval[1]:+.1f}" if e.interval else ""
    return f"{100 * e.mean:+.1f} points{interval}".replace("-", "\u2212")


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

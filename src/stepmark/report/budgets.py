"""The report's sections about inference-time compute: accuracy by number of votes, accuracy by tokens,
and the counts of rationales. Each returns "" when its part of the metrics is missing.

    stepmark report runs/genrm_last_letter
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepmark.evaluation.stats import Interval
from stepmark.evaluation.token_curves import Point, Split
from stepmark.report import charts
from stepmark.report.charts import GREY, INK, Line
from stepmark.report.data import ONE_SAMPLE, PLAIN_VOTE, VOTE_BY, Metrics, phrase
from stepmark.report.markup import Child, Html, h, join
from stepmark.report.reading import Estimate
from stepmark.report.results import grid, sentences, share_of, signed_points, verifiers_of

KNOWN = (
    "asked",
    "kept",
    "rewritten",
    "kept_yes",
    "kept_no",
    "unasked",
    "failed",
    "truncated",
    "unparsed",
    "mismatch",
    "leak",
)


def votes(m: Metrics) -> Html:
    """Accuracy by number of votes, with plain voting over the same candidates as the baseline."""
    if not m.votes:
        return Html("")
    n = max(m.ns, default=0)
    verifiers = verifiers_of(m)
    ks = sorted({k for curve in m.votes.values() for k in curve})
    lines = [Line(name, tuple(sorted(curve.items())), _colour(name, verifiers)) for name, curve in m.votes.items()]
    vote = m.best_of_n.get(PLAIN_VOTE, {}).get(n)
    if vote is not None:
        level = tuple((k, Estimate(vote.mean)) for k in ks)
        lines.append(Line(phrase(PLAIN_VOTE), level, INK, "dotted", markers=False))
    title = f"Accuracy of the best of {n} by number of votes"
    chart = charts.chart(lines, title=title, x_label="K rationales for each candidate") if len(ks) > 1 else Html("")
    rows: list[list[Child]] = [[name, *(share_of(curve.get(k)) for k in ks)] for name, curve in m.votes.items()]
    caption = f"The best of {n} candidates when K of the stored votes count, in percent, with 95% intervals."
    return join([h("figure", chart) if chart else None, grid(["K votes", *map(str, ks)], rows, caption)])


def tokens(m: Metrics) -> Html:
    """Accuracy by tokens: the best that each verifier, and plain voting, reach within a budget."""
    measured = m.compute
    if measured is None or not measured.points:
        return Html("")
    verifiers = list(measured.splits_by_verifier)
    plain = [p for p in measured.points if p.method in (ONE_SAMPLE, PLAIN_VOTE)]
    lines = [Line(phrase(PLAIN_VOTE), _rising(plain), INK)]
    for name in verifiers:
        of_verifier = [p for p in measured.points if p.method in (name, VOTE_BY + name)]
        lines.append(Line(name, _rising(of_verifier), _colour(name, verifiers)))
    front = [p for p in measured.points if p.front]
    lines.append(
        Line("best of all", tuple((p.tokens, Estimate(p.accuracy.mean)) for p in front), GREY, "dotted", False)
    )
    chart = charts.chart(lines, title="Accuracy by tokens", x_label="tokens for a problem", scale="log")
    note = (
        "Every line is the best that its way of choosing reaches with that many tokens or fewer, alone or weighting "
        "votes, over all N and K. Tokens: generated for the candidates, read and written to verify them."
    )
    remarks = [_worthwhile_from(name, measured.splits_by_verifier[name]) for name in verifiers]
    if (
        verifiers
        and (votes := [p for p in plain if p.method == PLAIN_VOTE])
        and votes[-1].tokens < measured.points[-1].tokens
    ):
        last = votes[-1]
        remarks.append(
            f"Plain voting was measured up to N = {last.n}, {last.tokens:,.0f} tokens: more might still help it."
        )
    return join([h("figure", chart, h("figcaption", note)), sentences(remarks), _equal_tokens(m, verifiers)])


def _worthwhile_from(name: str, splits: Sequence[Split]) -> str:
    """A sentence on the budget from which on verifying is better than no verifier."""
    clear_gains = [(s.tokens, gain.low > 0) for s in splits if (gain := _gain(s)) is not None]
    start = None
    for budget, clear in reversed(clear_gains):
        if not clear:
            break
        start = budget
    if start is not None:
        return f"{name}: from {start:,.0f} tokens on, better than no verifier at equal tokens, beyond the noise."
    if any(clear for _, clear in clear_gains):
        return f"{name}: better than no verifier at equal tokens at some budgets, but not at the largest."
    return f"{name}: at no budget better than no verifier at equal tokens, beyond the noise."


def _equal_tokens(m: Metrics, verifiers: Sequence[str]) -> Html:
    """The best accuracy within each budget, without a verifier and with each of them."""
    assert m.compute is not None
    splits = m.compute.splits
    if not splits or not verifiers:
        return Html("")
    first, last = math.ceil(math.log2(max(1.0, splits[0].tokens))), math.ceil(math.log2(max(1.0, splits[-1].tokens)))

    def row(budget: float) -> list[Child]:
        split = [s for s in splits if s.tokens <= budget][-1]
        best = (
            split.one if split.voting is None or split.voting.accuracy.mean <= split.one.accuracy.mean else split.voting
        )
        cells: list[Child] = [f"{budget:,.0f}", _cell(best, None)]
        for name in verifiers:
            known = [s for s in m.compute.splits_by_verifier[name] if s.tokens <= budget][-1:] if m.compute else []
            cells.append(_cell(known[0].verified, _gain(known[0])) if known else "–")
        return cells

    caption = (
        "The best within each budget of tokens, in percent, chosen on these same problems. Below each verifier: its "
        "gain over the best without one, in points, with the 95% paired interval. Marked: a gain beyond the noise."
    )
    return grid(["Tokens", "no verifier", *verifiers], (row(2.0**i) for i in range(first, last + 1)), caption)


def _gain(s: Split) -> Interval | None:
    if s.voting is None or s.voting.accuracy.mean <= s.one.accuracy.mean:
        return s.verified_over_one
    return s.verified_over_voting


def _cell(point: Point | None, gain: Interval | None) -> Html:
    if point is None:
        return h("td", "–")
    method = f"{'vote, ' if point.method.startswith(VOTE_BY) else ''}N {point.n}{f', K {point.k}' if point.k else ''}"
    parts: list[Child] = [f"{100 * point.accuracy.mean:.1f} ", h("small", method)]
    if gain is not None:
        parts.append(h("div", signed_points(Estimate(gain.mean, gain.low, gain.high))))
    return h("td", *parts, class_="best" if gain is not None and gain.low > 0 else None)


def rationales(m: Metrics) -> Html:
    """The counts of rationales that were written as training data: kept, rewritten, and lost by reason."""
    if not m.rationales:
        return Html("")
    columns = [k for k in KNOWN if any(counts.get(k) for counts in m.rationales.values())]
    all_columns = [*columns, *sorted({k for counts in m.rationales.values() for k in counts} - set(KNOWN))]

    def cell(counts: dict[str, int], column: str) -> Child:
        share = f"{counts.get(column, 0) / counts['asked']:.0%}" if counts.get("asked") and column != "asked" else None
        return h("td", f"{counts.get(column, 0):,} ", h("small", share) if share else None)

    rows: list[list[Child]] = [[source, *(cell(dict(c), k) for k in all_columns)] for source, c in m.rationales.items()]
    caption = (
        "Verifications written for training, by who wrote them. Kept ones say yes or no, and some were rewritten "
        "because they leaned on the reference; the others were lost for the reason that is named."
    )
    return grid(["Written by", *(k.replace("_", " ") for k in all_columns)], rows, caption)


def _rising(points: Sequence[Point]) -> tuple[tuple[float, Estimate], ...]:
    """The points that are better than every cheaper one. The line is extended to the largest number of tokens."""
    rising: list[tuple[float, Estimate]] = []
    for p in points:
        if not rising or p.accuracy.mean > rising[-1][1].mean:
            rising.append((p.tokens, Estimate(p.accuracy.mean, p.accuracy.low, p.accuracy.high)))
    if rising and points[-1].tokens > rising[-1][0]:
        rising.append((points[-1].tokens, rising[-1][1]))
    return tuple(rising)


def _colour(name: str, verifiers: Sequence[str]) -> str:
    return str(verifiers.index(name) % 7) if name in verifiers else GREY

"""The report's sections about inference-time compute: the votes curve, accuracy against tokens, what became of
rationales. Each returns "" when its part is missing.

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
    """Accuracy by number of votes, with plain voting over as many candidates as the line to beat."""
    if not m.votes:
        return Html("")
    n = max(m.ns, default=0)
    known = verifiers_of(m)
    ks = sorted({k for curve in m.votes.values() for k in curve})
    drawn = [Line(name, tuple(sorted(curve.items())), _colour(name, known)) for name, curve in m.votes.items()]
    vote = m.best_of_n.get(PLAIN_VOTE, {}).get(n)
    if vote is not None:
        level = tuple((k, Estimate(vote.mean)) for k in ks)
        drawn.append(Line(phrase(PLAIN_VOTE), level, INK, "dotted", markers=False))
    title = f"Accuracy of the best of {n} by number of votes"
    chart = charts.chart(drawn, title=title, x_label="K rationales for each candidate") if len(ks) > 1 else Html("")
    rows: list[list[Child]] = [[name, *(share_of(curve.get(k)) for k in ks)] for name, curve in m.votes.items()]
    caption = f"The best of {n} candidates when K of the stored votes count, in percent, with 95% intervals."
    return join([h("figure", chart) if chart else None, grid(["K votes", *map(str, ks)], rows, caption)])


def tokens(m: Metrics) -> Html:
    """Accuracy against tokens: the best that each verifier, and voting, reach for as much or less."""
    found = m.compute
    if found is None or not found.points:
        return Html("")
    known = list(found.splits_by_verifier)
    plain = [p for p in found.points if p.method in (ONE_SAMPLE, PLAIN_VOTE)]
    lines = [Line(phrase(PLAIN_VOTE), _rising(plain), INK)]
    for name in known:
        mine = [p for p in found.points if p.method in (name, VOTE_BY + name)]
        lines.append(Line(name, _rising(mine), _colour(name, known)))
    front = [p for p in found.points if p.front]
    lines.append(
        Line("best of all", tuple((p.tokens, Estimate(p.accuracy.mean)) for p in front), GREY, "dotted", False)
    )
    chart = charts.chart(lines, title="Accuracy by tokens", x_label="tokens for a problem")
    note = (
        "Every line is the best that its way of choosing reaches with that many tokens or fewer, alone or weighting "
        "votes, over all N and K. Tokens: generated for the candidates, read and written to verify them."
    )
    said = [_since(name, found.splits_by_verifier[name]) for name in known]
    if known and (votes := [p for p in plain if p.method == PLAIN_VOTE]) and votes[-1].tokens < found.points[-1].tokens:
        end = votes[-1]
        said.append(f"Plain voting was measured up to N = {end.n}, {end.tokens:,.0f} tokens: more might still help it.")
    return join([h("figure", chart, h("figcaption", note)), sentences(said), _equal(m, known)])


def _since(name: str, splits: Sequence[Split]) -> str:
    """From which budget on it pays to verify, in a sentence."""
    paid = [(s.tokens, gain.low > 0) for s in splits if (gain := _gain(s)) is not None]
    start = None
    for budget, clear in reversed(paid):
        if not clear:
            break
        start = budget
    if start is not None:
        return f"{name}: from {start:,.0f} tokens on, better than no verifier at equal tokens, beyond the noise."
    if any(clear for _, clear in paid):
        return f"{name}: better than no verifier at equal tokens at some budgets, but not at the largest."
    return f"{name}: at no budget better than no verifier at equal tokens, beyond the noise."


def _equal(m: Metrics, known: Sequence[str]) -> Html:
    """What each budget buys without a verifier and with each of them."""
    assert m.compute is not None
    splits = m.compute.splits
    if not splits or not known:
        return Html("")
    first, last = math.ceil(math.log2(max(1.0, splits[0].tokens))), math.ceil(math.log2(max(1.0, splits[-1].tokens)))

    def row(budget: float) -> list[Child]:
        at = [s for s in splits if s.tokens <= budget][-1]
        best = at.one if at.voting is None or at.voting.accuracy.mean <= at.one.accuracy.mean else at.voting
        cells: list[Child] = [f"{budget:,.0f}", _cell(best, None)]
        for name in known:
            mine = [s for s in m.compute.splits_by_verifier[name] if s.tokens <= budget][-1:] if m.compute else []
            cells.append(_cell(mine[0].verified, _gain(mine[0])) if mine else "–")
        return cells

    caption = (
        "The best within each budget of tokens, in percent, chosen on these same problems. Below each verifier: its "
        "gain over the best without one, in points, with the 95% paired interval. Marked: a gain beyond the noise."
    )
    return grid(["Tokens", "no verifier", *known], (row(2.0**i) for i in range(first, last + 1)), caption)


def _gain(s: Split) -> Interval | None:
    if s.voting is None or s.voting.accuracy.mean <= s.one.accuracy.mean:
        return s.verified_over_one
    return s.verified_over_voting


def _cell(point: Point | None, gain: Interval | None) -> Html:
    if point is None:
        return h("td", "–")
    way = f"{'vote, ' if point.method.startswith(VOTE_BY) else ''}N {point.n}{f', K {point.k}' if point.k else ''}"
    parts: list[Child] = [f"{100 * point.accuracy.mean:.1f} ", h("small", way)]
    if gain is not None:
        parts.append(h("div", signed_points(Estimate(gain.mean, gain.low, gain.high))))
    return h("td", *parts, class_="best" if gain is not None and gain.low > 0 else None)


def rationales(m: Metrics) -> Html:
    """What became of the written verifications that verifiers could learn from."""
    if not m.rationales:
        return Html("")
    known = [k for k in KNOWN if any(counts.get(k) for counts in m.rationales.values())]
    kinds = [*known, *sorted({k for counts in m.rationales.values() for k in counts} - set(KNOWN))]

    def cell(counts: dict[str, int], kind: str) -> Child:
        share = f"{counts.get(kind, 0) / counts['asked']:.0%}" if counts.get("asked") and kind != "asked" else None
        return h("td", f"{counts.get(kind, 0):,} ", h("small", share) if share else None)

    rows: list[list[Child]] = [[source, *(cell(dict(c), k) for k in kinds)] for source, c in m.rationales.items()]
    caption = (
        "Verifications written for training, by who wrote them. Kept ones say yes or no, and some were rewritten "
        "because they leaned on the reference; the others were lost for the reason that is named."
    )
    return grid(["Written by", *(k.replace("_", " ") for k in kinds)], rows, caption)


def _rising(points: Sequence[Point]) -> tuple[tuple[float, Estimate], ...]:
    """Those that are better than every cheaper one, and the dearest: the line ends where the budget does."""
    kept: list[tuple[float, Estimate]] = []
    for p in points:
        if not kept or p.accuracy.mean > kept[-1][1].mean:
            kept.append((p.tokens, Estimate(p.accuracy.mean, p.accuracy.low, p.accuracy.high)))
    if kept and points[-1].tokens > kept[-1][0]:
        kept.append((points[-1].tokens, kept[-1][1]))
    return tuple(kept)


def _colour(name: str, known: Sequence[str]) -> str:
    return str(known.index(name) % 7) if name in known else GREY

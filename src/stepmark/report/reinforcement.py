"""The report's section about reinforcement: how good the policies are, how their training went, and what votes and
verifiers add before and after. Each part is "" when what it shows is missing.

Reward beside true accuracy is the point of it: a policy that cheats its verifier shows in no other way.

    stepmark report runs/reinforce_arithmetic
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepmark.report import charts
from stepmark.report.charts import GREY, INK, Line
from stepmark.report.data import ONE_SAMPLE, ORACLE, PLAIN_VOTE, VOTE_BY, Metrics, phrase, verifier_of
from stepmark.report.findings import winning
from stepmark.report.markup import Child, Html, h, join
from stepmark.report.policies import SFT, Course, Curve, Policies
from stepmark.report.reading import Estimate
from stepmark.report.results import clock, grid, share_of, signed_points

GREEDY = "greedy"  # as the second of a difference: the policy's greedy answers


def section(m: Metrics) -> Html:
    """All of it."""
    found = m.policies
    if found is None:
        return Html("")
    return join([_greedy(found), _pairs(found), _overlay(found), _courses(found), _before_and_after(found)])


# ---- how good they are ----


def _greedy(found: Policies) -> Html:
    top = winning(e.mean for e in found.greedy.values())

    def row(name: str) -> list[Child]:
        e, course = found.greedy[name], found.courses.get(name)
        gain = found.difference(name, SFT)
        cells: list[Child] = [
            _name(name, course),
            h("td", share_of(e), class_="best" if e.mean == top else None),
            "–" if gain is None else h("td", signed_points(gain), class_="best" if gain.clear else None),
        ]
        if course is None:
            return [*cells, *["–"] * 4]
        return [*cells, _updates(course), f"{course.tokens:,.0f}", clock(course.seconds), _kl(course)]

    caption = (
        "Problems of the test answered right greedily, in percent, with 95% intervals, and the paired difference from "
        "the generator in points. Marked: the best, and differences whose interval leaves out zero."
    )
    head = ["Policy", "greedy", f"− {SFT}", "updates", "tokens drawn", "time", "KL, nats a token"]
    return grid(head, map(row, found.greedy), caption)


def _name(name: str, course: Course | None) -> Html:
    return join([name, " ", h("code", course.method if course else "the generator")])


def _updates(course: Course) -> Html:
    handed = "" if course.best == course.updates else f"handed on: {_number(course.best)}"
    return join([_number(course.updates), h("small", handed) if handed else None], " ")


def _kl(course: Course) -> str:
    return "–" if course.kl is None else f"{course.kl:.3f}"


def _pairs(found: Policies) -> Html:
    """Every policy against every other."""
    names = found.trained
    if len(names) < 2:
        return Html("")

    def cell(left: str, right: str) -> Child:
        e = found.difference(left, right)
        return "–" if left == right or e is None else h("td", signed_points(e), class_="best" if e.clear else None)

    rows: list[list[Child]] = [[left, *(cell(left, right) for right in names)] for left in names]
    caption = "The policy of the row less that of the column, greedily, in points, with 95% paired intervals."
    return grid(["", *(f"− {name}" for name in names)], rows, caption)


# ---- how their training went ----


def _overlay(found: Policies) -> Html:
    """True accuracy of all policies on held-out problems, on one axis."""
    lines = [Line(name, _estimates(points), _colour(found, name)) for name, points in found.accuracies.items()]
    drawn = charts.chart(lines, title="True accuracy on held-out problems", x_label="updates", log2_x=False, share=True)
    note = "Greedy accuracy on held-out problems, which the guards look at."
    return h("figure", drawn, h("figcaption", note)) if drawn else Html("")


def _courses(found: Policies) -> Html:
    """For each policy its reward beside its true accuracy, and why it ended."""
    figures: list[Child] = []
    for name in found.trained:
        colour, course = _colour(found, name), found.courses.get(name)
        rewards = _small(name, "reward", found.rewards, found.rewards_by_seed, colour, share=False)
        true = _small(name, "true accuracy", found.accuracies, found.accuracies_by_seed, INK, share=True, course=course)
        if rewards or true:
            ended = h("p", _ended(course), class_="dim") if course is not None else None
            pair = h("div", *(x for x in (rewards, true) if x), class_="multiples")
            figures.append(h("div", h("h3", name), ended, pair, class_="course"))
    if not figures:
        return Html("")
    note = (
        "Left what a policy earned with its own attempts, right how many held-out problems it answered right greedily. "
        "Reward that rises while accuracy falls is a verifier that is being cheated."
    )
    return join([h("p", note, class_="dim"), h("div", *figures, class_="courses")])


def _small(
    name: str,
    what: str,
    curves: Mapping[str, Curve],
    by_seed: Mapping[str, Mapping[str, Curve]],
    colour: str,
    *,
    share: bool,
    course: Course | None = None,
) -> Html:
    if name not in curves:
        return Html("")
    seeds = by_seed.get(name, {})
    lines = [Line("each seed", _thin(points), GREY, markers=False) for points in seeds.values()]
    kept = curves[name]
    label = "mean" if seeds else what
    lines.append(Line(label, _thin(kept), colour, markers=len(kept) <= 24))
    if course is not None and not seeds:
        lines += [Line("handed on", ((x, Estimate(y)),), "1") for x, y in kept if x == course.best]
    return charts.small(lines, title=what, x_label="updates", share=share)


def _ended(course: Course) -> str:
    many = f"{_number(course.updates)} update{'s' * (course.updates != 1)}"
    whole = course.best.is_integer() and course.updates.is_integer()
    best = f"update {_number(course.best)}{'' if whole else ' (means over seeds)'}"
    if course.stopped:
        return f"Stopped early after {many}, handed on {best}: {course.stopped}"
    best = "the last" if course.best == course.updates else f"{best}, the best on held-out problems"
    return f"{many} as planned; handed on: {best}."


def _number(updates: float) -> str:
    """Of one run a whole number, of several seeds a mean."""
    return f"{updates:.0f}" if updates.is_integer() else f"{updates:.1f}"


# ---- what votes and verifiers add ----


def _before_and_after(found: Policies) -> Html:
    if not found.after:
        return Html("")
    verifiers = list(dict.fromkeys(verifier_of(m) for rows in found.after.values() for m in rows))
    verifiers = [v for v in verifiers if v]
    n = max(n for rows in found.after.values() for row in rows.values() for n in row)
    names = [name for name in found.greedy if name in found.after]
    methods = _methods(found, verifiers)

    def best(name: str) -> float | None:
        rows = found.after[name]
        return winning(rows[m][n].mean for m in rows if m != ORACLE and n in rows[m])

    def row(method: str) -> list[Child]:
        words = phrase(method)
        cells: list[Child] = [words[0].upper() + words[1:]]
        for name in names:
            e = found.after[name].get(method, {}).get(n)
            won = e is not None and method != ORACLE and e.mean == best(name)
            cells.append(h("td", share_of(e), class_="best" if won else None))
        return cells

    first: list[Child] = ["Greedy", *(share_of(found.greedy[name]) for name in names)]
    caption = (
        f"What comes of {n} samples of each policy, in percent: {SFT} is the generator before reinforcement. Marked: "
        "the best way of choosing for each policy, the oracle aside."
    )
    table = grid([f"N = {n}", *names], [first, *map(row, methods)], caption)
    title = h("h3", "Votes and verifiers, before and after")
    return join([title, table, _by_n(found, names, verifiers), _details(found, names)])


def _methods(found: Policies, verifiers: Sequence[str]) -> list[str]:
    there = {m for rows in found.after.values() for m in rows}
    order = [ONE_SAMPLE, PLAIN_VOTE, *(m for v in verifiers for m in (v, VOTE_BY + v)), ORACLE]
    return [m for m in order if m in there]


def _by_n(found: Policies, names: Sequence[str], verifiers: Sequence[str]) -> Html:
    """One small chart for each policy, on one key."""

    def lines(name: str) -> list[Line]:
        drawn = []
        for method in _methods(found, verifiers):
            row = found.after[name].get(method)
            if row is None or len(row) < 2:
                continue
            colour, dash = _look(method, verifiers)
            points = tuple((float(n), Estimate(e.mean)) for n, e in sorted(row.items()))
            drawn.append(Line(phrase(method), points, colour, dash, markers=False))
        return drawn

    each = {name: lines(name) for name in names}
    drawn = [
        charts.small(each[name], title=name, x_label="N candidates", log2_x=True, share=True, keyed=False)
        for name in names
        if each[name]
    ]
    if not drawn:
        return Html("")
    key = charts.legend(max(each.values(), key=len))
    return h("figure", h("div", *drawn, class_="multiples"), key)


def _look(method: str, verifiers: Sequence[str]) -> tuple[str, str]:
    """Colour and dash, as in the chart of accuracies by N."""
    name = verifier_of(method)
    if name:
        return str(verifiers.index(name) % 7), "solid" if method.startswith(VOTE_BY) else "dashed"
    return (INK, "solid") if method == PLAIN_VOTE else (GREY, "dotted" if method == ORACLE else "solid")


def _details(found: Policies, names: Sequence[str]) -> Html:
    """Every difference that was measured, policy by policy."""
    parts: list[Html] = []
    for name in names:
        pairs = found.after_differences.get(name)
        if not pairs:
            continue
        ns = sorted({n for row in pairs.values() for n in row})

        def cell(e: Estimate | None) -> Child:
            return "–" if e is None else h("td", signed_points(e), class_="best" if e.clear else None)

        rows: list[list[Child]] = [
            [_said(left, right), *(cell(row.get(n)) for n in ns)] for (left, right), row in pairs.items()
        ]
        caption = "Percentage points on the same problems, with 95% paired intervals."
        table = grid(["Difference at N =", *map(str, ns)], rows, caption)
        parts.append(h("details", h("summary", f"{name}: differences"), table))
    return join(parts)


def _said(left: str, right: str) -> str:
    if right == GREEDY:
        return f"{phrase(left)} − its greedy answer"
    if right == SFT:
        return f"{phrase(left)} − the same on samples of {SFT}"
    return f"{phrase(left)} − {phrase(right)}"


# ---- small words ----


def _estimates(points: Curve) -> tuple[tuple[float, Estimate], ...]:
    return tuple((x, Estimate(y)) for x, y in points)


def _thin(points: Curve) -> tuple[tuple[float, Estimate], ...]:
    return _estimates(tuple(charts.thin(points)))


def _colour(found: Policies, name: str) -> str:
    return str(found.trained.index(name) % 7) if name in found.trained else GREY

"""The report's section about reinforcement: the accuracy of the policies, the course of their training, and the gain by
votes and verifiers before and after. Each part is "" when its data is missing.

The main charts show the reward beside the true accuracy, because over-optimisation shows only there.

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

FOLDED = 3  # with more policies than this, the charts of what they explored are folded
EXPLORED_TITLES = {
    "same_reward": "prompts, all attempts earning the same",
    "empty": "empty attempts",
    "truncated": "attempts out of tokens",
    "entropy": "entropy, nats a token",
}
GREEDY = "greedy"  # the second name of a difference from the policy's greedy answers


def section(m: Metrics) -> Html:
    """The whole section."""
    policies = m.policies
    if policies is None:
        return Html("")
    return join(
        [_greedy(policies), _pairs(policies), _overlay(policies), _courses(policies), _before_and_after(policies)]
    )


# ---- accuracy ----


def _greedy(policies: Policies) -> Html:
    best = winning(e.mean for e in policies.greedy.values())

    def row(name: str) -> list[Child]:
        e, course = policies.greedy[name], policies.courses.get(name)
        gain = policies.difference(name, SFT)
        cells: list[Child] = [
            _name(name, course),
            h("td", share_of(e), class_="best" if e.mean == best else None),
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
    return grid(head, map(row, policies.greedy), caption)


def _name(name: str, course: Course | None) -> Html:
    return join([name, " ", h("code", course.method if course else "the generator")])


def _updates(course: Course) -> Html:
    handed_on = "" if course.best == course.updates else f"handed on: {_number(course.best)}"
    return join([_number(course.updates), h("small", handed_on) if handed_on else None], " ")


def _kl(course: Course) -> str:
    return "–" if course.kl is None else f"{course.kl:.3f}"


def _pairs(policies: Policies) -> Html:
    """The differences of all pairs of policies."""
    names = policies.trained
    if len(names) < 2:
        return Html("")

    def cell(left: str, right: str) -> Child:
        e = policies.difference(left, right)
        return "–" if left == right or e is None else h("td", signed_points(e), class_="best" if e.clear else None)

    rows: list[list[Child]] = [[left, *(cell(left, right) for right in names)] for left in names]
    caption = "The policy of the row less that of the column, greedily, in points, with 95% paired intervals."
    return grid(["", *(f"− {name}" for name in names)], rows, caption)


# ---- the course of training ----


def _overlay(policies: Policies) -> Html:
    """The true accuracy of all policies on held-out problems, in one chart."""
    lines = [Line(name, _estimates(points), _colour(policies, name)) for name, points in policies.accuracies.items()]
    chart = charts.chart(
        lines, title="True accuracy on held-out problems", x_label="updates", scale="linear", share=True
    )
    note = "Greedy accuracy on held-out problems, which the guards look at."
    return h("figure", chart, h("figcaption", note)) if chart else Html("")


def _courses(policies: Policies) -> Html:
    """For each policy: its reward beside its true accuracy, and why its training ended."""
    figures: list[Child] = []
    for name in policies.trained:
        colour, course = _colour(policies, name), policies.courses.get(name)
        rewards = _small(name, "reward", policies.rewards, policies.rewards_by_seed, colour, share=False)
        accuracy = _small(
            name, "true accuracy", policies.accuracies, policies.accuracies_by_seed, INK, share=True, course=course
        )
        if rewards or accuracy:
            ended = h("p", _ended(course), class_="dim") if course is not None else None
            pair = h("div", *(x for x in (rewards, accuracy) if x), class_="multiples")
            figures.append(h("div", h("h3", name), ended, pair, _explored(policies, name), class_="course"))
    if not figures:
        return Html("")
    note = (
        "Left what a policy earned with its own attempts, right how many held-out problems it answered right greedily. "
        "Reward that rises while accuracy falls is a verifier that is being cheated."
    )
    return join([h("p", note, class_="dim"), h("div", *figures, class_="courses")])


def _explored(policies: Policies, name: str) -> Child:
    """How much the attempts of each update still differed; None for runs of earlier versions."""
    drawings = [
        _small(
            name,
            title,
            policies.explored.get(key, {}),
            policies.explored_by_seed.get(key, {}),
            _colour(policies, name),
            share=key != "entropy",
        )
        for key, title in EXPLORED_TITLES.items()
    ]
    if not any(drawings):
        return None
    charts_of_all = h("div", *(x for x in drawings if x), class_="multiples")
    summary = "What its attempts explored. Where they all earn the same, or are empty, nothing is learned."
    return h("details", h("summary", summary), charts_of_all, open=len(policies.trained) <= FOLDED)


def _small(
    name: str,
    quantity: str,
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
    label = "mean" if seeds else quantity
    lines.append(Line(label, _thin(kept), colour, markers=len(kept) <= 24))
    if course is not None and not seeds:
        lines += [Line("handed on", ((x, Estimate(y)),), "1") for x, y in kept if x == course.best]
    return charts.small(lines, title=quantity, x_label="updates", share=share)


def _ended(course: Course) -> str:
    update_count = f"{_number(course.updates)} update{'s' * (course.updates != 1)}"
    is_one_run = course.best.is_integer() and course.updates.is_integer()
    best = f"update {_number(course.best)}{'' if is_one_run else ' (means over seeds)'}"
    if course.stopped:
        return f"Stopped early after {update_count}, handed on {best}: {course.stopped}"
    best = "the last" if course.best == course.updates else f"{best}, the best on held-out problems"
    return f"{update_count} as planned; handed on: {best}."


def _number(updates: float) -> str:
    """A whole number for one run; one decimal for a mean over seeds."""
    return f"{updates:.0f}" if updates.is_integer() else f"{updates:.1f}"


# ---- votes and verifiers before and after ----


def _before_and_after(policies: Policies) -> Html:
    if not policies.after:
        return Html("")
    verifiers = list(dict.fromkeys(verifier_of(m) for rows in policies.after.values() for m in rows))
    verifiers = [v for v in verifiers if v]
    n = max(n for rows in policies.after.values() for row in rows.values() for n in row)
    names = [name for name in policies.greedy if name in policies.after]
    methods = _methods(policies, verifiers)

    def best(name: str) -> float | None:
        rows = policies.after[name]
        return winning(rows[m][n].mean for m in rows if m != ORACLE and n in rows[m])

    def row(method: str) -> list[Child]:
        words = phrase(method)
        cells: list[Child] = [words[0].upper() + words[1:]]
        for name in names:
            e = policies.after[name].get(method, {}).get(n)
            is_best = e is not None and method != ORACLE and e.mean == best(name)
            cells.append(h("td", share_of(e), class_="best" if is_best else None))
        return cells

    first: list[Child] = ["Greedy", *(share_of(policies.greedy[name]) for name in names)]
    caption = (
        f"What comes of {n} samples of each policy, in percent: {SFT} is the generator before reinforcement. Marked: "
        "the best way of choosing for each policy, the oracle aside."
    )
    table = grid([f"N = {n}", *names], [first, *map(row, methods)], caption)
    title = h("h3", "Votes and verifiers, before and after")
    return join([title, table, _by_n(policies, names, verifiers), _details(policies, names)])


def _methods(policies: Policies, verifiers: Sequence[str]) -> list[str]:
    measured = {m for rows in policies.after.values() for m in rows}
    order = [ONE_SAMPLE, PLAIN_VOTE, *(m for v in verifiers for m in (v, VOTE_BY + v)), ORACLE]
    return [m for m in order if m in measured]


def _by_n(policies: Policies, names: Sequence[str], verifiers: Sequence[str]) -> Html:
    """One small chart for each policy, with one legend for all."""

    def lines(name: str) -> list[Line]:
        drawings = []
        for method in _methods(policies, verifiers):
            row = policies.after[name].get(method)
            if row is None or len(row) < 2:
                continue
            colour, dash = _look(method, verifiers)
            points = tuple((float(n), Estimate(e.mean)) for n, e in sorted(row.items()))
            drawings.append(Line(phrase(method), points, colour, dash, markers=False))
        return drawings

    by_policy = {name: lines(name) for name in names}
    drawings = [
        charts.small(by_policy[name], title=name, x_label="N candidates", scale="log_values", share=True, keyed=False)
        for name in names
        if by_policy[name]
    ]
    if not drawings:
        return Html("")
    key = charts.legend(max(by_policy.values(), key=len))
    return h("figure", h("div", *drawings, class_="multiples"), key)


def _look(method: str, verifiers: Sequence[str]) -> tuple[str, str]:
    """Colour and dash, the same as in the chart of accuracies by N."""
    name = verifier_of(method)
    if name:
        return str(verifiers.index(name) % 7), "solid" if method.startswith(VOTE_BY) else "dashed"
    return (INK, "solid") if method == PLAIN_VOTE else (GREY, "dotted" if method == ORACLE else "solid")


def _details(policies: Policies, names: Sequence[str]) -> Html:
    """All measured differences, policy by policy."""
    parts: list[Html] = []
    for name in names:
        pairs = policies.after_differences.get(name)
        if not pairs:
            continue
        ns = sorted({n for row in pairs.values() for n in row})

        def cell(e: Estimate | None) -> Child:
            return "–" if e is None else h("td", signed_points(e), class_="best" if e.clear else None)

        rows: list[list[Child]] = [
            [_difference_name(left, right), *(cell(row.get(n)) for n in ns)] for (left, right), row in pairs.items()
        ]
        caption = "Percentage points on the same problems, with 95% paired intervals."
        table = grid(["Difference at N =", *map(str, ns)], rows, caption)
        parts.append(h("details", h("summary", f"{name}: differences"), table))
    return join(parts)


def _difference_name(left: str, right: str) -> str:
    if right == GREEDY:
        return f"{phrase(left)} − its greedy answer"
    if right == SFT:
        return f"{phrase(left)} − the same on samples of {SFT}"
    return f"{phrase(left)} − {phrase(right)}"


# ---- helpers ----


def _estimates(points: Curve) -> tuple[tuple[float, Estimate], ...]:
    return tuple((x, Estimate(y)) for x, y in points)


def _thin(points: Curve) -> tuple[tuple[float, Estimate], ...]:
    return _estimates(tuple(charts.thin(points)))


def _colour(policies: Policies, name: str) -> str:
    return str(policies.trained.index(name) % 7) if name in policies.trained else GREY

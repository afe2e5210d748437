"""The report's tables and charts of metrics and logs. Each section is "" when its part is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepmark.evaluation.aggregate import AGGREGATES
from stepmark.report import charts
from stepmark.report.charts import GREY, INK, Line
from stepmark.report.console import QUALITY
from stepmark.report.data import (
    NO_VERIFIER,
    ORACLE,
    PLAIN_VOTE,
    VOTE_BY,
    Difference,
    Metrics,
    ReportData,
    phrase,
    verifier_of,
)
from stepmark.report.findings import percent, winning
from stepmark.report.markup import Child, Html, h, join
from stepmark.report.reading import Estimate

FOLDED = 12  # with more rows than this, the differences between verifiers are folded


def grid(head: Sequence[Child], rows: Iterable[Sequence[Child]], caption: str = "") -> Html:
    """A table below its caption. The first column has the names of the rows."""
    body = join(h("tr", h("th", row[0], scope="row"), *map(_cell, row[1:])) for row in rows)
    top = h("tr", *(h("th", cell, scope="col") for cell in head))
    return join(
        [
            h("p", caption, class_="dim") if caption else None,
            scroller(h("table", h("thead", top), h("tbody", body)), caption or "table"),
        ]
    )


def scroller(table: Html, label: str) -> Html:
    """A table that can be scrolled sideways, also by keyboard, on a screen that is narrower than the table."""
    return h("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def sentences(lines: Iterable[str]) -> Html | None:
    """A list of sentences; None if there are none."""
    items = [h("li", line) for line in lines]
    return h("ul", *items, class_="notes") if items else None


def accuracy_table(m: Metrics) -> Html:
    ns = m.ns
    if not ns:
        return Html("")
    rivals = [m.best_of_n[k] for k in m.main_methods if k != ORACLE]
    best = {n: winning(row[n].mean for row in rivals if n in row) for n in ns}

    def row(method: str) -> list[Child]:
        values = m.best_of_n[method]
        marked = {n for n in values if method != ORACLE and values[n].mean == best[n]}
        return [_name(method), *(h("td", share_of(values.get(n)), class_="best" if n in marked else None) for n in ns)]

    caption = (
        "Problems answered correctly, in percent, with 95% intervals. Marked: best in its column, the oracle aside."
    )
    return grid(["N candidates", *map(str, ns)], map(row, m.main_methods), caption)


def accuracy_curves(m: Metrics) -> Html:
    if len(m.ns) < 2:
        return Html("")
    verifiers = verifiers_of(m)
    lines = []
    for method in m.main_methods:
        name = verifier_of(method)
        if name:
            colour, dash = str(verifiers.index(name) % 7), "solid" if method.startswith(VOTE_BY) else "dashed"
        else:
            colour, dash = (INK, "solid") if method == PLAIN_VOTE else (GREY, "dotted" if method == ORACLE else "solid")
        lines.append(Line(phrase(method), tuple(sorted(m.best_of_n[method].items())), colour, dash))
    chart = charts.chart(lines, title="Accuracy by number of candidates", x_label="N candidates")
    note = "One colour per verifier: dashed where it chooses alone, solid where it weights votes. "
    note += "Bands: 95% intervals." if len(lines) <= charts.BANDED else "The table has the 95% intervals."
    return h("figure", chart, h("figcaption", note))


def differences_table(m: Metrics) -> Html:
    if not m.differences:
        return Html("")
    # With one candidate all methods are equal: leave such an N out.
    ns = sorted({d.n for d in m.differences if max(map(abs, (d.estimate.mean, *(d.estimate.interval or ())))) > 1e-9})
    pairs: dict[tuple[str, str], dict[int, Difference]] = {}
    for d in m.differences:
        pairs.setdefault((d.left, d.right), {})[d.n] = d

    def cell(d: Difference | None) -> Html:
        if d is None:
            return h("td", "–")
        return h("td", signed_points(d.estimate), class_="best" if d.clear else None)

    def table(names: Iterable[tuple[str, str]], caption: str = "") -> Html:
        rows = [[f"{phrase(a)} − {phrase(b)}", *(cell(pairs[a, b].get(n)) for n in ns)] for a, b in names]
        return grid(["Difference at N =", *map(str, ns)], rows, caption)

    caption = "Percentage points on the same problems, with 95% paired intervals. Marked: the interval leaves out zero."
    rivals = [pair for pair in pairs if PLAIN_VOTE not in pair]
    if len(rivals) <= FOLDED or len(rivals) == len(pairs):
        return table(pairs, caption)
    summary = h("summary", f"{len(rivals)} more: verifiers with one another")
    return join([table((p for p in pairs if PLAIN_VOTE in p), caption), h("details", summary, table(rivals))])


def aggregation_table(m: Metrics, default: str = "") -> Html:
    keys = [k for k in m.best_of_n if ":" in k]
    if not keys:
        return Html("")
    n = max(n for k in keys for n in m.best_of_n[k])
    measured = {k.partition(":")[2] for k in keys}
    aggregates = [*(name for name in AGGREGATES if name in measured), *sorted(measured - set(AGGREGATES))]
    methods = [k for k in m.main_methods if any(key.startswith(k + ":") for key in keys)]
    methods += sorted({k.partition(":")[0] for k in keys} - set(methods))
    rows: list[list[Child]] = [
        [_name(k), *(share_of(m.best_of_n.get(key, {}).get(n)) for key in (k, *(f"{k}:{name}" for name in aggregates)))]
        for k in methods
    ]
    caption = f"Accuracy in percent at N = {n}, by how step scores become one score. A dash: not measured apart."
    return grid(["Way of choosing", default or "default", *aggregates], rows, caption)


def auc_table(m: Metrics) -> Html:
    kinds = list(dict.fromkeys(k for by_kind in m.auc.values() for k in by_kind))
    rows: list[list[Child]] = [[v, *(_auc(by_kind.get(k)) for k in kinds)] for v, by_kind in m.auc.items() if by_kind]
    caption = "The chance that the verifier scores a right candidate above a wrong one. 0.5 is guessing, 1 is perfect."
    return grid(["Verifier", *(k.replace("_", " ") for k in kinds)], rows, caption) if rows else Html("")


def label_quality(m: Metrics) -> Html:
    ns = sorted(m.label_quality)
    if not ns:
        return Html("")
    keys = list(dict.fromkeys(k for n in ns for k in m.label_quality[n]))
    keys = [*(k for k in QUALITY if k in keys), *(k for k in keys if k not in QUALITY)]
    charted = [k for k in QUALITY if k in keys] if len(ns) > 1 else []
    drawings = [
        charts.small(
            [
                Line(
                    QUALITY[k],
                    tuple((n, Estimate(m.label_quality[n][k])) for n in ns if k in m.label_quality[n]),
                    str(i),
                )
            ],
            title=QUALITY[k].capitalize(),
            x_label="rollouts per step",
            scale="log_values",
            share="entropy" not in k,
        )
        for i, k in enumerate(charted)
    ]

    def text_of(key: str, value: float | None) -> str:
        if value is None:
            return "–"
        counted = value > 1 and value == int(value)
        return (
            f"{value:,.0f}"
            if counted
            else percent(value)
            if key in QUALITY and "entropy" not in key
            else f"{value:.3f}"
        )

    rows: list[list[Child]] = [
        [QUALITY.get(k, k.replace("_", " ")).capitalize(), *(text_of(k, m.label_quality[n].get(k)) for n in ns)]
        for k in keys
    ]
    table = grid(["Rollouts per step", *map(str, ns)], rows, "Labels against the step oracle.")
    return join([h("div", *drawings, class_="multiples") if drawings else None, table])


def errors_missed(m: Metrics) -> Html:
    kinds = list(dict.fromkeys(k.kind for found in m.errors_missed.values() for k in found))
    if not kinds:
        return Html("")

    def cells(kind: str) -> list[Child]:
        row: list[Child] = [kind]
        for of_verifier in m.errors_missed.values():
            missed = next((k for k in of_verifier if k.kind == kind and k.total), None)
            if missed is None:
                row.append("–")
                continue
            counts = h("small", f"{missed.missed:,} of {missed.total:,}")
            row.append(h("td", percent(missed.rate, 0), " ", counts, _inline_bar(missed.rate)))
        return row

    caption = "Of the solutions with each kind of error, the share that the verifier lets pass. Lower is better."
    return grid(["Kind of error", *m.errors_missed], map(cells, kinds), caption)


def errors_selected(m: Metrics) -> Html:
    kinds = list(dict.fromkeys(kind for by_kind in m.errors_selected.values() for kind in by_kind))
    if not kinds:
        return Html("")
    most = max(share for by_kind in m.errors_selected.values() for share in by_kind.values()) or 1.0

    def row(kind: str) -> list[Child]:
        shares = [by_kind.get(kind, 0.0) for by_kind in m.errors_selected.values()]
        return [kind, *(h("td", percent(share), _inline_bar(share / most)) for share in shares)]

    caption = (
        f"Share of all problems for which the verifier alone chooses, among {max(m.ns, default=0)} candidates, "
        "a wrong one with this kind of error. Bars are relative to the largest."
    )
    return grid(["Kind of error chosen", *m.errors_selected], map(row, kinds), caption)


def _inline_bar(share: float) -> Html:
    return h("span", h("span", style=f"width:{100 * share:.1f}%"), class_="inline-bar", aria_hidden="true")


def training(data: ReportData) -> Html:
    figures = []
    for i, (model, log) in enumerate(data.training.items()):
        for name in dict.fromkeys(p.name for p in log):
            if "loss" not in name and "accuracy" not in name:
                continue
            points = charts.thin([(p.update, p.value) for p in log if p.name == name])
            line = Line(name, tuple((x, Estimate(y)) for x, y in points), str(i % 7), markers=len(points) <= 40)
            figures.append(charts.small([line], title=f"{model}: {name.replace('_', ' ')}", x_label="update"))
    return h("div", *figures, class_="multiples") if any(figures) else Html("")


def rates(data: ReportData, most: int = 20) -> Html:
    rows: list[list[Child]] = [[_words(k), _rate(v)] for k, v in data.metrics.rates.items()]
    table = grid(["What happened", "share"], rows) if rows else None
    if not data.quarantined:
        return join([table])
    quarantined: list[list[Child]] = [
        [f"{q.file}:{q.line}", h("td", q.reason[:300], class_="text")] for q in data.quarantined[:most]
    ]
    remaining = len(data.quarantined) - most
    return join(
        [
            table,
            grid(
                ["Row left out", "reason"],
                quarantined,
                f"{len(data.quarantined):,} rows could not be used; the rest went on.",
            ),
            h("p", f"… and {remaining:,} more.") if remaining > 0 else None,
        ]
    )


def seconds(m: Metrics) -> Html:
    rows = [(stage, s, clock(s)) for stage, s in m.seconds.items() if stage != "total"]
    return charts.bars(rows) if rows else Html("")


def clock(s: float) -> str:
    """Seconds as text, in seconds, minutes or hours."""
    if s < 90:
        return f"{s:.1f} s"
    if s < 5400:
        return f"{int(s) // 60} min {int(s) % 60:02d} s"
    return f"{int(s) // 3600} h {int(s) % 3600 // 60:02d} min"


def verifiers_of(m: Metrics) -> list[str]:
    return list(dict.fromkeys(verifier_of(k) for k in m.main_methods if k not in NO_VERIFIER))


def _cell(value: Child) -> Html:
    return value if isinstance(value, Html) and value.startswith("<td") else h("td", value)


def span(e: Estimate, form: str = ".1f", between: str = "–", scale: float = 100) -> str:
    """The interval as text, by default in percent; "" without an interval."""
    return between.join(_signed(scale * end, form) for end in e.interval or ())


def _name(method: str) -> Html:
    words = phrase(method)
    return join([words[0].upper() + words[1:], " ", h("code", method)])


def _with_interval(e: Estimate | None, form: str, between: str = "–", scale: float = 100) -> Html:
    if e is None or not e.finite:
        return Html("–")
    interval = span(e, form, between, scale)
    return join([_signed(scale * e.mean, form), h("small", interval) if interval else None], " ")


def _signed(value: float, form: str) -> str:
    return format(value, form).replace("-", "−")


def share_of(e: Estimate | None) -> Html:
    return _with_interval(e, ".1f")


def signed_points(e: Estimate) -> Html:
    return _with_interval(e, "+.1f", " to ")


def _auc(e: Estimate | None) -> Html:
    return _with_interval(e, ".3f", scale=1)


def _words(name: str) -> str:
    """ "no_answer" -> "no answer". After a colon there is a verifier's name, which is not changed."""
    event, colon, verifier = name.partition(":")
    return event.replace("_", " ") + (f" ({verifier})" if colon else "")


def _rate(value: float) -> str:
    return percent(value, 2) if 0 <= value <= 1 else f"{value:,.6g}"

"""The result as a plain-text table, for a terminal at the end of a run. No colours, no control characters."""

from __future__ import annotations

from collections.abc import Mapping

from stepmark.report.data import ORACLE, Metrics
from stepmark.report.findings import headline, of_policies, percent, winning
from stepmark.report.policies import Policies
from stepmark.report.reading import Estimate
from stepmark.types import Place

QUALITY = {
    "accuracy": "accuracy",
    "false_positive_rate": "false positives",
    "false_negative_rate": "false negatives",
    "soft_cross_entropy": "soft cross-entropy (nats)",
}


def table(metrics: Metrics | Mapping[str, object], report: Place | None = None) -> str:
    """Methods by number of candidates, label quality, headline, and the path of the report.

    Takes `Metrics` or a decoded metrics.json. Raises DataError for a malformed one."""
    m = metrics if isinstance(metrics, Metrics) else Metrics.parse(metrics)
    parts = []
    if m.best_of_n:
        of = f", {m.problems:,} problems" if m.problems else ""
        parts.append(f"Accuracy in percent with 95% interval{of}; * best, oracle aside\n{_accuracy(m)}")
    if m.label_quality:
        parts.append("Step labels against the oracle, by rollouts per step\n" + _quality(m))
    if m.policies is not None:
        parts.append("Greedy accuracy in percent with 95% interval; * best\n" + _greedy(m.policies))
    parts += ["\n".join(of_policies(m))] if m.policies is not None else []
    parts.append(headline(m))
    if (second := m.out_of_distribution) is not None and second.best_of_n:
        parts.append(f"Out of distribution, {second.problems:,} problems\n{_accuracy(second)}\n\n{headline(second)}")
    if report is not None:
        parts.append(f"Report: {report}")
    return _printable("\n\n".join(parts))


def _accuracy(m: Metrics) -> str:
    ns = m.ns
    without_oracle = [m.best_of_n[k] for k in m.main_methods if k != ORACLE]
    best = {n: winning(row[n].mean for row in without_oracle if n in row) for n in ns}
    rows = [["", *(f"N = {n}" for n in ns)]]
    for method in m.main_methods:
        row = m.best_of_n[method]
        cells = [_cell(row.get(n), method != ORACLE and n in row and row[n].mean == best[n]) for n in ns]
        rows.append([method, *cells])
    return _align(rows)


def _cell(e: Estimate | None, best: bool) -> str:
    if e is None or not e.finite:
        return "-"
    star = "*" if best else " "
    low, high = e.interval or (None, None)
    interval_text = "" if low is None or high is None else f"{100 * low:.0f}-{100 * high:.0f}"
    return f"{100 * e.mean:.1f}{star}{interval_text:>7}" if interval_text else f"{100 * e.mean:.1f}{star}"


def _greedy(policies: Policies) -> str:
    best = winning(e.mean for e in policies.greedy.values())
    return _align([["", "greedy"], *([name, _cell(e, e.mean == best)] for name, e in policies.greedy.items())])


def _quality(m: Metrics) -> str:
    ns = sorted(m.label_quality)
    measured = list(dict.fromkeys(k for n in ns for k in m.label_quality[n]))
    rows = [["", *(str(n) for n in ns)]]
    for key, name in QUALITY.items():
        if key in measured:
            values = [m.label_quality[n].get(key) for n in ns]
            show = (lambda v: f"{v:.3f}") if "entropy" in key else percent
            rows.append([name, *("-" if v is None else show(v) for v in values)])
    return _align(rows)


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    rule = "  " + "-" * (max(map(len, lines)) - 2)
    return "\n".join([lines[0], rule, *lines[1:]])


def _printable(text: str) -> str:
    """Replaces control characters: names come from files, and must not move the cursor or colour the screen."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)

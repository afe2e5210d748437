"""The whole page: `render(ReportData) -> str`, one self-contained HTML file.

    stepmark report runs/demo

The page has no scripts, fonts, images or addresses outside the file. Its content security policy forbids them too, so
that text from a model can't run or load anything, even if an element were built wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from stepmark.report import budgets, reinforcement, results, samples
from stepmark.report.data import ONE_SAMPLE, ORACLE, PLAIN_VOTE, Metrics, ReportData, phrase
from stepmark.report.findings import best_method, findings, headline, percent, winning
from stepmark.report.markup import Html, document, h, join, style_sheet
from stepmark.report.results import clock
from stepmark.types import Place

NOTES = 8  # more notes than this are folded
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(data: ReportData) -> str:
    """The report as one HTML document. Sections without data are left out."""
    m = data.metrics
    parts: dict[str, tuple[str, Html]] = {
        "policies": ("Reinforcement", reinforcement.section(m)),
        "accuracy": ("Accuracy by number of candidates", join([results.accuracy_curves(m), results.accuracy_table(m)])),
        "votes": ("Accuracy by number of votes", budgets.votes(m)),
        "tokens": ("Accuracy by tokens", budgets.tokens(m)),
        "differences": ("Paired differences", results.differences_table(m)),
        "aggregation": ("From step scores to one score", results.aggregation_table(m, data.aggregate)),
        "verifiers": ("Verifiers", join([_verifiers(data), results.auc_table(m)])),
        "errors": ("Which errors get past each verifier", join([results.errors_missed(m), results.errors_selected(m)])),
        "other": ("Out of distribution", _section(m.out_of_distribution)),
        "labels": ("Quality of the step labels", results.label_quality(m)),
        "rationales": ("What became of rationales", budgets.rationales(m)),
        "samples": ("Sample solutions", _with_legend(samples.samples(data), bool(data.oracle))),
        "training": ("Training", results.training(data)),
        "rates": ("What was left out", results.rates(data)),
        "time": ("Time by stage", results.seconds(m)),
        "reproduce": ("How to reproduce", _reproduce(data)),
    }
    parts = {anchor: (title, content) for anchor, (title, content) in parts.items() if content}
    contents = h("nav", *(h("a", anchor, href=f"#{anchor}") for anchor in parts), aria_label="Contents")
    sections = (
        h("section", h("h2", title), content, id=anchor, aria_label=title) for anchor, (title, content) in parts.items()
    )
    css = resources.files("stepmark.report").joinpath("style.css").read_text(encoding="utf-8")
    head = join(
        [
            h("meta", charset="utf-8"),
            h("meta", http_equiv="Content-Security-Policy", content=POLICY),
            h("meta", name="viewport", content="width=device-width, initial-scale=1"),
            h("meta", name="color-scheme", content="light dark"),
            h("title", f"{data.name} · Stepmark report"),
            style_sheet(css),
        ]
    )
    footer = h("footer", "Made by Stepmark. Every number on this page comes from this run.")
    return document(head, join([_header(data, contents), h("main", *sections), footer]))


def _section(m: Metrics | None) -> Html:
    """The results on a second test set, whose problems differ from the training problems."""
    if m is None or not m.best_of_n:
        return Html("")
    return join(
        [
            h("p", f"{m.problems:,} problems unlike those of the training set, {m.candidates:,} candidates."),
            _findings_and_notes([headline(m), *findings(m)], m.notes),
            results.accuracy_curves(m),
            results.accuracy_table(m),
            budgets.votes(m),
            budgets.tokens(m),
            results.differences_table(m),
        ]
    )


def write(data: ReportData, path: Place) -> Path:
    """Renders to a file and returns its path. The file is replaced only when the page is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part_file = path.with_name(path.name + ".part")
    part_file.write_text(render(data), encoding="utf-8")
    part_file.replace(path)
    return path


def _header(data: ReportData, contents: Html) -> Html:
    m = data.metrics
    fields = {
        "Task": data.task,
        "Problems": f"{m.problems:,}" if m.problems else "",
        "Candidates": f"{m.candidates:,}" if m.candidates else "",
        "Date": data.date,
        "Seed": "" if m.seed is None else str(m.seed),
        "Time": clock(m.total_seconds) if m.seconds else "",
        "Machine": data.machine,
    }
    entries = (h("div", h("dt", name), h("dd", value)) for name, value in fields.items() if value)
    return h(
        "header",
        h("p", "Stepmark report", class_="brand"),
        h("h1", data.name),
        h("dl", *entries, class_="facts"),
        h("p", headline(m), class_="headline", id="headline"),
        _tiles(data),
        _findings_and_notes(findings(m), m.notes),
        contents,
        class_="top",
    )


def _findings_and_notes(findings: Sequence[str], notes: Sequence[str]) -> Html:
    """The findings, then the notes on how the figures were measured. Many notes are folded."""
    if len(notes) <= NOTES:
        return join([results.sentences([*findings, *notes])])
    summary = h("summary", f"{len(notes)} notes on how these figures came about")
    return join([results.sentences(findings), h("details", summary, results.sentences(notes))])


def _tiles(data: ReportData) -> Html | None:
    best, n = best_method(data.metrics)
    rows = data.metrics.best_of_n
    methods = [(m, rows[m][n]) for m in (ONE_SAMPLE, PLAIN_VOTE, best, ORACLE) if m in rows and n in rows[m]]
    if len(methods) < 2:
        return None
    top = winning(e.mean for m, e in methods if m != ORACLE)
    tiles = (
        h(
            "div",
            h("dt", phrase(method)),
            h("dd", percent(e.mean), h("small", results.span(e)) if e.interval else None),
            class_="tile lead" if method != ORACLE and e.mean == top else "tile",
        )
        for method, e in methods
    )
    return h("dl", *tiles, class_="tiles", aria_label=f"Accuracy at N = {n}")


def _verifiers(data: ReportData) -> Html | None:
    entries = [
        h("div", h("dt", name), h("dd", description))
        for name, description in data.verifiers.items()
        if description != name
    ]
    return h("dl", *entries, class_="described") if entries else None


def _with_legend(problems: Html, oracle: bool) -> Html:
    if not problems:
        return problems
    steps = (h("span", f"{s / 100:g}", class_="chip", style=f"--s:{s}%") for s in (0, 25, 50, 75, 100))
    scale = h("span", *steps, class_="scale")
    text = "A step is coloured by its score, and the number stands beside it; a framed score is the first below 0.5. "
    if oracle:
        text += "The oracle's first wrong step carries a tag; every step after it builds on a wrong value."
    return join([h("p", "Score ", scale, " ", text, class_="dim"), problems])


def _reproduce(data: ReportData) -> Html:
    lines = list(_flat(data.config))
    parts: list[Html] = []
    if data.command:
        parts += [h("p", "The same command with the same versions makes the same run:"), h("pre", data.command)]
    if lines:
        summary = h("summary", f"Resolved configuration ({len(lines)} settings)")
        parts.append(h("details", summary, h("pre", "\n".join(lines))))
    return join(parts)


def _flat(value: object, key_path: str = "") -> Iterator[str]:
    """The settings as `key.inner=value`, the form that the command line accepts."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{key_path}.{key}" if key_path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{key_path}.{i}")
    else:
        yield f"{key_path}={value}"

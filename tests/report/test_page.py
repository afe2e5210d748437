"""The report in a real browser, and with missing, malformed and hostile input."""

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from stepmark import report
from stepmark.errors import DataError
from stepmark.evaluation.evaluate import evaluate
from stepmark.report import Metrics, ReportData
from stepmark.text import steps
from stepmark.types import (
    Finish,
    Grade,
    GradedSolution,
    LabelledSolution,
    Problem,
    Quarantined,
    Solution,
    StepLabel,
    Verdict,
    Verification,
)

HOSTILE = (
    "<script>window.ran = 1</script>",
    '<img src="http://198.51.100.7/x.png" onerror="window.ran = 2">',
    '"><svg onload="window.ran = 3">',
    "</style></title></textarea><script>window.ran = 4</script>",
    "' autofocus onfocus='window.ran = 5' x='",
    "<!-- <a href=javascript:window.ran=6>x</a>",
)


def hostile(data: ReportData) -> ReportData:
    """The same run, with markup as an attack in every text that a report shows."""
    attack = "\n".join(HOSTILE)
    raw = {
        "problems": 1,
        "best_of_n": {
            "self_consistency": {"1": 0.2, "4": 0.3},
            attack: {"1": 0.2, "4": 0.4},
            f"{attack}:prod": {"4": 0.4},
        },
        "auc": {attack: {attack: 0.5}},
        "differences": {f"{attack} - self_consistency": {"4": {"mean": 0.1, "low": 0, "high": 0.2}}},
        "label_quality": {"1": {attack: 0.5}},
        "errors_missed": {attack: {attack: {"missed": 1, "total": 2}}},
        "errors_selected": {attack: {attack: 0.5}},
        "rates": {attack: 0.5},
        "notes": [attack],
        "seconds": {attack: 1.0},
        "votes_by_verifier": {attack: {"1": 0.2, "4": 0.3}},
        "rationales": {attack: {"asked": 2, attack: 1}},
    }
    estimate = {"mean": 0.1, "low": 0.0, "high": 0.2}
    points = [{"method": m, "n": 2, "k": 4, "tokens": 9.0, "accuracy": estimate} for m in ("pass@1", attack)]
    split = {"tokens": 9.0, "one": points[0], "verified": points[1], "verified_over_one": estimate}
    raw["compute"] = {"points": points, "splits": [split], "splits_by_verifier": {attack: [split]}}
    raw["out_of_distribution"] = raw | {"best_of_n": {attack: {"4": 0.4}}}
    problem = Problem("p", attack, attack, attack)
    s = Solution("p#0", "p", 0, attack, steps.split(attack))
    return ReportData(
        name=attack,
        metrics=Metrics.parse(raw),
        task=attack,
        date=attack,
        machine=attack,
        command=attack,
        config={attack: {"x": attack}},
        problems=[problem],
        solutions=[s],
        grades=[GradedSolution("p#0", "p", Grade(Verdict.CORRECT, attack, attack))],
        verifications={
            attack: [
                Verification("p#0", (0.4,) * len(s.spans), 0.4, attack, rationales=(attack, attack), votes=(0.1, 0.9))
            ]
        },
        oracle={"p#0": (False,) * len(s.spans)},
        kinds={"p#0": attack},
        training={attack: [report.TrainPoint(1, "loss" + attack, 1.0), report.TrainPoint(2, "loss" + attack, 0.5)]},
        quarantined=[Quarantined(attack, 1, attack)],
        verifiers={attack: attack},
    )


class Elements(HTMLParser):
    """All start tags and attribute names of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_loads_without_errors_or_requests(visit, report_data):
    page, messages, asked = visit(report.render(report_data))
    assert not messages
    assert not asked
    assert "With 64 candidates" in page.locator("#headline").inner_text()
    assert "Problems 300" in " ".join(page.locator(".facts").inner_text().split())
    row = page.locator("#accuracy tbody tr", has_text="self_consistency+prm_logprob").first
    assert "96.0" in row.inner_text()
    assert page.locator("#accuracy svg[role=img]:visible").count() == 1


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_screen_and_can_be_read(visit, report_data, width, scheme):
    page, _, _ = visit(report.render(report_data), width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """w => [...document.querySelectorAll('body *')]
        .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > w + 1)
        .map(e => e.tagName + '.' + e.className)""",
        width,
    )
    assert outside == []
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", light)[:3])) < 80) == (scheme == "dark")
    cells = page.locator(".score").all()
    assert cells
    colours = {cell.evaluate("e => getComputedStyle(e).backgroundColor") for cell in cells}
    assert len(colours) > 3  # scores are told apart by colour, and
    assert all(re.fullmatch(r"\d\.\d\d", cell.inner_text()) for cell in cells)  # by number


def test_the_headline_is_one_line(visit, report_data):
    page, _, _ = visit(report.render(report_data))
    assert "self_consistency" not in page.locator("#headline").inner_text()
    assert page.locator("#headline").bounding_box()["height"] < 2 * 20


def test_labels_of_lines_do_not_overlap(visit, report_data):
    page, _, _ = visit(report.render(report_data))
    boxes = [b.bounding_box() for b in page.locator("#accuracy .wide text.direct").all()]
    assert len(boxes) == 9
    tops = sorted(b["y"] for b in boxes)
    assert all(below - above >= boxes[0]["height"] * 0.8 for above, below in itertools.pairwise(tops))
    assert all(b["x"] + b["width"] <= 1280 for b in boxes)


def test_details_open_by_keyboard(visit, report_data):
    page, _, _ = visit(report.render(report_data))
    closed = page.locator("details.problem:not([open]) > summary").first
    name = closed.inner_text()
    reached = False
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName === 'SUMMARY' && document.activeElement.innerText") == name:
            reached = True
            break
    assert reached
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")


@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "without its policy"])
def test_hostile_text_is_shown_and_never_runs(visit, report_data, guarded):
    html = report.render(hostile(report_data))
    if not guarded:  # escaping has to hold by itself
        html, changed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*/>', "", html)
        assert changed == 1
    page, messages, asked = visit(html)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(50)
    assert page.evaluate("window.ran") is None
    assert not asked
    assert not messages
    assert page.locator("script, img, iframe, a[href^=javascript], [onerror], [onload], [onfocus]").count() == 0
    assert HOSTILE[0] in page.locator(".step").first.inner_text()
    assert HOSTILE[0] in page.locator(".rationale").first.inner_text()
    assert HOSTILE[0] in page.locator("#tokens").inner_text()


def test_no_attack_makes_an_element(report_data):
    """The same without a browser: hostile text adds no new element or attribute to the page."""
    plain, attacked = Elements(report.render(report_data)), Elements(report.render(hostile(report_data)))
    assert attacked.tags <= plain.tags
    assert attacked.attributes <= plain.attributes
    assert not plain.tags & {"script", "img", "iframe", "object", "link"}
    assert not any(name.startswith("on") for name in attacked.attributes)


def test_page_asks_for_nothing_outside_itself(report_data):
    html = report.render(report_data)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_sample_shows_oracle_error_choice_and_every_verifier(visit, report_data):
    page, _, _ = visit(report.render(report_data))
    wrong = page.locator("article.candidate", has_text="plain voting").first
    assert "wrong" in wrong.locator("header").inner_text()
    marked = wrong.locator("tr.first-error")
    assert marked.count() == 1
    assert "first error: misconception" in marked.inner_text()
    assert wrong.locator("tbody tr").nth(1).get_attribute("class") == "first-error"
    assert "prm truncated" in wrong.inner_text()  # a verification that failed has no score to show
    right = page.locator("article.candidate", has_text="votes weighted by prm_logprob").first
    assert "3 of 6 votes" in right.inner_text()
    assert right.locator("thead th").all_inner_texts() == ["Step", "prm", "prm_logprob", "oracle"]


def test_problems_that_the_verifier_loses_are_shown_too(report_data):
    grades = [
        dataclasses.replace(
            g, grade=Grade(Verdict.CORRECT if g.solution_id.endswith("#0") else Verdict.INCORRECT, "", "1")
        )
        if g.problem_id == "test-6"
        else g
        for g in report_data.grades
    ]
    html = report.render(dataclasses.replace(report_data, grades=grades))
    assert "Plain voting finds the right answer, the verifier does not" in html
    assert "6 by the first alone, 1 by voting alone, 0 by both, 1 by neither" in html


def test_outcome_verifier_on_data_without_steps_or_oracle(report_data):
    """An ORM over imported solutions: no labels, no oracle, one score per solution, no selections."""
    raw = {
        "problems": 747,
        "best_of_n": {"self_consistency": {"4": 0.907}, "orm": {"4": 0.871}},
        "seconds": {"train": 1801},
    }
    html = report.render(
        ReportData(
            name="gsm8k_orm",
            metrics=Metrics.parse(raw),
            problems=report_data.problems,
            solutions=report_data.solutions,
            grades=report_data.grades,
            verifications={"orm": report_data.verifications["orm"]},
        )
    )
    assert "the verifier does not beat plain voting" in html
    assert re.findall(r'<section id="(\w+)"', html) == ["accuracy", "samples", "time"]
    assert re.findall(r'<a href="#(\w+)"', html) == ["accuracy", "samples", "time"]
    assert "orm <b>" in html
    assert 'class="score' not in html
    assert "first error" not in html


def test_reads_what_evaluate_writes(report_data, tmp_path):
    """A real metrics.json, read from a file, appears in every section."""
    labels = [
        LabelledSolution(s, g.grade, tuple(StepLabel(8 * ok, 8) for ok in report_data.oracle[s.id]))
        for s, g in zip(report_data.solutions, report_data.grades, strict=True)
    ]
    measured = evaluate(
        report_data.problems,
        report_data.solutions,
        report_data.grades,
        report_data.verifications,
        ns=(1, 2, 6),
        seed=3,
        labels=labels,
        oracle=lambda problem, solution: report_data.oracle[solution.id],
        kind_of=lambda problem, solution: report_data.kinds.get(solution.id),
        resamples=50,
        draws=50,
        seconds={"evaluate": 1.5},
    )
    (tmp_path / "metrics.json").write_text(json.dumps(measured.to_json()))
    metrics = Metrics.parse(json.loads((tmp_path / "metrics.json").read_text()))
    assert metrics.best_of_n["prm"][6].mean == measured.best_of_n["prm"][6].mean
    assert metrics.candidates == 48
    assert set(metrics.errors_missed) == set(metrics.auc) == set(report_data.verifications)
    html = report.render(dataclasses.replace(report_data, metrics=metrics))
    result = re.findall(r'<section id="(\w+)"', html)
    fed = ["accuracy", "differences", "aggregation", "verifiers", "errors", "labels", "samples", "rates", "time"]
    assert [name for name in result if name not in ("training", "reproduce")] == fed
    assert f"{100 * measured.best_of_n['self_consistency+prm'][6].mean:.1f}" in report.table(metrics)


def test_same_method_at_another_n_is_named(report_data):
    assert "best by prm − best by prm at N = 16" in report.render(report_data)
    assert [d.n for d in report_data.metrics.differences if d.right == "prm@16"] == [1, 64]  # not itself less itself


def test_unfinished_candidate_says_so(report_data):
    cut = [dataclasses.replace(s, finish=Finish.LENGTH) if s.sample == 1 else s for s in report_data.solutions]
    assert "cut off by the token budget" not in report.render(report_data)
    html = report.render(dataclasses.replace(report_data, solutions=cut))
    assert "cut off by the token budget" in html
    assert "3 of 6 votes" in html  # for the wrong answer
    assert "2 of 6 votes" in html  # for the right one, which the unfinished candidate gives too


def test_no_tile_is_highlighted_for_a_verifier_that_lost(report_data):
    def leading(vote: float, orm: float) -> list[str]:
        raw = {"best_of_n": {"self_consistency": {"4": vote}, "orm": {"4": orm}, "oracle": {"4": 0.9}}}
        html = report.render(ReportData(name="r", metrics=Metrics.parse(raw)))
        return re.findall(r'class="tile lead"><dt>([^<]+)', html)

    assert leading(0.5, 0.6) == ["best by orm"]
    assert leading(0.6, 0.5) == ["plain voting"]
    assert leading(0.6, 0.6) == []


def test_bare_run_renders():
    html = report.render(ReportData(name="empty", metrics=Metrics()))
    assert "No way of choosing" in html
    assert "<section" not in html


def test_long_and_odd_texts_are_cut_not_dropped(report_data):
    text = "x" * 1_000_000 + "\nThe answer is \ud800\x00\x1b[31m1."
    s = Solution("test-0#9", "test-0", 9, text, steps.split(text))
    many = Solution("test-1#9", "test-1", 9, "a\n" * 500, steps.split("a\n" * 500))
    empty = Solution("test-2#9", "test-2", 9, "", ())
    html = report.render(dataclasses.replace(report_data, solutions=[s, many, empty], selections=(), verifications={}))
    assert len(html) < 300_000
    assert "998,800 more characters" in html
    assert "and 460 more steps" in html
    assert "(empty)" in html
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f]", html)


def test_writes_whole_file(tmp_path, report_data):
    path = report.write(report_data, tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({"best_of_n": {"prm": {"4": {"low": 0.1}}}}, "best_of_n.prm.4.mean"),
        ({"best_of_n": {"prm": {"four": 0.1}}}, "best_of_n.prm"),
        ({"best_of_n": [1]}, "best_of_n"),
        ({"problems": "many"}, "problems"),
        ({"label_quality": {"4": {"accuracy": "high"}}}, "label_quality.4.accuracy"),
        ({"errors_missed": {"prm": {"slip": {"missed": 3}}}}, "errors_missed.prm.slip.total"),
        ({"notes": 5}, "notes"),
    ],
)
def test_malformed_metrics_name_the_place(raw, place):
    with pytest.raises(DataError, match=re.escape(place) + " is .* should be"):
        Metrics.parse(raw)


def test_not_a_number_is_a_dash():
    m = Metrics.parse({"best_of_n": {"pass@1": {"1": float("nan"), "4": 0.5}, "oracle": {"1": 0.5, "4": 0.7}}})
    html = report.render(ReportData(name="r", metrics=m))
    assert "nan" not in html
    assert "–" in html


def test_many_verifiers_fold_what_few_readers_ask_for():
    def page(names: list[str], notes: list[str]) -> str:
        ways = ["self_consistency", *names]
        raw = {
            "best_of_n": {name: {"1": estimate(0.4), "4": estimate(0.5 + i / 100)} for i, name in enumerate(ways)},
            "differences": {
                f"{a} - {b}": {"1": {"mean": 0, "low": -1e-17, "high": 0}, "4": {"mean": 0.1, "low": 0, "high": 0.2}}
                for i, a in enumerate(ways)
                for b in ways[:i]
            },
            "notes": notes,
        }
        return report.render(ReportData(name="r", metrics=Metrics.parse(raw)))

    def estimate(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    few = page(["orm", "prm"], ["seen"])
    assert "<details" not in few
    assert 'class="band' in few
    assert 'Difference at N =</th><th scope="col">4</th>' in few  # at N = 1 nothing can differ but by rounding
    many = page([f"v{i}" for i in range(13)], [f"note {i}" for i in range(9)])
    shown, _, folded = many.partition("78 more: verifiers with one another")
    assert "best by v1 − plain voting" in shown
    assert "best by v2 − best by v1" in folded
    assert "best by v2 − best by v1" not in shown
    assert "9 notes on how these figures came about" in shown
    assert 'class="band' not in many

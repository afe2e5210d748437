"""The sections on votes, tokens, rationales and the second test set, from the metrics of evaluate()."""

import dataclasses
import json
import random
import re
from html import unescape
from statistics import fmean

import pytest

from stepmark import report
from stepmark.evaluation.evaluate import evaluate
from stepmark.report import Metrics
from stepmark.types import (
    Grade,
    GradedSolution,
    LabelledSolution,
    Problem,
    Rationale,
    Solution,
    Verdict,
    Verification,
)

RATIONALES = (
    Rationale("It is.", "yes", "oracle"),
    Rationale("No, the expected answer is 3.", "no", "reference", "leak"),
    Rationale("No.", "no", "reference", rewritten=True),
)


@pytest.fixture(scope="module")
def measured():
    """A test of 40 problems with 8 candidates and 8 votes of two verifiers, one better than the other."""
    rng = random.Random(0)
    problems = [Problem(f"p{i}", "question", "1", "t") for i in range(40)]
    solutions, grades = [], []
    verifications: dict[str, list[Verification]] = {"orm": [], "genrm": [], "judge": []}
    for p in problems:
        for i in range(8):
            right = rng.random() < 0.4
            s = Solution(f"{p.id}#{i}", p.id, i, "text", ((0, 4),), tokens=12)
            solutions.append(s)
            verdict = Verdict.CORRECT if right else Verdict.INCORRECT
            grades.append(GradedSolution(s.id, p.id, Grade(verdict, "", "1" if right else rng.choice("23"))))
            verifications["orm"].append(Verification(s.id, (rng.random(),), 0.5, "last", tokens=20))
            for name, skill in (("genrm", 0.3), ("judge", 0.1)):
                yes_votes = tuple(float(rng.random() < 0.5 + (skill if right else -skill)) for _ in range(8))
                texts = tuple(f"<b>{name}</b> looks at it, {j}" for j in range(8))
                mean = fmean(yes_votes)
                verifications[name].append(
                    Verification(s.id, (mean,), mean, "mean", rationales=texts, votes=yes_votes, tokens=300)
                )
    labelled = [LabelledSolution(solutions[0], grades[0].grade, (), RATIONALES)]
    metrics = evaluate(
        problems, solutions, grades, verifications, ns=[1, 2, 4, 8], rationales=labelled, resamples=100, draws=50
    )
    return problems, solutions, grades, verifications, json.loads(json.dumps(metrics.to_json()))


@pytest.fixture
def data(measured):
    problems, solutions, grades, verifications, raw = measured
    return report.ReportData(
        name="x",
        metrics=Metrics.parse(raw),
        problems=problems,
        solutions=solutions,
        grades=grades,
        verifications=verifications,
    )


def section(html: str, anchor: str) -> str:
    match = re.search(rf'<section id="{anchor}".*?</section>', html, flags=re.S)
    return match.group(0) if match else ""


def text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_the_votes_curve_has_a_line_for_each_generative_verifier(data, measured):
    raw = measured[-1]
    html = section(report.render(data), "votes")
    names = set(re.findall(r'class="direct">([^<]+)<', html))
    assert names == {"genrm", "judge", "plain voting"}
    cells = text(html)
    for k in ("1", "2", "4", "8"):
        assert f"{100 * raw['votes'][k]['mean']:.1f}" in cells
    assert "best of 8" in cells


def test_accuracy_by_tokens_is_drawn_up_to_each_ways_dearest_point(data):
    html = section(report.render(data), "tokens")
    assert set(re.findall(r'class="direct">([^<]+)<', html)) == {"plain voting", "orm", "genrm", "judge", "best of all"}
    dearest = {p.method: p.tokens for p in data.metrics.compute.points}
    assert f"genrm\ntokens for a problem {dearest['genrm']:,.6g}: " in html
    head = re.findall(r'<th scope="col">([^<]*)</th>', html)
    assert head == ["Tokens", "no verifier", "orm", "genrm", "judge"]
    budgets = [float(x.replace(",", "")) for x in re.findall(r'<th scope="row">([\d,]+)</th>', html)]
    assert budgets == [2.0**i for i in range(4, 4 + len(budgets))]
    last = text(html.split('<th scope="row">')[-1])
    best = max((p for p in data.metrics.compute.points if "genrm" in p.method), key=lambda p: p.accuracy.mean)
    assert f"{100 * best.accuracy.mean:.1f}" in last
    assert f"N {best.n}, K {best.k}" in last


def test_a_gain_beyond_the_noise_is_marked_and_one_within_is_not(data):
    rows = section(report.render(data), "tokens").split('<th scope="row">')
    last = data.metrics.compute.splits_by_verifier
    marked = re.findall(r"<td( class=\"best\")?>", rows[-1])[1:]  # the first is without a verifier
    assert [bool(m) for m in marked] == [s[-1].verified_over_voting.low > 0 for s in last.values()]
    assert len(set(marked)) == 2


def test_says_from_which_budget_on_it_pays_to_verify(data):
    page_text = text(section(report.render(data), "tokens"))
    splits = data.metrics.compute.splits_by_verifier["genrm"]
    clear = [s.verified_over_voting is not None and s.verified_over_voting.low > 0 for s in splits]
    first = splits[len(clear) - clear[::-1].index(False)]
    assert clear[-1]
    assert f"genrm: from {first.tokens:,.0f} tokens on, better" in page_text
    assert "orm: at no budget better" in page_text
    assert "Plain voting was measured up to N = 8, 96 tokens" in page_text


def test_what_became_of_rationales(data):
    page_text = text(section(report.render(data), "rationales"))
    assert "Written by asked kept rewritten kept yes kept no leak" in page_text
    assert "oracle 1 1 100% 0 0% 1 100% 0 0% 0 0%" in page_text
    assert "reference 2 1 50% 1 50% 0 0% 1 50% 1 50%" in page_text


def test_rationales_of_sample_solutions_are_shown_with_their_votes(data):
    html = section(report.render(data), "samples")
    assert "genrm: 8 rationales" in html
    assert "&lt;b&gt;genrm&lt;/b&gt; looks at it, 0" in html
    assert "<b>genrm</b>" not in html
    assert "… and 5 more" in html
    one = html.split("judge: 8 rationales")[0].split("genrm: 8 rationales")[1]
    page_text = text(one)
    votes = re.search(r"All votes: ([\d., ]+)", page_text).group(1).strip().split(", ")
    assert len(votes) == 8
    assert re.findall(r"p\(Yes\) (\d\.\d\d)", page_text) == votes[:3]


def test_a_second_test_part_has_its_own_tables(data, measured):
    raw = dict(measured[-1])
    other = json.loads(json.dumps(raw))
    for n in other["best_of_n"]["genrm"]:
        other["best_of_n"]["genrm"][n] = {"mean": 0.12345, "low": 0.1, "high": 0.2}
    metrics = Metrics.parse(raw | {"in_distribution": raw, "out_of_distribution": other | {"problems": 77}})
    html = report.render(dataclasses.replace(data, metrics=metrics))
    page_text = section(html, "other")
    assert "77 problems unlike" in page_text
    assert "12.3" in page_text
    assert "12.3" not in text(section(html, "accuracy"))
    assert page_text.count('role="img"') == 6  # three charts, each in two sizes
    assert section(report.render(data), "other") == ""
    table = report.table(metrics)
    assert "Out of distribution, 77 problems" in table
    assert "12.3" in table.split("Out of distribution")[1]


def test_an_older_metrics_file_has_none_of_it(data, measured):
    raw = {k: v for k, v in measured[-1].items() if k not in ("votes", "votes_by_verifier", "compute", "rationales")}
    html = report.render(dataclasses.replace(data, metrics=Metrics.parse(raw)))
    assert not any(section(html, anchor) for anchor in ("votes", "tokens", "rationales", "other"))
    assert section(html, "accuracy")

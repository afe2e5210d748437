"""A small, complete, made-up run like the demo: votes weighted by the verifier win, and its own choice falls."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepmark.report import Metrics, ReportData, TrainPoint
from stepmark.text import steps
from stepmark.types import (
    Finish,
    Grade,
    GradedSolution,
    Outcome,
    Problem,
    Quarantined,
    Selection,
    Solution,
    Verdict,
    Verification,
)

CHROMIUM = Path("/usr/bin/chromium")

CURVES = {
    "pass@1": (0.332, 0.332, 0.332, 0.332),
    "self_consistency": (0.332, 0.385, 0.421, 0.440),
    "orm": (0.332, 0.518, 0.551, 0.487),
    "self_consistency+orm": (0.332, 0.512, 0.741, 0.802),
    "prm": (0.332, 0.561, 0.530, 0.290),
    "self_consistency+prm": (0.332, 0.573, 0.842, 0.941),
    "prm_logprob": (0.332, 0.634, 0.881, 0.953),
    "self_consistency+prm_logprob": (0.332, 0.620, 0.870, 0.960),
    "oracle": (0.332, 0.691, 0.920, 0.987),
    "prm:prod": (0.332, 0.551, 0.52, 0.271),
    "prm:mean": (0.332, 0.49, 0.44, 0.252),
    "prm:last": (0.332, 0.53, 0.51, 0.281),
    "prm_logprob:prod": (0.332, 0.63, 0.87, 0.943),
    "self_consistency+prm:prod": (0.332, 0.57, 0.84, 0.938),
}


def interval(mean: float, half: float = 0.03) -> dict[str, float]:
    low = max(0.0, mean - half) if mean >= 0 else mean - half  # a difference may be negative
    return {"mean": mean, "low": low, "high": min(1.0, mean + half)}


@pytest.fixture
def raw_metrics() -> dict:
    """The metrics as json.load returns them."""
    ns = ("1", "4", "16", "64")
    metrics = {
        "problems": 300,
        "candidates": 19200,
        "seed": 7,
        "best_of_n": {m: dict(zip(ns, map(interval, row), strict=True)) for m, row in CURVES.items()},
        "differences": {
            "self_consistency+prm - self_consistency": {
                "16": interval(0.421),
                "64": {"mean": 0.501, "low": 0.44, "high": 0.56},
            },
            "prm_logprob - self_consistency+prm": {"64": {"mean": 0.012, "low": -0.014, "high": 0.039}},
            "prm - prm@16": {"1": interval(-0.198), "16": interval(0.0, 0.0), "64": interval(-0.24, 0.04)},
        },
        "auc": {"orm": interval(0.861, 0.01), "prm": interval(0.889, 0.01), "prm_logprob": interval(0.964, 0.005)},
        "label_quality": {
            str(n): {
                "accuracy": 0.8 + 0.015 * i,
                "false_positive_rate": 0.01 + 0.012 * i,
                "false_negative_rate": 0.32 - 0.05 * i,
                "soft_cross_entropy": 1.9 / (i + 1),
                "steps": 5123,
            }
            for i, n in enumerate((1, 2, 4, 8, 16))
        },
        "errors_missed": {
            v: {
                "misconception": {"missed": a, "total": 412},
                "slip": {"missed": b, "total": 96},
                "operand": {"missed": c, "total": 88},
            }
            for v, a, b, c in (("orm", 49, 51, 44), ("prm", 17, 84, 77), ("prm_logprob", 12, 9, 5))
        },
        "errors_selected": {
            "orm": {"misconception": 0.07, "slip": 0.31, "operand": 0.12, "no answer": 0.003},
            "prm": {"misconception": 0.01, "slip": 0.44, "operand": 0.26},
            "prm_logprob": {"misconception": 0.012, "slip": 0.02, "operand": 0.015},
        },
        "rates": {
            "truncated": 0.0123,
            "no_answer": 0.0,
            "ungradable": 0.0004,
            "prm_truncated": 0.0208,
            "correct_by_wrong_steps:prm": 0.021,
        },
        "notes": ["The generator was trained on demonstrations with planted misconceptions."],
        "seconds": {"init": 41.2, "sample": 72.8, "label": 63.0, "train": 201.4, "score": 38.0, "evaluate": 9.1},
    }
    return json.loads(json.dumps(metrics))


def solution(problem: Problem, sample: int, text: str, finish: Finish = Finish.STOP) -> Solution:
    return Solution(f"{problem.id}#{sample}", problem.id, sample, text, steps.split(text, "line"), finish)


@pytest.fixture
def report_data(raw_metrics: dict) -> ReportData:
    rng = random.Random(5)
    problems, solutions, grades, oracle, kinds, selections = [], [], [], {}, {}, []
    verifications: dict[str, list[Verification]] = {"orm": [], "prm": [], "prm_logprob": []}
    for i in range(8):
        a, b, c = rng.randint(3, 20), rng.randint(2, 9), rng.randint(2, 5)
        right = (a + b) * c
        facts = f"Ann has {a} apples. Ben has {b} more than Ann. Cat has {c} times as many as Ben."
        question = f"{facts} How many apples does Cat have?"
        problem = Problem(f"test-{i}", question, str(right), "arithmetic")
        problems.append(problem)
        for k in range(6):
            wrong = k in (0, 2, 3)
            last = a + b + c if wrong else right
            sign = "+" if wrong else "*"
            s = solution(
                problem, k, f"Ben has {a} + {b} = {a + b}.\nCat has {a + b} {sign} {c} = {last}.\nThe answer is {last}."
            )
            solutions.append(s)
            verdict = Verdict.INCORRECT if wrong else Verdict.CORRECT
            grades.append(GradedSolution(s.id, problem.id, Grade(verdict, f"{last} against {right}", str(last))))
            oracle[s.id] = (True, not wrong, not wrong)
            if wrong:
                kinds[s.id] = "misconception"
            good = rng.uniform(0.9, 1.0)
            low = rng.uniform(0.01, 0.3) if wrong else good
            verifications["orm"].append(Verification(s.id, (low,), low, "last"))
            for name in ("prm", "prm_logprob"):
                scores = (good, low, rng.uniform(0, low))
                verifications[name].append(Verification(s.id, scores, min(scores), "min"))
        for method, k in (
            ("self_consistency", 0),
            ("orm", 1),
            ("self_consistency+prm_logprob", 0 if i == 3 else 1),
            ("prm", 4),
        ):
            choice = str(grades[-6 + k].grade.answer)
            selections.append(Selection(problem.id, choice, f"{problem.id}#{k}", method, 6, 1.0, 0.5))
    verifications["prm"][0] = Verification(
        verifications["prm"][0].solution_id, (), 0.0, "min", Outcome.TRUNCATED, "longer than 512 tokens"
    )
    return ReportData(
        name="demo",
        metrics=Metrics.parse(raw_metrics),
        task="arithmetic, split test",
        date="2026-11-21 12:04",
        machine="AMD EPYC 9B45, 2 cores, 24 GiB; Python 3.11.2, torch 2.13.0",
        command="stepmark run recipes/demo.yaml seed=7",
        config={"task": {"name": "arithmetic", "noise": 0.65}, "sampling": {"n": 64, "stop": ["\n\n"]}, "seed": 7},
        problems=problems,
        solutions=solutions,
        grades=grades,
        verifications=verifications,
        selections=selections,
        oracle=oracle,
        kinds=kinds,
        training={
            "generator": [TrainPoint(u, "loss", 3.0 / (1 + u / 40) + rng.uniform(0, 0.1)) for u in range(0, 900, 3)],
            "prm": [TrainPoint(u, "loss", 0.7 / (1 + u / 200) + rng.uniform(0, 0.05)) for u in range(0, 600, 20)],
        },
        aggregate="min",
        quarantined=[
            Quarantined("questions.jsonl", 14, "no field 'answer'"),
            Quarantined("questions.jsonl", 90, "broken JSON"),
        ],
        verifiers={
            "orm": "outcome verifier: one score for the whole solution",
            "prm": "process verifier as in Math-Shepherd: tag tokens, full fine-tuning",
            "prm_logprob": "ours: also sees how likely each token was under its own base",
        },
    )


@pytest.fixture(
    scope="module"
)  # not longer: playwright leaves an event loop running in this thread, for all other tests
def browser() -> Iterator[object]:
    if not CHROMIUM.exists():
        pytest.skip(f"NO BROWSER: {CHROMIUM} is missing, so nobody looked at the report (apt-get install chromium)")
    api = pytest.importorskip(
        "playwright.sync_api", reason="NO BROWSER: playwright is not installed (pip install -e '.[dev]')"
    )
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a page; returns it with its log messages and requests."""
    contexts = []

    def go(html: str, width: int = 1280, scheme: str = "light"):
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        messages, asked = [], []
        page.on("console", lambda m: messages.append(m.text))
        page.on("pageerror", lambda e: messages.append(str(e)))
        page.on("request", lambda r: asked.append(r.url))
        page.goto(path.as_uri())
        return page, messages, [url for url in asked if url != path.as_uri()]

    yield go
    for context in contexts:
        context.close()

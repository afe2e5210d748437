"""Pairs of answers that graders are known to misjudge. `pairs.jsonl` has one a line: what was got, the reference, the
grader, the right verdict, and the kind of public report that gave the idea. Add a pair for a grade that was wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepmark.plugins import registry
from stepmark.types import Problem

PAIRS = [json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p['grader']}: {p['got']} | {p['reference']}")
def test_pair(pair: dict[str, str]) -> None:
    problem = Problem("p", "What is it?", pair["reference"], "pairs")
    grade = registry.load("grader", pair["grader"]).grade(rf"So it is \boxed{{{pair['got']}}}.", problem)
    assert grade.verdict == pair["verdict"], f"{pair['source']}: {grade.reason}"

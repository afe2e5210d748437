"""The format of the released rationales: reading, checks, and quarantined rows."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError, DataError
from stepmark.formats.genrm_rationales import GenRMRationales
from stepmark.plugins.registry import load
from stepmark.protocols import Format
from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.types import Imported, Quarantined, StepLabel

GOOD = f"Step 1: 1 + 1 = 2 is correct.\n\n**Final Grade:** Verification: {VERDICT} Yes"
LEAKING = f"Step 1: 1 + 1 = 2 is correct.\nExpected Answer: 1 + 1 = 2\n\nVerification: {VERDICT} Yes"


def row(question=7, sample=2, **fields):
    return {
        "question_id": question,
        "sample_id": sample,
        "question": f"1 + 1 ({question})?",
        "solution": "1 + 1 = 2. The answer is 2.",
        "correct": True,
        "target": "2",
        "reference_solution": "One and one make 2.",
        "rationale": GOOD,
    } | fields


def read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return list(GenRMRationales(**options).read(path))


def test_a_question_has_its_solutions_with_grades_and_rationales(tmp_path):
    wrong = row(sample=0, solution="1 + 1 = 3. The answer is 3.", correct=False, rationale=GOOD[:-3] + "No")
    [imported] = read(tmp_path, row(), wrong | {"rationale": GOOD}, wrong | {"reference_solution": "Another one."})
    assert isinstance(imported, Imported)
    p = imported.problem
    assert (p.id, p.question, p.answer, p.reference) == ("q7", "1 + 1 (7)?", "2", "One and one make 2.")
    assert [s.id for s in imported.solutions] == [g.key for g in imported.grades] == ["q7#0", "q7#2"]
    assert [(g.grade.correct, g.grade.answer) for g in imported.grades] == [(False, "3"), (True, "2")]
    assert [x.key for x in imported.rationales] == ["q7#0", "q7#2"]
    assert [x.grade for x in imported.rationales] == [g.grade for g in imported.grades]
    assert [x.labels for x in imported.rationales] == [(StepLabel(0, 0, source="none"),) * 2] * 2
    of_wrong, of_right = (x.rationales for x in imported.rationales)
    assert [(r.said, r.lost, r.source) for r in of_wrong] == [("yes", "mismatch", "reference"), ("no", "", "reference")]
    assert of_wrong[1].text.endswith(f"\n{VERDICT}{NO}")
    assert [r.text for r in of_right] == [f"Step 1: 1 + 1 = 2 is correct.\n{VERDICT}{YES}"]


@pytest.mark.parametrize(("leak", "lost", "words"), [("rewrite", "", 0), ("drop", "leak", 0), ("keep", "", 1)])
def test_the_option_leak_decides_about_leaks(tmp_path, leak, lost, words):
    [imported] = read(tmp_path, row(rationale=LEAKING), leak=leak)
    [rationale] = imported.rationales[0].rationales
    assert (rationale.lost, rationale.rewritten) == (lost, leak == "rewrite")
    assert rationale.text.count("Expected Answer") == words


def test_the_plain_rule_keeps_less(tmp_path):
    loose = row(rationale="1 + 1 = 2 is correct. Is the answer correct? (Yes/No) Yes")
    losses = [read(tmp_path, loose, strict=strict)[0].rationales[0].rationales[0].lost for strict in (False, True)]
    assert losses == ["", "unparsed"]


def test_rows_of_a_question_can_be_apart_and_it_comes_with_its_last_row(tmp_path):
    imported = read(tmp_path, row(1, 0), row(2, 0), row(1, 1), row(3, 5), row(2, 1))
    assert [(x.problem.id, len(x.solutions)) for x in imported] == [("q1", 2), ("q3", 1), ("q2", 2)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(correct="yes"), "true or false"),
        (row(correct=None), "true or false"),
        (row(sample=-1), "whole number"),
        (row(sample=0.5), "whole number"),
        (row(sample=None), "sample_id"),
        (row(rationale=" "), "rationale"),
        (row(solution=""), "solution"),
        (row(question="?" * 300), "question_id"),
        (row(1, 9) | {"question": "another?"}, "on line 1"),
        (row(1, 9) | {"target": "3"}, "on line 1"),
        (row(1, 2, solution="Another text"), "on line 1"),
        (row(1, 2, correct=False), "on line 1"),
        ("{broken", "JSON"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_line_and_the_rest_goes_on(tmp_path, bad, words):
    # Good rows come before and after the bad row, so it is neither the first nor the last of its question.
    items = read(tmp_path, row(1), bad, row(1, 3), row(3))
    [fault] = [x for x in items if isinstance(x, Quarantined)]
    assert fault.line == 2
    assert words in fault.reason
    assert [(x.problem.id, len(x.solutions)) for x in items if isinstance(x, Imported)] == [("q1", 2), ("q3", 1)]


def test_a_bad_last_row_does_not_hold_back_its_question(tmp_path):
    fault, imported = read(tmp_path, row(1), row(1, correct="no"))
    assert isinstance(fault, Quarantined)
    assert imported.problem.id == "q1"
    assert [type(x) for x in read(tmp_path, row(1, correct="no"))] == [Quarantined]


@given(st.permutations([(q, s) for q in range(3) for s in range(3)]))
def test_no_row_is_lost_in_any_order(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("rows")
    imported = read(folder, *(row(q, s) for q, s in order))
    assert sorted(x.problem.id for x in imported) == ["q0", "q1", "q2"]
    for x in imported:
        assert [s.sample for s in x.solutions] == [0, 1, 2]
        assert all(len(y.rationales) == 1 for y in x.rationales)


def test_it_is_a_plug_in_with_options(tmp_path):
    reader = load("format", "genrm_rationales", leak="drop")
    assert isinstance(reader, Format)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row()) + "\n").encode()))
    [imported] = reader.read(path)
    assert imported.problem.id == "q7"
    with pytest.raises(ConfigError, match="leak"):
        load("format", "genrm_rationales", leaks="drop")
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        list(reader.read(tmp_path / "nowhere.jsonl"))

"""The format of the released GSM8K solutions: reading, and quarantined rows."""

import json

import pytest

from stepmark.errors import DataError
from stepmark.formats.genrm_release import GenRMRelease
from stepmark.types import Imported, Quarantined


def row(**fields):
    solutions = [{"sample_id": 2, "solution": "1 + 1 = 2. The answer is 2.", "correct": True}]
    return {"question_id": 7, "question": "1 + 1?", "solutions": solutions} | fields


def read(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return list(GenRMRelease().read(path))


def test_a_row_becomes_a_problem_with_graded_solutions_in_order(tmp_path):
    solutions = [
        {"sample_id": 5, "solution": "First this. Then that. The answer is 3.", "correct": False},
        {"sample_id": 0, "solution": "The answer is 2.", "correct": True},
    ]
    [imported] = read(tmp_path, row(solutions=solutions))
    assert isinstance(imported, Imported)
    assert (imported.problem.id, imported.problem.question) == ("q7", "1 + 1?")
    assert [s.id for s in imported.solutions] == ["q7#0", "q7#5"]
    assert [g.key for g in imported.grades] == ["q7#0", "q7#5"]
    assert [(g.grade.correct, g.grade.answer) for g in imported.grades] == [(True, "2"), (False, "3")]
    assert imported.solutions[1].steps == ("First this.", "Then that.", "The answer is 3.")


@pytest.mark.parametrize(
    "bad",
    [
        row(solutions=[]),
        row(solutions=None),
        row(solutions=[{"sample_id": 0, "solution": " ", "correct": True}]),
        row(solutions=[{"sample_id": 0, "solution": "x", "correct": "yes"}]),
        row(solutions=[{"sample_id": -1, "solution": "x", "correct": True}]),
        row(solutions=[{"sample_id": 0, "solution": "x", "correct": True}] * 2),
        row(question=""),
        "{broken",
    ],
)
def test_a_bad_row_is_quarantined_with_its_line_and_the_rest_goes_on(tmp_path, bad):
    first, second, third = read(tmp_path, row(question_id=1), bad, row(question_id=3))
    assert isinstance(second, Quarantined)
    assert second.line == 2
    assert second.reason
    assert [x.problem.id for x in (first, third)] == ["q1", "q3"]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        list(GenRMRelease().read(tmp_path / "nowhere.jsonl"))

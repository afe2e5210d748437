"""`stepmark filter` on real files, with a verifier of a user's own file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.store import Records
from stepmark.types import ScoredRow

STRANGERS = Path(__file__).parents[1] / "strangers"
GOOD, BAD, LONG = "1 + 1 = 2\nthus 2", "1 + 1 = 3\nthus 3", "1 + 1 = 2\na\nb\nc"
ROWS = [
    {"question": "1 + 1?", "solutions": [GOOD, BAD, LONG], "marks": [1, 2, 3], "note": {"kept": "as it is"}},
    {"id": "b", "question": "2 + 2?", "completions": [BAD]},
    {"question": "3 + 3?", "solution": "3 + 3 = 6", "answer": 6},
    {"question": "4 + 4?", "solutions": []},
]
# A verifier that can't read every text, and counts how often it is asked.
PICKY = """
from dataclasses import dataclass
from pathlib import Path
from stepmark.types import Outcome, Verification

@dataclass(frozen=True)
class Picky:
    def verify(self, question, solutions):
        with Path(__file__).with_suffix(".log").open("a") as log:
            log.write("asked\\n" * len(solutions))
        return [self._one(s) for s in solutions]

    def _one(self, s):
        if "long" in s.text:
            return Verification(s.id, (), 0.0, "min", Outcome.TRUNCATED, "too long for it")
        if "crash" in s.text:
            raise ValueError("crashed")
        scores = (0.1 if "bad" in s.text else 0.9,)
        return Verification(s.id, scores, scores[0], "min")
"""


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def filtering(rows, out, keep, *more, code=0):
    return run(
        "filter",
        rows,
        "--verifier",
        STRANGERS / "verifier.py",
        "--keep",
        keep,
        "--out",
        out,
        *more,
        "--json",
        code=code,
    )


def test_solutions_are_kept_one_by_one_and_rows_stay_whole_otherwise(rows, tmp_path):
    out = tmp_path / "kept.jsonl"
    summary = json.loads(filtering(rows, out, "min > 0.5 and steps < 4").stdout)
    assert written(out) == [ROWS[0] | {"solutions": [GOOD], "marks": [1]}, ROWS[2]]
    assert {
        k: summary[k] for k in ("rows", "rows_kept", "rows_empty", "solutions", "kept", "dropped", "set_aside")
    } == {
        "rows": 4,
        "rows_kept": 2,
        "rows_empty": 1,
        "solutions": 5,
        "kept": 2,
        "dropped": 3,
        "set_aside": 0,
    }
    report = json.loads((tmp_path / "kept.report.json").read_text())
    assert report["reasons"] == {"min > 0.5": 2, "steps < 4": 1} and report["cut"] == ["marks"]
    [first, second] = report["examples"]["min > 0.5"]
    assert (first["row"], first["solution"], first["min"]) == ("1", 1, 0.1) and second["row"] == "b"
    assert not (tmp_path / "kept.unscored.jsonl").exists()


@pytest.mark.parametrize(("whole", "kept"), [("any", [ROWS[0], ROWS[2]]), ("all", [ROWS[2]])])
def test_rows_are_kept_whole(rows, tmp_path, whole, kept):
    out = tmp_path / "kept.jsonl"
    filtering(rows, out, "score > 0.5", "--rows", whole)
    assert written(out) == kept


def test_tables_and_arrays_are_read_too(tmp_path):
    rows, out = tmp_path / "rows.csv", tmp_path / "kept.jsonl"
    rows.write_text('question,solution\n1 + 1?,1 + 1 = 2\n"1 + 1, again?",1 + 1 = 3\n')
    filtering(rows, out, "min > 0.5")
    assert written(out) == [{"question": "1 + 1?", "solution": "1 + 1 = 2"}]
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(ROWS))
    filtering(array, tmp_path / "other.jsonl", "min > 0.5")
    assert [row["question"] for row in written(tmp_path / "other.jsonl")] == ["1 + 1?", "3 + 3?"]


def test_a_stopped_filter_goes_on_and_another_condition_needs_no_verifier(tmp_path):
    verifier, out = tmp_path / "picky.py", tmp_path / "kept.jsonl"
    verifier.write_text(PICKY)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}?", "solution": f"good {i}"}) + "\n" for i in range(20)))
    command = ["filter", rows, "--verifier", verifier, "--out", out, "--keep"]
    run(*command, "min > 0.5")
    scores, whole = tmp_path / "kept.scores.jsonl", out.read_bytes()
    stored = scores.read_bytes()
    lines = stored.splitlines(keepends=True)
    scores.write_bytes(b"".join(lines[:12]) + lines[12][:20])  # as a kill leaves it
    out.unlink()
    log = tmp_path / "picky.log"
    log.unlink()
    run(*command, "min > 0.5")
    assert out.read_bytes() == whole and sorted(scores.read_bytes().splitlines(True)) == sorted(lines)
    assert len(log.read_text().splitlines()) == 8  # what was stored is not asked for again
    run(*command, "min > 0.95")
    assert written(out) == [] and len(log.read_text().splitlines()) == 8
    verifier.write_text(PICKY + "\n")
    assert "verifier" in run(*command, "min > 0.5", code=2).stderr  # another verifier's scores are not mixed in


def test_what_has_no_score_is_set_aside(tmp_path):
    verifier, rows, out = (tmp_path / name for name in ("picky.py", "rows.jsonl", "kept.jsonl"))
    verifier.write_text(PICKY)
    given = [
        {"question": "a?", "solutions": ["good", "long", "bad"]},
        {"question": "b?", "solutions": ["long"]},
        {"question": "c?", "solution": "crash"},
        {"solution": "no question"},
    ]
    given += [{"question": f"{i}?", "solution": "good"} for i in range(8)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    command = ["filter", rows, "--verifier", verifier, "--keep", "min > 0.5", "--out"]
    done = run(*command, out, code=3)
    assert written(out) == [{"question": "a?", "solutions": ["good"]}, *given[4:]]
    aside = tmp_path / "kept.unscored.jsonl"
    assert [(x["id"], x["solution"]) for x in written(aside)] == [("1#1", "long"), ("2#0", "long"), ("3#0", "crash")]
    report = json.loads((tmp_path / "kept.report.json").read_text())
    assert report["unscored"] == {"truncated: too long for it": 2, "not scored: its row failed": 1}
    assert [x["line"] for x in report["quarantined"]] == [4]
    assert "line 4" in done.stderr and "crashed" in done.stderr and "kept.unscored.jsonl" in done.stderr
    run(*command, tmp_path / "any.jsonl", "--rows", "any", code=3)
    assert written(tmp_path / "any.jsonl") == [given[0], *given[4:]]  # one good solution decides
    run(*command, tmp_path / "all.jsonl", "--rows", "all", code=3)
    found = [x["id"] for x in written(tmp_path / "all.unscored.jsonl")]
    assert found == ["2#0", "3#0"]  # a bad solution of row 1 decides


def test_wrong_settings_are_refused_before_anything_is_scored(rows, tmp_path):
    out = tmp_path / "kept.jsonl"
    assert "mni" in filtering(rows, out, "mni > 0.5", code=2).stderr
    assert "any" in filtering(rows, out, "min > 0.5", "--rows", "some", code=2).stderr
    assert ".jsonl" in filtering(rows, tmp_path / "kept.csv", "min > 0.5", code=2).stderr
    assert "is filtered" in filtering(rows, rows, "min > 0.5", code=2).stderr
    assert sorted(tmp_path.iterdir()) == [rows]


def test_scores_of_another_length_are_refused(rows, tmp_path):
    """The scores of `stepmark score` serve, if they are of these rows."""
    out, scores = tmp_path / "kept.jsonl", tmp_path / "kept.scores.jsonl"
    run("score", rows, "--verifier", STRANGERS / "verifier.py", "--out", scores)
    assert len(Records(scores, ScoredRow)) == 4
    filtering(rows, out, "min > 0.5")
    rows.write_text(json.dumps(ROWS[0] | {"solutions": [GOOD]}) + "\n")
    assert "is not what was scored" in filtering(rows, out, "min > 0.5", code=1).stderr

"""The recipes in examples/, run as they are: each with its task, grader and steps, without a model."""

import json
import shutil
from pathlib import Path

import pytest

from stepmark.data.store import Records
from stepmark.run import recipe
from stepmark.run.execute import run
from stepmark.text.steps import split
from stepmark.types import GradedSolution, LabelledSolution, Verdict

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a copy of the examples: their recipes name files by their place below it."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", place / "examples")
    return place


def test_there_is_one_for_each_domain():
    assert RECIPES == ["code", "medical", "translation"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_from_the_task_to_the_report(name, place, monkeypatch):
    monkeypatch.chdir(place)
    settings = recipe.load(f"examples/{name}.yaml", [])
    done = run(settings, place / "runs" / name)
    assert done.exit_code == 0 and (place / "runs" / name / "report.html").is_file()
    kinds = {"grades/train": GradedSolution, "grades/test": GradedSolution, "labels/train": LabelledSolution}
    stored = {part: list(Records(place / "runs" / name / f"{part}.jsonl", kind)) for part, kind in kinds.items()}
    assert len(stored["grades/train"]) == 24
    assert {g.grade.verdict for g in stored["grades/train"]} == {Verdict.CORRECT, Verdict.INCORRECT}
    unclear = [g.grade for g in stored["grades/test"] if g.grade.verdict is Verdict.UNGRADABLE]
    assert {g.reason for g in unclear} == ({"the marking has no score"} if name == "translation" else set())
    # Steps with evidence of both kinds: a beginning that right and wrong attempts share, and one that only wrong have.
    evidence = [label for x in stored["labels/train"] for label in x.labels if label.source == "monte_carlo"]
    assert {label.hard for label in evidence} == {0.0, 1.0} and all(label.ungradable == 0 for label in evidence)
    accuracy = {method: row["6"]["mean"] for method, row in done.metrics["best_of_n"].items()}
    assert accuracy["oracle"] == 1.0 > accuracy["pass@1"]
    rule = settings.task.load().steps
    assert all(x.solution.spans == split(x.solution.text, rule) for x in stored["labels/train"])


def test_an_attempt_that_nobody_wrote_is_an_error_with_its_place(place, monkeypatch):
    monkeypatch.chdir(place)
    rows = [{"question": "Other.", "attempts": ["x"]}]
    (place / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change = "generator={backend: {name: examples/replay.py, options: {file: attempts.jsonl}}}"
    with pytest.raises(Exception, match=r"attempts\.jsonl: no attempt goes on after .*Add one"):
        run(recipe.load("examples/code.yaml", [change]), place / "runs" / "none")

"""Solutions from elsewhere, without sampling here: graded, labelled, learned from, scored, ranked and measured."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.encode import write_rows
from stepmark.data.exchange import RIGHT, UNSAID, WRONG
from stepmark.data.store import Records
from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.run import recipe
from stepmark.run.execute import run
from stepmark.stages.convert import encoded
from stepmark.types import (
    GradedSolution,
    Imported,
    LabelledSolution,
    Problem,
    Quarantined,
    SamplingParams,
    ScoredRow,
    Solution,
    Verification,
)

STRANGERS = Path(__file__).parents[1] / "strangers"
TINY = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "vocab": 300, "max_length": 256}
PRM = {
    "prm": {"kind": "prm", "base": {"init": TINY}, "train": {"epochs": 1, "batch_tokens": 512, "tensorboard": False}}
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Files as a script around an inference server writes them, of the problems of two splits: no flags, no answers."""
    from stepmark.types import Prompt

    folder = tmp_path_factory.mktemp("outputs")
    task = registry.load("task", str(STRANGERS / "task.py"))
    backend = registry.load("backend", str(STRANGERS / "backend.py"))
    for split in ("train", "test"):
        rows = []
        for p in task.load(split).problems:
            texts = [r.text for r in backend.sample([Prompt(p.id, p.question + "\n", n=4)], SamplingParams())]
            # Of one question the solutions are on several lines, as of several calls.
            rows += [{"prompt": p.question, "completions": texts[:2]}, {"prompt": p.question, "completions": texts[2:]}]
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


def parts(train, test, **both):
    return {"train": {"n": 4, **train, **both}, "test": {"n": 4, **test, **both}}


def make(sample, **sections):
    raw = {"name": "imported", "sample": sample, "verifiers": PRM, "evaluate": {"n": [1, 4]}, "workers": 1, **sections}
    return recipe.parse(raw, "here")


def stored(place, kind):
    return list(Records(place, kind))


def test_completions_of_a_task_are_graded_labelled_learned_from_scored_and_measured(tmp_path, outputs):
    train, test = ({"file": str(outputs / f"{s}.jsonl"), "split": s} for s in ("train", "test"))
    whole = make(
        parts(train, test, format="completions"),
        task=str(STRANGERS / "task.py"),
        completer={"backend": str(STRANGERS / "backend.py")},
        label={"name": "monte_carlo", "options": {"rollouts": 2}},
    )
    place = tmp_path / "run"
    metrics = run(whole, place).metrics
    solutions = stored(place / "solutions/train.jsonl", Solution)
    assert len(solutions) == 12 * 4
    assert {len([s for s in solutions if s.problem_id == p]) for p in {s.problem_id for s in solutions}} == {4}
    assert {g.grade.answer is not None for g in stored(place / "grades/train.jsonl", GradedSolution)} == {True}
    labelled = stored(place / "labels/train.jsonl", LabelledSolution)
    assert {x.source for s in labelled for x in s.labels} == {"monte_carlo", "outcome"}
    assert len(stored(place / "scores/prm.jsonl", Verification)) == 12 * 4
    assert set(metrics["best_of_n"]["prm"]) == {"1", "4"}
    shown = CliRunner().invoke(app, ["rank", str(place), "--method", "prm"])
    assert shown.exit_code == 0, shown.output
    # A verifier scores such a file without a recipe too; the solutions of a question come together.
    rows = tmp_path / "rows.jsonl"
    for command in (
        ["convert", outputs / "test.jsonl", "--to", "completions", rows],
        ["score", "--verifier", place / "verifiers/prm", rows, "--out", tmp_path / "scores.jsonl", "--json"],
    ):
        done = CliRunner().invoke(app, [str(c) for c in command])
        assert done.exit_code == 0, done.output
    assert [r.verifications for r in stored(tmp_path / "scores.jsonl", ScoredRow)] != []
    assert json.loads(done.stdout)["scored"] == 12 * 4
    before = (place / "labels/train.jsonl").read_bytes()
    run(whole, place)
    assert (place / "labels/train.jsonl").read_bytes() == before


def labelled_file(path, count=30, **problem):
    """A file of Math-Shepherd's form, whose labels are right by construction."""
    records = []
    for i in range(count):
        p = Problem(f"q{i}", f"What is {i} + 1 + 1?", "", "")
        texts = [f"Step 1: {i} + 1 = {i + 1}", f"Step 2: {i + 1} + 1 = {i + 2 + i % 2}"]
        joined = "\n".join(texts)
        spans = ((0, len(texts[0]) + 1), (len(texts[0]) + 1, len(joined)))
        s = Solution(f"q{i}#0", p.id, 0, joined, spans)
        records.append(Imported(p, (s,), labels=(LabelledSolution(s, UNSAID, (RIGHT, WRONG if i % 2 else RIGHT)),)))
    write_rows(path, encoded(records, registry.load("format", "math_shepherd"), Counter()))
    return path


def graded_file(path, count=8):
    rows = [
        {"question": f"And {i} + 2?", "completions": [f"It is {i + k}." for k in range(4)], "answer": i + 2}
        for i in range(count)
    ]
    write_rows(path, rows)
    return path


def test_imported_step_labels_train_a_process_verifier_without_a_labeler_or_a_task(tmp_path):
    shepherd, test = labelled_file(tmp_path / "shepherd.jsonl.gz"), graded_file(tmp_path / "test.jsonl")
    sample = parts({"file": str(shepherd), "format": "math_shepherd"}, {"file": str(test), "format": "completions"})
    done = run(make(sample, grader="numeric"), tmp_path / "run")
    labels = stored(tmp_path / "run/labels/train.jsonl", LabelledSolution)
    assert [[x.hard for x in s.labels] for s in labels] == [[1.0, float(i % 2 == 0)] for i in range(30)]
    trained = json.loads((tmp_path / "run/verifiers/prm/trained.json").read_text())
    assert trained["examples"] == 30
    assert done.metrics["best_of_n"]["pass@1"]["1"]["mean"] == 0.25
    grades = stored(tmp_path / "run/grades/train.jsonl", GradedSolution)
    assert {g.grade.verdict.value for g in grades} == {"ungradable"}  # and that stops nothing


def test_train_takes_labels_of_another_project(tmp_path):
    shepherd = labelled_file(tmp_path / "shepherd.jsonl", 6)
    with shepherd.open("a") as file:
        file.write('{"input": "no tag", "label": "no tag"}\n')
    from stepmark.models import checkpoints

    checkpoints.create(tmp_path / "base", [shepherd.read_text()], checkpoints.Shape(**TINY), 0)
    command = ["train", "prm", "--labels", shepherd, "--base", tmp_path / "base", "--out", tmp_path / "prm", "--json"]
    command += ["--set", "epochs=1", "--set", "tensorboard=false"]
    done = CliRunner().invoke(app, [*map(str, command), "--format", "math_shepherd"])
    assert done.exit_code == 3, done.output
    assert (json.loads(done.stdout)["examples"], json.loads(done.stdout)["quarantined"]) == (6, 1)
    assert "line 7" in done.stderr
    done = CliRunner().invoke(app, ["train", "generator", "--out", "x", "--format", "stepwise"])
    assert (done.exit_code, "give both" in done.stderr) == (2, True)


def test_a_question_that_the_task_does_not_have_is_set_aside(tmp_path, outputs):
    other = tmp_path / "other.jsonl"
    other.write_text((outputs / "train.jsonl").read_text() + '{"prompt": "Who?", "completions": ["I."]}\n')
    files = {"train": other, "test": outputs / "test.jsonl"}
    sources = ({"file": str(file), "format": "completions", "split": split} for split, file in files.items())
    whole = make(
        parts(*sources), task=str(STRANGERS / "task.py"), verifiers={"r": {"kind": str(STRANGERS / "verifier.py")}}
    )
    assert run(whole, tmp_path / "run").quarantined == 1
    [bad] = stored(tmp_path / "run/quarantine.jsonl", Quarantined)
    assert (bad.line, "no problem with this question: 'Who?'" in bad.reason) == (25, True)


def test_what_nothing_can_be_learned_from_is_an_error_that_says_what_to_do(tmp_path, outputs):
    train, test = ({"file": str(outputs / f"{s}.jsonl"), "format": "completions"} for s in ("train", "test"))
    verifiers = {"r": {"kind": str(STRANGERS / "verifier.py")}}
    with pytest.raises(DataError, match=r"has no reference answer.*sample\.train\.split"):
        run(make(parts(train, test), grader="numeric", verifiers=verifiers), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"sample\.train\.split: with file.* give a task"):
        make(parts(train | {"split": "train"}, test), grader="numeric", verifiers=verifiers)
    with pytest.raises(ConfigError, match=r"label compares answers .* give a grader, or a task"):
        make(parts(train, test), label="rule", verifiers=verifiers)


def test_rows_that_contradict_each_other_are_set_aside(tmp_path):
    rows = [
        {"id": "a", "question": "2?", "completions": ["It is 2.", "It is 3."], "answer": 2},
        {"id": "a", "question": "3?", "completions": ["It is 3."], "answer": 3},
        {"id": "b", "question": "4?", "completions": ["It is 4."], "answer": 4},
        {"id": "a", "question": "2?", "completions": ["It is 4."], "answer": 2},
    ]
    train = tmp_path / "train.jsonl"
    write_rows(train, rows)
    sample = parts({"file": str(train)}, {"file": str(graded_file(tmp_path / "test.jsonl"))}, format="completions")
    verifiers = {"r": {"kind": "linear"}}
    run(make(sample, grader="numeric", verifiers=verifiers), tmp_path / "run")
    assert [s.id for s in stored(tmp_path / "run/solutions/train.jsonl", Solution)] == ["a#0", "a#1", "b#0", "a#3"]
    assert [b.line for b in stored(tmp_path / "run/quarantine.jsonl", Quarantined)] == [2]

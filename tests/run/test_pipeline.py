"""Whole runs of the demo's recipe with a user's plug-ins, given by path: a task, a backend, a verifier."""

import gzip
import json
from pathlib import Path

import pytest

from stepmark.data.ledger import Budget
from stepmark.data.store import Records
from stepmark.errors import BudgetReached, ConfigChanged, ConfigError, DataError, StageError
from stepmark.run import recipe
from stepmark.run.execute import run
from stepmark.types import GradedSolution, LabelledSolution, Problem, Quarantined, Solution, Verification

STRANGERS = Path(__file__).parents[1] / "strangers"
DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def strangers(*changes, **backend):
    return [
        "seed=1",
        f"task={STRANGERS / 'task.py'}",
        f"generator={{backend: {{name: {STRANGERS / 'backend.py'}, options: {json.dumps(backend)}}}}}",
        f"verifiers={{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}",
        "sample.train={split: train, problems: 4, n: 2}",
        "sample.test={split: test, problems: 12, n: 16}",
        "evaluate.n=[1, 4, 16]",
        "workers=1",
        *changes,
    ]


def go(path, *changes, **backend):
    return run(recipe.load(DEMO, strangers(*changes, **backend)), path)


def records(path):
    kinds = {
        "problems/train": Problem,
        "problems/test": Problem,
        "solutions/train": Solution,
        "solutions/test": Solution,
        "grades/train": GradedSolution,
        "grades/test": GradedSolution,
        "labels/train": LabelledSolution,
        "scores/recompute": Verification,
    }
    return {name: {r.key: r for r in Records(path / f"{name}.jsonl", kind)} for name, kind in kinds.items()}


def test_a_users_plug_ins_work_in_the_demos_recipe(tmp_path):
    done = go(tmp_path / "run")
    assert done.exit_code == 0
    stored = records(tmp_path / "run")
    assert {name: len(r) for name, r in stored.items()} == {
        "problems/train": 4,
        "problems/test": 12,
        "solutions/train": 8,
        "solutions/test": 192,
        "grades/train": 8,
        "grades/test": 192,
        "labels/train": len({(s.problem_id, s.text) for s in stored["solutions/train"].values()}),
        "scores/recompute": 192,
    }
    # A verifier that recomputes each step finds every error of this generator.
    accuracy = {method: row["16"]["mean"] for method, row in done.metrics["best_of_n"].items()}
    assert accuracy["recompute"] == accuracy["oracle"] > accuracy["pass@1"]
    assert accuracy["self_consistency+recompute"] > accuracy["self_consistency"]
    assert done.metrics["problems"] == 12
    assert done.metrics["seed"] == 1
    assert done.metrics["label_quality"]
    assert {"sample test", "label", "score recompute", "evaluate"} <= set(done.metrics["seconds"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["best_of_n"] == done.metrics["best_of_n"]
    assert "recompute" in (tmp_path / "run" / "report.html").read_text()


def test_the_same_command_again_changes_nothing_and_other_settings_are_refused(tmp_path):
    first = go(tmp_path / "run")
    before = records(tmp_path / "run")
    again = go(tmp_path / "run", "workers=2")
    assert records(tmp_path / "run") == before
    assert again.metrics["best_of_n"] == first.metrics["best_of_n"]
    with pytest.raises(ConfigChanged) as caught:
        go(tmp_path / "run", "seed=2", "sample.test.n=17")
    assert '-  "seed": 1' in caught.value.diff
    assert '+  "seed": 2' in caught.value.diff
    assert records(tmp_path / "run") == before


def test_workers_change_no_result(tmp_path):
    go(tmp_path / "one")
    go(tmp_path / "two", "workers=2")
    assert records(tmp_path / "one") == records(tmp_path / "two")


def test_rows_set_aside_are_listed_and_change_the_exit_status(tmp_path):
    for _ in range(2):  # a second run must report them too
        done = go(tmp_path / "run", "task.options.bad_rows=3")
        assert (done.exit_code, done.quarantined) == (3, 6)
    rows = list(Records(tmp_path / "run" / "quarantine.jsonl", Quarantined))
    assert {(r.file, r.line) for r in rows} == {(f"{s}.jsonl", n) for s in ("train", "test") for n in (1, 2, 3)}


def test_failed_items_are_left_out_and_listed_and_the_same_command_retries_them(tmp_path):
    broken = tmp_path / "backend.py"
    text = (STRANGERS / "backend.py").read_text()
    broken.write_text(text.replace('fail_on: str = ""', 'fail_on: str = "test-1003"'))
    changes = [f"generator.backend.name={broken}"]
    done = go(tmp_path / "run", *changes)
    assert [f.item for f in done.failed] == ["test-1003"]
    assert done.exit_code == 3
    assert len(records(tmp_path / "run")["scores/recompute"]) == 11 * 16
    # The repaired class is in the same module, since a plug-in file is loaded only once in a process.
    import sys

    for name in [m for m in sys.modules if m.startswith("stepmark_user_backend")]:
        del sys.modules[name]
    broken.write_text(text)
    done = go(tmp_path / "run", *changes)
    assert (done.failed, done.exit_code) == ((), 0)
    assert len(records(tmp_path / "run")["scores/recompute"]) == 12 * 16


def test_truncated_solutions_are_kept_and_count_as_wrong(tmp_path):
    done = go(tmp_path / "run", truncated=0.4)
    assert done.failed == ()
    stored = records(tmp_path / "run")
    cut = {key for key, s in stored["solutions/test"].items() if s.finish == "length"}
    assert cut
    assert all(stored["grades/test"][key].grade.verdict == "ungradable" for key in cut)
    assert done.metrics["best_of_n"]["pass@1"]["1"]["mean"] < 0.6


def test_a_run_within_a_budget_goes_on_to_the_same_end(tmp_path):
    loaded = recipe.load(DEMO, strangers())
    for limit in (10, 150, 260):
        with pytest.raises(BudgetReached, match=f"rollouts {limit} of {limit}"):
            run(loaded, tmp_path / "run", budget=Budget(rollouts=limit))
    with pytest.raises(ConfigError, match="no model here has a price"):
        run(loaded, tmp_path / "run", budget=Budget(money=1))
    run(loaded, tmp_path / "run", budget=Budget(rollouts=1e6))
    go(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "rollouts" / "labels.spent.json").read_text())["failed"] == 0


def test_a_share_above_its_limit_stops_the_run_with_the_reason(tmp_path):
    with pytest.raises(StageError, match=r"sample stopped: .* were truncated.*limits\.truncated.*max_tokens"):
        go(tmp_path / "run", "limits.after=20", truncated=0.9)
    done = go(tmp_path / "other", "limits={truncated: 1.0}", truncated=0.9)
    assert done.metrics["rates"]["rollouts_truncated"] > 0.8


def test_a_verifier_can_have_its_own_limits(tmp_path):
    text = (
        (STRANGERS / "verifier.py")
        .read_text()
        .replace(
            """        return Verification(solution.id, scores""",
            """        if solution.sample:
            return Verification(solution.id, (), 0.0, "min", Outcome.UNPARSED, "no verdict")
        return Verification(solution.id, scores""",
        )
    )
    lost = tmp_path / "lost.py"
    lost.write_text(text.replace("import Verification", "import Outcome, Verification"))

    def load_recipe(limits, **backend):
        verifiers = {"recompute": {"kind": str(lost), **limits}}
        return recipe.load(DEMO, strangers("limits.after=20", f"verifiers={json.dumps(verifiers)}", **backend))

    with pytest.raises(StageError, match=r"score stopped: .* verifications .* were ungradable"):
        run(load_recipe({}), tmp_path / "run")
    own = {"limits": {"ungradable": 1.0}}
    done = run(load_recipe(own), tmp_path / "own")
    assert done.metrics["rates"]["recompute_unparsed"] > 0.9
    with pytest.raises(StageError, match=r"sample stopped: .* were truncated"):
        run(load_recipe(own, truncated=0.9), tmp_path / "cut")
    with pytest.raises(ConfigError, match=r"verifiers\.recompute\.limits.*ungradable is a share"):
        load_recipe({"limits": {"ungradable": 2}})
    assert "limits" not in load_recipe({}).resolved()["verifiers"]["recompute"]  # older runs go on


def test_a_labeller_without_its_model_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"label: judge asks a judge; give judge, a model"):
        recipe.load(DEMO, strangers("label=judge"))
    with pytest.raises(ConfigError, match=r"judge.train: no labeler under rationales has `demonstrations`"):
        recipe.load(DEMO, strangers("judge={path: x, train: {epochs: 1}}"))


@pytest.fixture
def released(tmp_path):
    path = tmp_path / "solutions.jsonl.gz"
    with gzip.open(path, "wt") as f:
        for q in range(40):
            listed = [
                {"sample_id": s, "solution": f"It is {q} + {s}. The answer is {q + s % 2}.", "correct": s % 2 == 0}
                for s in range(4)
            ]
            f.write(json.dumps({"question_id": q, "question": f"What is {q}?", "solutions": listed}) + "\n")
        f.write('{"question_id": 99, "question": "No solutions?"}\n')
    return path


def imported(path, *changes):
    part = "{file: %s, format: genrm_release, n: 4, share: [%s, %s]}"
    return [
        "task=null",
        "generator=null",
        "label=null",
        f"verifiers={{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}",
        f"sample.train={part % (path, 0.3, 1)}",
        f"sample.test={part % (path, 0, 0.3)}",
        "evaluate.n=[1, 4]",
        "workers=1",
        *changes,
    ]


def test_imported_solutions_are_divided_by_question_and_keep_their_grades(tmp_path, released):
    done = run(recipe.load(DEMO, imported(released)), tmp_path / "run")
    assert (done.exit_code, done.quarantined) == (3, 1)
    assert done.metrics["best_of_n"]["pass@1"]["1"]["mean"] == 0.5
    stored = {
        part: set(Records(tmp_path / "run" / f"problems/{part}.jsonl", Problem).keys()) for part in ("train", "test")
    }
    assert not stored["train"] & stored["test"]
    assert stored["train"] | stored["test"] == {f"q{i}" for i in range(40)}
    grades = list(Records(tmp_path / "run" / "grades/test.jsonl", GradedSolution))
    assert len(grades) == 4 * len(stored["test"])
    assert all(g.grade.correct == (int(g.key.split("#")[1]) % 2 == 0) for g in grades)


def test_a_share_without_questions_is_an_error(tmp_path, released):
    changes = imported(released, f"sample.test={{file: {released}, format: genrm_release, n: 4, share: [0, 0.000001]}}")
    with pytest.raises(DataError, match="no usable question"):
        run(recipe.load(DEMO, changes), tmp_path / "run")


def test_settings_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError):
        go(tmp_path / "run", "sample.test.n=0")
    assert not (tmp_path / "run").exists()

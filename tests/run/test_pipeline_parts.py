"""Runs with a second, out-of-distribution test: sampled, graded, scored and measured like the first."""

import json
from pathlib import Path

import pytest

from stepmark.data.ledger import Budget
from stepmark.data.store import Records, RunDir
from stepmark.errors import BudgetReached
from stepmark.run import recipe
from stepmark.run.context import RunContext
from stepmark.run.execute import run, run_stage
from stepmark.run.pipeline.score import Score
from stepmark.types import GradedSolution, Problem, Solution, Verification

STRANGERS = Path(__file__).parents[1] / "strangers"
FAR = "sample.out_of_distribution={split: far, problems: 5, n: 8}"
RECORDS = {"problems": Problem, "solutions": Solution, "grades": GradedSolution}


def load_recipe(*changes):
    raw = {
        "name": "parts",
        "seed": 1,
        "task": str(STRANGERS / "task.py"),
        "generator": {"backend": str(STRANGERS / "backend.py")},
        "verifiers": {"recompute": {"kind": str(STRANGERS / "verifier.py")}},
        "sample": {
            "train": {"split": "train", "problems": 3, "n": 2},
            "test": {"split": "test", "problems": 6, "n": 8},
        },
        "label": {"name": "monte_carlo", "options": {"rollouts": 4}},
        "evaluate": {"n": [1, 8]},
        "workers": 1,
    }
    return recipe.parse(recipe.changed(raw, changes), "test")


def stored(path):
    """Every record of the two tests, by part, folder and key."""
    places = {
        part: {name: (path / f"{name}/{part}.jsonl", kind) for name, kind in RECORDS.items()}
        for part in ("test", "out_of_distribution")
    }
    places["test"]["scores"] = path / "scores/recompute.jsonl", Verification
    places["out_of_distribution"]["scores"] = path / "scores/out_of_distribution/recompute.jsonl", Verification
    return {
        part: {name: {r.key: r for r in Records(*place)} for name, place in of.items()} for part, of in places.items()
    }


def test_the_second_test_is_measured_like_the_first_and_does_not_change_it(tmp_path):
    with_it = run(load_recipe(FAR), tmp_path / "two")
    without = run(load_recipe(), tmp_path / "one")
    both, alone = stored(tmp_path / "two"), stored(tmp_path / "one")
    assert both["test"] == alone["test"]
    assert not any(alone["out_of_distribution"].values())
    assert {name: len(metrics) for name, metrics in both["out_of_distribution"].items()} == {
        "problems": 5,
        "solutions": 40,
        "grades": 40,
        "scores": 40,
    }
    assert {p.split("-")[0] for p in both["out_of_distribution"]["problems"]} == {"far"}
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(with_it.metrics))
    near, far = metrics["in_distribution"], metrics["out_of_distribution"]
    timed = {"name", "seconds", "stage_notes"}
    assert {k: v for k, v in near.items() if k not in timed} == {
        k: v for k, v in without.metrics.items() if k not in timed
    }
    assert {k: metrics[k] for k in near if k not in timed} == {k: near[k] for k in near if k not in timed}
    assert set(far) == set(near)
    assert (far["problems"], far["candidates"]) == (5, 40)
    grades = both["out_of_distribution"]["grades"].values()
    share = sum(g.grade.correct for g in grades) / len(grades)
    assert far["best_of_n"]["pass@1"]["1"]["mean"] == pytest.approx(share)
    assert far["best_of_n"]["recompute"]["8"]["mean"] == far["best_of_n"]["oracle"]["8"]["mean"]
    assert not {"in_distribution", "out_of_distribution"} & set(without.metrics)


def test_a_run_stopped_in_any_part_continues_to_the_same_records(tmp_path):
    loaded = load_recipe(FAR)
    for limit in (6, 30, 60, 90, 100):
        with pytest.raises(BudgetReached):
            run(loaded, tmp_path / "run", budget=Budget(rollouts=limit))
    run(loaded, tmp_path / "run")
    run(loaded, tmp_path / "whole")
    assert stored(tmp_path / "run") == stored(tmp_path / "whole")


def test_lost_scores_are_made_again_only_for_their_part(tmp_path):
    run(load_recipe(FAR), tmp_path / "run")
    before = stored(tmp_path / "run")
    place = tmp_path / "run/scores/out_of_distribution/recompute.jsonl"
    place.write_text("".join(place.read_text().splitlines(keepends=True)[:9]))
    kept = (tmp_path / "run/scores/recompute.jsonl").stat().st_mtime_ns
    with RunDir(tmp_path / "run").open(load_recipe(FAR).resolved()) as directory:
        for part in ("test", "out_of_distribution"):
            run_stage(RunContext(load_recipe(FAR), directory), Score("recompute", part))
    assert stored(tmp_path / "run") == before
    assert (tmp_path / "run/scores/recompute.jsonl").stat().st_mtime_ns == kept

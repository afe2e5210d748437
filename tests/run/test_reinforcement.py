"""Reinforcement in a run, with real tiny models: policies learn, a verifier is refreshed, and both are measured."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from seeds import SEED
from stepmark.data.store import Records, RunDir
from stepmark.errors import ConfigChanged, ConfigError
from stepmark.models import checkpoints
from stepmark.rl.settings import ReinforceSettings
from stepmark.run import dry_run, execute, recipe, seeds
from stepmark.run.policies import TrainedPolicy
from stepmark.types import Finish, GradedSolution, LabelledSolution, Solution, Verification

STRANGERS = Path(__file__).parents[1] / "strangers"
TRAIN = {"epochs": 2, "lr": 1.0e-2, "batch_tokens": 256, "row_tokens": 64, "tensorboard": False}
RAW = {
    "name": "reinforced",
    "seed": SEED + 1,
    "task": str(STRANGERS / "guesses.py"),
    "generator": {
        "init": {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "vocab": 300, "max_length": 64},
        "train": TRAIN | {"epochs": 15},
    },
    "sample": {
        "train": {"split": "train", "problems": 8, "n": 2},
        "test": {"split": "test", "problems": 6, "n": 4},
        "max_tokens": 24,
    },
    "label": {"name": "monte_carlo", "options": {"rollouts": 2}},
    "verifiers": {"orm": {"kind": "orm", "train": TRAIN}, "prm": {"kind": "prm", "train": TRAIN}},
    "evaluate": {"n": [1, 4]},
    "reinforce": {
        "problems": 12,
        "held_out": {"split": "dev", "problems": 8},
        "test": {"split": "test", "problems": 10, "n": 4},
        "settings": {
            "updates": 2,
            "prompts": 4,
            "samples": 2,
            "minibatches": 1,
            "epochs": 1,
            "evaluate_every": 1,
            "guard": "off",
            "best": False,
            "tensorboard": False,
        },
        "policies": {
            "rft": {"method": "rft", "samples": 6, "train": TRAIN},
            "orm_ppo": {"reward": "orm", "credit": "outcome"},
            "step_ppo": {"reward": "prm", "settings": {"kl": 0.02}},
            "mixed": {"method": "grpo", "reward": {"prm": 1.0, "gold": 0.5}},
        },
        "refresh": {"verifier": "prm", "policy": "step_ppo", "problems": 6, "n": 2, "rounds": 2},
    },
    "workers": 1,
}
POLICIES = ["sft", "rft", "orm_ppo", "step_ppo", "mixed", "step_ppo_2"]
VERIFIERS = ["orm", "prm", "prm_refreshed"]


def load_recipe(*changes):
    return recipe.parse(recipe.changed(RAW, changes), "test")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("reinforced") / "run"
    return path, execute.run(load_recipe(), path)


def stored(path, policy, what, kind):
    return {r.key: r for r in Records(path / f"after/{policy}/{what}.jsonl", kind)}


@pytest.mark.robust
def test_every_policy_is_trained_and_its_result_stored(done):
    path, result = done
    assert result.exit_code == 0
    rounds = [list(Records(path / f"{name}.jsonl", TrainedPolicy)) for name in ("policies", "policies-2")]
    assert [x.policy for x in rounds[1]] == ["step_ppo_2"]
    learned = {x.policy: x for trained in rounds for x in trained}
    assert set(learned) == set(POLICIES[1:])
    assert {name: x.method for name, x in learned.items()}["mixed"] == "grpo"
    for name, x in learned.items():
        assert (path / "policies" / name / "model.safetensors").is_file()
        assert x.result.tokens > 0
        if name != "rft":
            assert (x.result.updates, len(x.result.rewards), len(x.result.looks)) == (2, 2, 3)
    # A policy starts from that of the round before, and its reward is the verifier that was refreshed on it.
    own = json.loads((path / "policies/step_ppo_2/training.json").read_text())
    first = json.loads((path / "policies/step_ppo/training.json").read_text())
    for training, verifier in ((first, "prm"), (own, "prm_refreshed")):
        [place] = training["source"]["places"][0]["places"]
        assert place == checkpoints.digest(path / "verifiers" / verifier)
    assert own["policy"] != first["policy"]
    assert (first["settings"]["kl"], own["settings"]["kl"]) == (0.02, 0.02)
    assert first["settings"]["max_tokens"] == 24  # as the recipe's other samples
    assert first["settings"]["seed"] == SEED + 1


@pytest.mark.robust
def test_the_refreshed_verifier_learned_from_the_policys_solutions_and_the_first_examples(done):
    path, _ = done
    place = path / "refreshed/prm_refreshed"
    solutions = list(Records(place / "solutions.jsonl", Solution))
    labels = list(Records(place / "labels.jsonl", LabelledSolution))
    assert len(solutions) == 12 == len(Records(place / "grades.jsonl", GradedSolution))
    assert {x.key for x in labels} <= {s.id for s in solutions}
    assert any(x.labels[0].gradable for x in labels)
    old, new = (json.loads((path / f"verifiers/{v}/trained.json").read_text()) for v in ("prm", "prm_refreshed"))
    assert new["examples"] > old["examples"]
    assert (path / "verifiers/prm_refreshed/verifier.json").is_file()


def test_greedy_accuracy_comes_from_the_grades_of_greedy_answers(done):
    path, result = done
    assert list(result.metrics["greedy"]) == POLICIES
    for name in POLICIES:
        grades = stored(path, name, "greedy_grades", GradedSolution).values()
        assert len(grades) == 10
        x = result.metrics["greedy"][name]
        assert x["mean"] == pytest.approx(sum(g.grade.correct for g in grades) / 10)
        assert x["low"] <= x["mean"] <= x["high"]
    differences = result.metrics["greedy_differences"]
    for pair in ("step_ppo - sft", "rft - sft", "step_ppo - orm_ppo", "step_ppo - rft", "step_ppo_2 - step_ppo"):
        a, b = pair.split(" - ")
        expected = result.metrics["greedy"][a]["mean"] - result.metrics["greedy"][b]["mean"]
        assert differences[pair]["mean"] == pytest.approx(expected)


def test_every_verifier_selects_among_the_samples_of_every_policy(done):
    path, result = done
    for name in POLICIES:
        solutions = stored(path, name, "solutions", Solution)
        grades = stored(path, name, "grades", GradedSolution)
        assert len(solutions) == 40 == len(grades)
        rows = result.metrics["after"][name]
        wanted = {"pass@1", "self_consistency", "oracle", *VERIFIERS, *(f"self_consistency+{v}" for v in VERIFIERS)}
        assert set(rows) == wanted
        assert all(set(row) == {"1", "4"} for row in rows.values())
        right = [g.grade.correct and solutions[k].finish is Finish.STOP for k, g in grades.items()]
        assert rows["pass@1"]["4"]["mean"] == pytest.approx(sum(right) / 40)
        scores = stored(path, name, "scores/prm_refreshed", Verification)
        assert set(scores) == set(solutions)
        pairs = result.metrics["after_differences"][name]
        assert ("prm - sft" in pairs) == (name != "sft")
        assert pairs["prm_refreshed - prm"]["4"]["mean"] == pytest.approx(
            rows["prm_refreshed"]["4"]["mean"] - rows["prm"]["4"]["mean"]
        )
        gained = rows["prm"]["4"]["mean"] - result.metrics["greedy"][name]["mean"]
        assert pairs["prm - greedy"]["4"]["mean"] == pytest.approx(gained)


@pytest.mark.robust
def test_curves_and_training_results_are_those_of_the_logs(done):
    path, result = done
    m = result.metrics
    assert set(m["reward_curve"]) == set(POLICIES) - {"sft", "rft"}
    lines = [json.loads(x) for x in (path / "policies/step_ppo/reinforce.jsonl").read_text().splitlines()]
    assert [x["update"] for x in lines] == [0, 1, 2] and "reward" not in lines[0]
    assert [u for u, _ in m["reward_curve"]["step_ppo"]] == [1, 2]
    assert [y for _, y in m["reward_curve"]["step_ppo"]] == pytest.approx([x["reward"] for x in lines[1:]])
    assert [u for u, _ in m["accuracy_curve"]["step_ppo"]] == [0, 1, 2]
    for name in ("same_reward", "empty", "truncated", "entropy"):
        assert set(m[f"{name}_curve"]) == set(m["reward_curve"])
        assert m[f"{name}_curve"]["step_ppo"] == [[x["update"], pytest.approx(x[name])] for x in lines[1:]]
    assert set(m["policies"]) == set(POLICIES[1:])
    course = m["policies"]["step_ppo"]
    assert (course["method"], course["updates"], course["stopped"]) == ("ppo", 2, "")
    assert 0 <= course["kl"] < 0.1 and m["policies"]["rft"]["kl"] > 0
    assert {"reinforce", "refresh", "reinforce 2", "test policies"} <= set(m["seconds"])
    assert set(m["best_of_n"]) >= {"prm", "orm"}  # the verifiers are measured as in every run


def test_the_report_shows_reinforcement(done):
    path, result = done
    html = (path / "report.html").read_text()
    assert 'id="policies"' in html
    assert f"{100 * result.metrics['greedy']['step_ppo']['mean']:.1f}" in html


def test_the_same_command_does_nothing_and_measuring_again_gives_the_same(done):
    path, result = done
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*.safetensors")}
    records = {p: p.read_bytes() for p in path.rglob("*.jsonl") if p.name != "log.jsonl"}
    again = execute.run(load_recipe(), path)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*.safetensors")} == before
    assert {p: p.read_bytes() for p in path.rglob("*.jsonl") if p.name != "log.jsonl"} == records
    config = json.loads((path / "config.json").read_text())
    with RunDir(path).open(config) as directory:
        anew = seeds.evaluate(recipe.parse(config, "again"), directory)
    for part in ("greedy", "greedy_differences", "after", "reward_curve", "policies"):
        assert again.metrics[part] == result.metrics[part] == anew[part]


@pytest.mark.robust
def test_only_lost_records_are_made_again(done):
    path, result = done
    place = path / "after/mixed/scores/orm.jsonl"
    whole = {r.key: r for r in Records(place, Verification)}
    place.write_text("".join(place.read_text().splitlines(keepends=True)[:7]))
    again = execute.run(load_recipe(), path)
    # Lost scores are computed in a batch of another shape, which may change the rounding.
    anew = {r.key: r for r in Records(place, Verification)}
    assert anew.keys() == whole.keys()
    for key, r in anew.items():
        assert (r.score, *r.scores) == pytest.approx((whole[key].score, *whole[key].scores), abs=1e-6)
        assert replace(r, score=0.0, scores=()) == replace(whole[key], score=0.0, scores=())
    assert again.metrics["after"] == result.metrics["after"]


def test_without_samples_only_greedy_answers_are_measured(done, tmp_path):
    changes = ["reinforce.test.n=1", "reinforce.refresh=null", "reinforce.policies={g: {reward: gold}}"]
    result = execute.run(
        load_recipe(*changes, "verifiers={}", "label=null", "evaluate.n=[1]"), tmp_path / "run"
    ).metrics
    assert list(result["greedy"]) == ["sft", "g"]
    assert result["after"] == {} == result["after_differences"]
    assert result["greedy"]["sft"]["mean"] == done[1].metrics["greedy"]["sft"]["mean"]


def test_several_seeds_are_pooled(tmp_path):
    changes = [
        "reinforce.test.n=2",
        "reinforce.refresh=null",
        "reinforce.policies={g: {reward: gold}, p: {reward: prm}}",
        "verifiers.orm=null",
        "seeds=[1, 2]",
        "evaluate.n=[1]",
    ]
    raw = {k: v for k, v in RAW.items() if k != "seed"}
    raw["verifiers"] = {"prm": RAW["verifiers"]["prm"]}
    several = recipe.parse(recipe.changed(raw, [c for c in changes if "orm" not in c]), "test")
    result = seeds.run(several, tmp_path / "run").metrics
    runs = [json.loads((tmp_path / f"run/seed-{s}/metrics.json").read_text()) for s in (1, 2)]
    for policy in ("sft", "g", "p"):
        each = [x["greedy"][policy]["mean"] for x in runs]
        assert result["greedy"][policy]["per_seed"] == each
        assert result["greedy"][policy]["mean"] == pytest.approx(sum(each) / 2)
        pooled = result["after"][policy]["self_consistency+prm"]["2"]
        assert len(pooled["per_seed"]) == 2
    assert result["greedy_differences"]["p - g"]["low"] >= -1
    curves = [x["accuracy_curve"]["p"] for x in runs]
    mean = [[u, pytest.approx((a + b) / 2)] for (u, a), (_, b) in zip(*curves, strict=True)]
    assert result["accuracy_curve"]["p"] == mean
    assert result["accuracy_curve_per_seed"]["p"] == {"1": curves[0], "2": curves[1]}
    assert result["entropy_curve_per_seed"]["p"]["1"] == runs[0]["entropy_curve"]["p"]
    assert result["policies"]["p"]["tokens"] == sum(x["policies"]["p"]["tokens"] for x in runs)
    assert result["policies"]["p"]["updates"] == 2
    assert "</svg>each seed</li>" in (tmp_path / "run/report.html").read_text()


def test_a_run_from_before_the_guard_of_the_attempts_goes_on(tmp_path):
    old = json.loads(json.dumps(load_recipe().resolved()))
    for section in (old["reinforce"], *old["reinforce"]["policies"].values()):
        del section["settings"]["collapse"], section["settings"]["collapse_updates"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(old))
    dry_run.plan(load_recipe(), tmp_path / "run")
    with pytest.raises(ConfigChanged, match="collapse"):
        dry_run.plan(load_recipe("reinforce.settings.collapse=off"), tmp_path / "run")


def test_off_is_a_word_in_a_recipe_and_on_the_command_line(tmp_path):
    chosen = recipe.settings(ReinforceSettings, ["guard=off", "collapse=off", "best=no", "tensorboard=on"], "--set")
    assert (chosen.guard, chosen.collapse, chosen.best, chosen.tensorboard) == ("off", "off", False, True)
    place = tmp_path / "r.yaml"
    place.write_text(yaml.safe_dump(RAW).replace("guard: 'off'", "guard: off"))
    assert "guard: off" in place.read_text()
    assert recipe.load(place).resolved() == recipe.parse(RAW, "test").resolved()


def test_reinforcement_without_a_task_is_refused():
    with pytest.raises(ConfigError, match="needs a task and a generator"):
        load_recipe("task=null", "generator=null", "label=null")


def test_a_killed_run_continues_to_the_same_result(done, tmp_path):
    """In worker processes, killed while policies learn and again while they are tried."""
    path, result = done
    place = tmp_path / "recipe.yaml"
    place.write_text(yaml.safe_dump(RAW | {"workers": 2}))
    run = tmp_path / "run"
    # The files of the other stages and policies are copied.
    shutil.copytree(path, run, ignore=shutil.ignore_patterns("step_ppo*", "refreshed*", "prm_refreshed*", "metrics*"))
    lines = (run / "policies.jsonl").read_text().splitlines(keepends=True)
    (run / "policies.jsonl").write_text("".join(line for line in lines if "step_ppo" not in line))
    (run / "policies-2.jsonl").unlink()
    command = [sys.executable, "-m", "stepmark", "run", str(place), "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for sign in ("policies/step_ppo/reinforce.jsonl", "after/step_ppo/solutions.jsonl"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
        deadline = time.monotonic() + 600
        while not (run / sign).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # the workers end with it
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "step_ppo_2" in ended.stdout
    again = json.loads((run / "metrics.json").read_text())
    for part in ("greedy", "greedy_differences", "after", "after_differences", "reward_curve", "accuracy_curve"):
        assert again[part] == json.loads(json.dumps(result.metrics[part]))

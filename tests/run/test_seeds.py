"""Several seeds of one recipe: an ordinary run for each, and their pooled metrics."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.ledger import Budget
from stepmark.data.store import Records, RunDir
from stepmark.errors import ConfigChanged, ConfigError, DataError, StageError
from stepmark.evaluation import stats
from stepmark.run import execute, recipe, seeds
from stepmark.types import Solution, Verification

STRANGERS = Path(__file__).parents[1] / "strangers"
RAW = {
    "name": "several",
    "seeds": [3, 5],
    "task": str(STRANGERS / "task.py"),
    "generator": {"backend": str(STRANGERS / "backend.py")},
    "verifiers": {"recompute": {"kind": str(STRANGERS / "verifier.py")}},
    "sample": {
        "train": {"split": "train", "problems": 3, "n": 2},
        "test": {"split": "test", "problems": 6, "n": 8},
        "out_of_distribution": {"split": "far", "problems": 4},
    },
    "label": {"name": "monte_carlo", "options": {"rollouts": 4}},
    "evaluate": {"n": [1, 8]},
    "workers": 1,
}


def load_recipe(*changes):
    return recipe.parse(recipe.changed(RAW, changes), "test")


def alone(seed):
    return recipe.parse({**{k: v for k, v in RAW.items() if k != "seeds"}, "seed": seed}, "test")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds")
    shown = []
    return path, seeds.run(load_recipe("workers=2"), path, shown.append), shown


def stored(path):
    return {
        name: {r.key: r for r in Records(path / f"{name}.jsonl", kind)}
        for name, kind in (("solutions/test", Solution), ("scores/out_of_distribution/recompute", Verification))
    }


def test_each_seed_is_the_ordinary_run_of_that_seed(done, tmp_path):
    path, result, _ = done
    assert result.exit_code == 0
    for seed in (3, 5):
        execute.run(alone(seed), tmp_path / str(seed))
        assert stored(path / f"seed-{seed}") == stored(tmp_path / str(seed))
        config, own = (
            json.loads((p / "config.json").read_text()) for p in (path / f"seed-{seed}", tmp_path / str(seed))
        )
        assert config == own
    assert stored(path / "seed-3") != stored(path / "seed-5")


def test_every_accuracy_is_the_mean_over_seeds_in_both_tests(done):
    path, result, _ = done
    written = json.loads((path / "metrics.json").read_text())
    assert written == json.loads(json.dumps(result.metrics))
    runs = [json.loads((path / f"seed-{s}/metrics.json").read_text()) for s in (3, 5)]
    assert (written["seeds"], written["name"]) == ([3, 5], "several")
    assert "seed" not in written
    pick = [lambda m: m, lambda m: m["in_distribution"], lambda m: m["out_of_distribution"]]
    for part in pick:
        for name in ("best_of_n", "differences"):
            assert part(written)[name].keys() == part(runs[0])[name].keys()
            for method, row in part(written)[name].items():
                for n, x in row.items():
                    each = [part(m)[name][method][n]["mean"] for m in runs]
                    assert x["per_seed"] == each
                    assert x["mean"] == pytest.approx(mean(each))
                    assert (-1 if name == "differences" else 0) <= x["low"] <= x["mean"] <= x["high"] <= 1
        assert part(written)["problems"] == sum(part(m)["problems"] for m in runs)
        assert part(written)["rates"]["truncated"] == 0
    assert written["auc"]["recompute"]["within_problem"]["per_seed"]
    assert "2 seeds (3, 5)" in written["notes"][0]
    assert written["seconds"]["sample test"] == pytest.approx(sum(m["seconds"]["sample test"] for m in runs), abs=0.002)


def test_the_report_shows_pooled_metrics_and_names_the_reports_of_the_seeds(done):
    path, result, _ = done
    page = (path / "report.html").read_text()
    assert "seed-3/report.html" in page and "seed-5/report.html" in page
    accuracy = result.metrics["best_of_n"]["pass@1"]["1"]["mean"]
    assert f"{100 * accuracy:.1f}" in page
    assert all((path / f"seed-{s}/report.html").is_file() for s in (3, 5))


def test_the_same_command_changes_nothing_and_other_seeds_are_refused(done):
    path, result, _ = done
    before = stored(path / "seed-5")
    again = seeds.run(load_recipe(), path)
    assert again.metrics["best_of_n"] == result.metrics["best_of_n"]
    assert stored(path / "seed-5") == before
    with pytest.raises(ConfigChanged):
        seeds.run(load_recipe("seeds=[3, 5, 7]"), path)


def test_metrics_are_computed_again_from_stored_scores(done):
    path, result, _ = done
    (path / "metrics.json").unlink()
    (path / "seed-3/metrics.json").unlink()
    config = json.loads((path / "config.json").read_text())
    with RunDir(path).open(config) as directory:
        again = seeds.evaluate(recipe.parse(config, "again"), directory)
    assert again["best_of_n"] == result.metrics["best_of_n"]
    assert json.loads((path / "metrics.json").read_text())["out_of_distribution"]["best_of_n"]


def test_without_seeds_it_is_the_ordinary_run(tmp_path):
    result = seeds.run(alone(3), tmp_path / "run", budget=Budget(rollouts=1e6))
    assert result.metrics["seed"] == 3
    assert not (tmp_path / "run/seed-3").exists()


def test_settings_that_do_not_fit_seeds_are_reported(tmp_path):
    with pytest.raises(ConfigError, match="either seed or seeds"):
        load_recipe("seed=1")
    with pytest.raises(ConfigError, match="the same seed twice"):
        load_recipe("seeds=[1, 1]")
    with pytest.raises(ConfigError, match="one by one"):
        seeds.run(load_recipe(), tmp_path / "run", budget=Budget(rollouts=10))
    assert not (tmp_path / "run").exists()
    assert load_recipe("seeds=[]", "seed=4").resolved() == alone(4).resolved()
    assert recipe.parse(load_recipe().resolved(), "again").resolved() == load_recipe().resolved()


def test_a_killed_run_continues_to_the_same_result(done, tmp_path):
    path, result, _ = done
    place = tmp_path / "recipe.yaml"
    slow = recipe.changed(RAW, ["workers=2", "generator.backend.options.delay=0.02"])
    place.write_text(yaml.safe_dump(slow))
    command = [sys.executable, "-m", "stepmark", "run", str(place), "--out", str(tmp_path / "run")]
    for part in ("solutions/train", "solutions/out_of_distribution"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 300
        while not any((tmp_path / f"run/seed-{s}/{part}.jsonl").exists() for s in (3, 5)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # the workers end with it
    assert not (tmp_path / "run/metrics.json").exists()
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert "self_consistency+recompute" in ended.stdout and "seed 5: " in ended.stderr
    for seed in (3, 5):
        assert stored(tmp_path / f"run/seed-{seed}") == stored(path / f"seed-{seed}")
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["best_of_n"] == json.loads(json.dumps(result.metrics["best_of_n"]))


def test_a_failed_seed_ends_the_run_and_the_others_are_kept(tmp_path):
    broken = tmp_path / "backend.py"
    text, loop = (STRANGERS / "backend.py").read_text(), "        for prompt in prompts:"
    broken.write_text(text.replace(loop, f"        1 / (params.seed - 5)\n{loop}"))
    with pytest.raises(StageError, match="division by zero"):
        seeds.run(load_recipe(f"generator.backend={broken}"), tmp_path / "run")
    assert (tmp_path / "run/seed-3/metrics.json").exists()
    assert not (tmp_path / "run/seed-5/metrics.json").exists()
    assert not (tmp_path / "run/metrics.json").exists()


def points(metrics):
    return {(p["method"], p["n"], p["k"]): p for p in metrics["compute"]["points"]}


def test_accuracy_against_tokens_pools_all_seeds_in_both_tests(done):
    path, result, _ = done
    runs = [json.loads((path / f"seed-{s}/metrics.json").read_text()) for s in (3, 5)]
    for pick in (lambda m: m, lambda m: m["in_distribution"], lambda m: m["out_of_distribution"]):
        whole, each = points(pick(result.metrics)), [points(pick(m)) for m in runs]
        assert whole.keys() == each[0].keys() and len(whole) == 4
        for key, p in whole.items():
            assert p["tokens"] == pytest.approx(mean(m[key]["tokens"] for m in each))
            expected = seeds.pooled([m[key]["accuracy"] for m in each])
            del expected["per_seed"]
            assert p["accuracy"] == pytest.approx(expected)
        for split in pick(result.metrics)["compute"]["splits"]:
            if split["verified"]:
                gain = split["verified_over_one"]["mean"]
                assert gain == pytest.approx(split["verified"]["accuracy"]["mean"] - split["one"]["accuracy"]["mean"])
    assert "Accuracy by tokens" in (path / "report.html").read_text()


def test_advice_on_a_token_budget_pools_all_seeds(done):
    path, result, _ = done
    advised = json.loads(stepmark("plan", "--optimal", path, "--tokens", 100, "--json").stdout)
    assert advised["in_distribution"]["problems"] == 12
    [advice] = advised["out_of_distribution"]["advice"]
    assert advice["verify"] and advice["verified"]["accuracy"]["mean"] == pytest.approx(
        result.metrics["out_of_distribution"]["best_of_n"]["recompute"]["8"]["mean"]
    )


def test_seeds_without_by_problem_json_have_to_be_measured_again(done, tmp_path):
    path, result, _ = done
    shutil.copytree(path, tmp_path / "run")
    (tmp_path / "run/seed-5/by_problem.json").unlink()
    config = json.loads((path / "config.json").read_text())
    with RunDir(tmp_path / "run").open(config) as directory:
        assert seeds.summarise(recipe.parse(config, "again"), directory)["compute"] is None
    refused = stepmark("plan", "--optimal", tmp_path / "run")
    assert refused.exit_code == 1 and "was not pooled" in refused.output and "evaluate" in refused.output
    assert stepmark("evaluate", tmp_path / "run").exit_code == 0
    again = json.loads((tmp_path / "run/metrics.json").read_text())
    assert again["compute"] == json.loads(json.dumps(result.metrics["compute"]))
    (tmp_path / "run/seed-5/by_problem.json").write_text('{"test": [{"method": 3}]}')
    with (
        RunDir(tmp_path / "run").open(config) as directory,
        pytest.raises(DataError, match=r"by_problem\.json: .*method"),
    ):
        seeds.summarise(recipe.parse(config, "again"), directory)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(sorted),
        min_size=2,
        max_size=40,
    )
)
def test_a_pooled_interval_has_the_larger_of_both_widths_and_contains_its_mean(triples):
    intervals = [{"low": a, "mean": b, "high": c} for a, b, c in triples]
    result = seeds.pooled(intervals)
    count, means = len(triples), [b for _, b, _ in triples]
    middle = sum(means) / count
    spread = math.sqrt(sum((m - middle) ** 2 for m in means) / (count - 1) / count) * stats.student(count - 1)
    within = math.sqrt(sum((b - a) ** 2 for a, b, _ in triples)) / count
    assert result["low"] == pytest.approx(max(0.0, middle - max(spread, within)), abs=1e-9)
    assert result["low"] <= result["mean"] + 1e-12 and result["mean"] <= result["high"] + 1e-12 <= 1 + 1e-11
    assert result["per_seed"] == means


def test_quantiles_of_student_are_those_of_the_tables():
    scipy = pytest.importorskip("scipy.stats")
    for freedom in range(1, 60):
        assert stats.student(freedom) == pytest.approx(scipy.t.ppf(0.975, freedom), abs=1e-3)


def test_known_intervals():
    alike = [{"mean": 0.5, "low": 0.4, "high": 0.6}] * 4  # equal estimates: the width comes from the problems alone
    assert seeds.pooled(alike)["low"] == pytest.approx(0.5 - 0.1 / 2)
    apart = [{"mean": m, "low": m, "high": m} for m in (0.4, 0.5, 0.6)]  # the width comes from the seeds alone
    assert seeds.pooled(apart)["high"] == pytest.approx(0.5 + 4.3027 * 0.1 / math.sqrt(3))
    assert seeds.pooled(alike[:1]) == {"mean": 0.5, "low": 0.4, "high": 0.6, "per_seed": [0.5]}


def stepmark(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_other_commands_support_seeds(done, tmp_path):
    path, result, _ = done
    (path / "report.html").unlink()
    assert stepmark("report", path).exit_code == 0
    assert "seed-3/report.html" in (path / "report.html").read_text()
    refused = stepmark("rank", path, "--method", "recompute")
    assert refused.exit_code == 2 and "seed-3" in refused.output
    assert len(stepmark("rank", path / "seed-3", "--method", "recompute").stdout.splitlines()) == 6
    again = stepmark("evaluate", path, "--json")
    assert json.loads(again.stdout)["best_of_n"] == json.loads(json.dumps(result.metrics["best_of_n"]))
    place = tmp_path / "recipe.yaml"
    place.write_text(yaml.safe_dump(RAW))
    planned = stepmark("plan", place, "--out", tmp_path / "run", "--problems", 2)
    assert "sample out_of_distribution" in planned.stdout and "one of 2 seeds" in planned.stdout
    assert (tmp_path / "run/seed-3/plan").is_dir() and not (tmp_path / "run/config.json").exists()

"""Models and files that are not there: all named at the start, with what was meant, by a run and by its plan."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stepmark.data.paths import nowhere
from stepmark.errors import ConfigError
from stepmark.run import missing, recipe
from stepmark.run.execute import Selection, run

STRANGERS = Path(__file__).parents[1] / "strangers"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a model and questions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/small").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "models/small" / name).write_text("{}")
    rows = [{"question": f"q{i}", "answer": i} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def load(*changes):
    raw = {
        "name": "lost",
        "task": {"name": "jsonl", "options": {"path": "mine.jsnl", "test_path": "other.jsonl"}},
        "generator": {"path": "./models/smal"},
        "completer": {"path": "hub/model"},
        "judge": {"path": "../nowhere/at/all"},
        "verifiers": {
            "orm": {"kind": "orm", "base": {"path": "model/small"}},
            "mine": {"kind": str(STRANGERS / "verifier.py")},
        },
        "label": {
            "name": "consensus",
            "options": {"labelers": ["rule", {"name": "nli", "options": {"path": "models/nli/deep"}}]},
        },
        "evaluate": {"n": [1]},
    }
    return recipe.parse(recipe.changed(raw, changes), "test")


def test_all_that_is_missing_is_said_at_once_and_nothing_is_made(place):
    with pytest.raises(ConfigError) as e:
        run(load(), "run")
    faults = {fault.partition(":")[0]: fault for fault in e.value.faults}
    assert list(faults) == [
        *("task.options.path", "task.options.test_path", "generator.path", "judge.path"),
        "label.options.labelers.1.options.path",
    ]
    assert "no file or directory 'mine.jsnl'" in faults["task.options.path"]
    assert "Did you mean mine.jsonl?" in faults["task.options.path"]
    assert "Did you mean models/small?" in faults["generator.path"]
    assert "Did you mean" not in faults["judge.path"]
    assert not (place / "run").exists()  # so that the corrected recipe finds no other configuration there


def test_seeds_and_the_plan_say_the_same(place):
    with pytest.raises(ConfigError, match=r"no checkpoint directory models/smal "):
        from stepmark.run import seeds

        seeds.run(load("seeds=[1,2]"), "run")
    assert not (place / "run").exists()


def test_the_plan_is_shown_and_the_faults_come_after_it(place):
    (place / "mine.yaml").write_text(
        "task: {name: jsonl, options: {path: mine.jsnl}}\ngenerator: {path: models/tiny/small}\n"
        "verifiers: {orm: {kind: orm}}\n"
    )
    code = "import sys; from stepmark.cli import main\nsys.argv = ['stepmark', 'run', 'mine.yaml', '--dry-run']\n"
    code += "try: main()\nexcept SystemExit as e: assert e.code == 2, e.code\n"
    code += "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "train verifiers" in done.stdout
    assert "Did you mean mine.jsonl?" in done.stderr
    assert "no checkpoint directory models/tiny/small" in done.stderr
    assert not (place / "runs").exists()


def test_what_is_there_or_on_the_hub_or_made_by_the_run_is_not_missing(place):
    data = "task.options={path: mine.jsonl}"
    here = ("generator.path=models/small", "judge=null", "label=null", data)
    with pytest.raises(ConfigError) as e:
        run(load(*here, "verifiers.orm.base.path=./models/other"), "run")
    assert [fault.partition(":")[0] for fault in e.value.faults] == ["verifiers.orm.base.path"]
    good = load(*here, "generator.path=hub/model", "verifiers.orm.base.path=run/bases/orm")
    missing.need(good, "run", lambda: ["problems", "sample test", "train verifiers"])


def test_what_only_finished_stages_read_is_not_asked_for(place):
    changes = ["task.options={path: mine.jsonl}", "judge=null", "label=null", "completer=null"]
    changes += [f"generator={{backend: {{name: {STRANGERS / 'backend.py'}}}}}", "verifiers.orm=null"]
    raw = load(*changes[:-1], "sample.train.n=1", "sample.test.n=1", "evaluate.n=[1]").model_dump(exclude_unset=True)
    raw["verifiers"].pop("orm")
    raw["task"] = str(STRANGERS / "task.py")
    raw["sample"] = {part: {"split": part, "problems": 3, "n": 1} for part in ("train", "test")}
    made = recipe.parse(raw, "test")
    run(made, "run")
    assert made.generator.path is None
    moved = made.model_copy(update={"judge": recipe.parse(raw | {"judge": {"path": "./gone"}}, "test").judge})
    (place / "run/config.json").write_text(json.dumps(moved.resolved()))
    run(moved, "run")  # only evaluate and report run
    with pytest.raises(ConfigError, match=r"judge.path: no checkpoint directory gone"):
        run(moved, "run", selection=Selection(start="sample test"))
    assert not (place / "run/archive").exists()


@pytest.mark.parametrize(
    "path,meant",
    [
        ("mine.json", "mine.jsonl"),
        ("./mine.jsn", "mine.jsonl"),
        ("model/small", "models/small"),
        ("model/smal", None),  # two parts are wrong
        ("something/else", None),
    ],
)
def test_a_path_that_looks_like_it(place, path, meant):
    found = re.search(r"Did you mean (\S+)\?", nowhere(path))
    assert (found and found[1]) == meant
    absolute = re.search(r"Did you mean (\S+)\?", nowhere(place / path))
    assert (absolute and absolute[1]) == (meant and str(place / meant))


def test_an_incomplete_checkpoint_is_found_too(place):
    shutil.rmtree(place / "models/small")
    (place / "models/small").mkdir()
    with pytest.raises(ConfigError, match=r"generator.path: models/small has no config.json"):
        run(load("generator.path=./models/small"), "run")

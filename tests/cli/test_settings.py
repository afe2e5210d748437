"""Settings beside the outputs of stage commands: no file mixes results of two models, settings, tasks or splits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data import settings
from stepmark.data.store import Records
from stepmark.models import checkpoints
from stepmark.types import Solution

STRANGERS = Path(__file__).parents[1] / "strangers"
TASK = ["--task", str(STRANGERS / "task.py")]
BACKEND = ["--backend", str(STRANGERS / "backend.py")]
VERIFIER = ["--verifier", str(STRANGERS / "verifier.py")]
REFUSED = 2


def stepmark(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done


def refused(*arguments):
    """The message of a command that must be refused and leave every file as it was."""
    out = Path(arguments[arguments.index("--out") + 1])
    before = {p: p.read_bytes() for p in out.parent.rglob("*") if p.is_file()}
    message = stepmark(*arguments, code=REFUSED).stderr
    assert {p: p.read_bytes() for p in out.parent.rglob("*") if p.is_file()} == before
    assert "holds results of another configuration" in message
    return message


@pytest.fixture
def models(tmp_path, problems):
    """Three tiny models of one shape: they differ in their weights alone."""
    shape = checkpoints.Shape(hidden=8, heads=2, kv_heads=1, layers=1, vocab=300, max_length=128)
    texts = [f"{p.question}\n{p.reference}" for p in problems[:40]]
    return [checkpoints.create(tmp_path / "models" / name, texts, shape, seed=i) for i, name in enumerate("abc")]


def test_three_models_two_temperatures_and_two_splits_cannot_meet_in_one_file(tmp_path, models):
    a, b, c = models
    out = tmp_path / "out" / "f.jsonl"
    sample = ["sample", *TASK, "--problems", 3, "--max-tokens", 4, "--out", out, "--model"]
    stepmark(*sample, a, "--n", 2)
    assert refused(*sample, b, "--n", 4).count('"fingerprint"') == 2
    assert str(c) in refused(*sample, c)
    changes = {
        "temperature": ["--temperature", 0.3],
        "split": ["--split", "train"],
        "top_p": ["--top-p", 0.9],
        "max_tokens": ["--max-tokens", 5],
        "seed": ["--seed", 1],
        "prompt": ["--prompt", "{question}"],
        "stop": ["--stop", "x"],
        "size": ["--task-option", "size=9"],
        "dtype": ["--backend-option", "dtype=float32"],
    }
    for name, change in changes.items():
        message = refused(*sample, a, "--n", 4, *change)
        assert f'"{name}"' in message and f"or delete {out}" in message
    # What can't change a result may change, and more solutions and problems are added.
    free = ["--backend-option", "batch=3", "--backend-option", "device=cpu", "--workers", 1, "--limit", "truncated=1"]
    stepmark(*sample, a, "--n", 3, *free, "--problems", 4)
    assert len(Records(out, Solution)) == 12
    assert len(settings.read(settings.beside(out))["problems"]) == 4
    stepmark(*sample, a, "--n", 1)


def test_a_checkpoint_made_anew_under_its_path_is_another_and_a_copy_is_the_same(tmp_path, models):
    a, b, _ = models
    out = tmp_path / "out" / "f.jsonl"
    sample = ["sample", *TASK, "--problems", 2, "--max-tokens", 4, "--out", out, "--model"]
    stepmark(*sample, a, "--n", 1)
    copy = shutil.copytree(a, tmp_path / "copy")
    shutil.rmtree(a)
    stepmark(*sample, copy, "--n", 2)
    assert len(Records(out, Solution)) == 4
    shutil.copytree(b, a)
    message = refused(*sample, a, "--n", 3)
    lines = [line.removeprefix("stepmark: ") for line in message.splitlines()]
    assert [line[0] for line in lines if '"fingerprint"' in line] == ["-", "+"]
    assert f'"path": "{a}"' in message
    # The same with a ledger, which knows a model by its path alone.
    bought = [*sample[:5], "--out", tmp_path / "bought" / "f.jsonl", "--model"]
    stepmark(*bought, copy, "--n", 1, "--max-tokens", 4, "--budget", "rollouts=9")
    shutil.rmtree(copy)
    shutil.copytree(b, copy)
    (tmp_path / "bought" / "f.jsonl").unlink()
    assert "f.rollouts" in refused(*bought, copy, "--n", 1, "--max-tokens", 4)


def test_a_file_of_an_earlier_version_is_accepted_with_a_note(tmp_path):
    out = tmp_path / "f.jsonl"
    sample = ["sample", *TASK, *BACKEND, "--problems", 2, "--out", out]
    assert "note" not in stepmark(*sample, "--n", 1).stderr
    settings.beside(out).unlink()
    [note] = [line for line in stepmark(*sample, "--n", 2).stderr.splitlines() if "note" in line]
    assert f"{out} has no settings beside it, as in earlier versions" in note
    assert "note" not in stepmark(*sample, "--n", 3).stderr
    refused(*sample, "--seed", 1)
    assert len(Records(out, Solution)) == 6
    # Without the results, their settings are nobody's.
    out.unlink()
    stepmark(*sample, "--n", 1, "--seed", 1)


def test_a_command_that_fails_at_once_leaves_no_settings(tmp_path):
    out = tmp_path / "f.jsonl"
    stepmark("sample", *TASK, "--model", tmp_path / "nowhere", "--out", out, code=1)
    assert list(tmp_path.iterdir()) == []


def stage_commands(directory):
    """Of each stage, its file and the command that makes and continues it."""
    places = {name: directory / f"{name}.jsonl" for name in ("sample", "grade", "label", "score")}
    task = [*TASK, "--split", "test"]
    of = ["--solutions", places["sample"]]
    commands = {
        "sample": ["sample", *task, *BACKEND, "--problems", 3, "--n", 2],
        "grade": ["grade", *task, *of],
        "label": ["label", *task, *of, *BACKEND, "--labeler-option", "rollouts=2"],
        "score": ["score", *task, *of, *VERIFIER],
    }
    return {name: [*command, "--out", places[name]] for name, command in commands.items()}, places


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    for command in stage_commands(directory)[0].values():
        stepmark(*command)
    return directory


@pytest.fixture
def made(made_once, tmp_path):
    """One file of each stage, with the command that continues it."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return stage_commands(tmp_path)


@pytest.mark.parametrize(
    ("stage", "setting", "change"),
    [
        ("grade", "name", ["--grader", "exact"]),
        ("label", "rollouts", ["--labeler-option", "rollouts=3"]),
        ("label", "name", ["--labeler", "first_error"]),
        ("label", "error", ["--backend-option", "error=0.1"]),
        ("label", "judge", ["--judge-backend", str(STRANGERS / "backend.py")]),
        ("label", "temperature", ["--temperature", 0.5]),
        ("score", "name", ["--verifier", str(STRANGERS / "listener.py")]),
    ],
)
def test_every_stage_refuses_another_setting(made, stage, setting, change):
    commands, _ = made
    message = refused(*commands[stage], *change)
    assert f'"{setting}"' in message
    stepmark(*commands[stage])


@pytest.mark.parametrize("stage", ["grade", "label", "score", "export", "train"])
@pytest.mark.parametrize("change", [["--split", "train"], ["--task-option", "shift=1"]])
def test_solutions_are_not_paired_with_other_questions(made, tmp_path, stage, change):
    commands, places = made
    out = tmp_path / "new" / "f.jsonl"
    labels = ["--labels", places["label"], "--out", out]
    commands |= {
        "export": ["export", *TASK, "--split", "test", *labels],
        "train": ["train", "linear", *TASK, "--split", "test", *labels],
    }
    command = [*commands[stage][:-2], "--out", out]
    message = refused(*command, *change)
    of = places["label" if stage in ("export", "train") else "sample"]
    assert f"{of} holds results" in message
    assert "Give the task, its options (also its seed) and the split" in message
    if change[0] == "--task-option":
        assert (
            '"shift"' in message
            and "another question, answer or solution: 'test-1000', 'test-1001', 'test-1002'" in message
        )
    assert not out.exists()


def test_files_of_a_run_are_not_paired_with_other_questions(tmp_path):
    recipe, run = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(
        f"{{name: r, task: {STRANGERS / 'task.py'}, generator: {{backend: {STRANGERS / 'backend.py'}}}, workers: 1,"
        " sample: {train: {problems: 2, n: 1}, test: {problems: 2, n: 1}}, label: monte_carlo}"
    )
    stepmark("run", recipe, "--out", run)
    (run / "rationales" / "mine").mkdir(parents=True)
    shutil.copy(run / "labels" / "train.jsonl", run / "rationales" / "mine")
    out = ["--out", tmp_path / "out" / "f.jsonl"]
    of_train = [*TASK, "--split", "train"]
    for command in (
        ["grade", *of_train, "--solutions", run / "solutions" / "train.jsonl"],
        ["export", *of_train, "--labels", run / "labels" / "train.jsonl"],
        ["export", *of_train, "--labels", run / "rationales" / "mine" / "train.jsonl"],
    ):
        message = refused(*command, *out, "--task-option", "shift=1")
        assert "another question, answer or solution: 'train-0', 'train-1'" in message
        stepmark(*command, *out)
        shutil.rmtree(tmp_path / "out")


def test_results_for_other_solutions_are_refused(made, tmp_path):
    commands, places = made
    stepmark(*commands["sample"][:-1], tmp_path / "other.jsonl", "--seed", 1)
    for stage in ("grade", "label", "score"):
        message = refused(*commands[stage], "--solutions", tmp_path / "other.jsonl")
        assert '"seed": 0' in message and '"seed": 1' in message
    moved = places["sample"].rename(tmp_path / "moved.jsonl")
    settings.beside(places["sample"]).rename(settings.beside(moved))
    for stage in ("grade", "label", "score"):
        stepmark(*commands[stage], "--solutions", moved)


def test_rows_of_a_file_may_be_added_and_not_changed(tmp_path):
    data, out, grades = (tmp_path / name for name in ("mine.jsonl", "s.jsonl", "g.jsonl"))
    rows = [{"id": str(i), "question": f"{i} + {i} + 1?", "answer": 2 * i + 1} for i in range(5)]

    def task(place=data):
        return ["--task", "jsonl", "--split", "all", "--task-option", f"path={place}"]

    def write():
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    sample = ["sample", *task(), *BACKEND, "--n", 1, "--out", out]
    grade = ["grade", *task(), "--solutions", out, "--out", grades]
    write()
    stepmark(*sample)
    stepmark(*grade)
    rows.insert(0, {"id": "new", "question": "1 + 1 + 1?", "answer": 3})
    write()
    stepmark(*sample)
    stepmark(*grade)
    assert len(Records(out, Solution)) == 6
    elsewhere = shutil.copy(data, tmp_path / "sub.jsonl")
    (tmp_path / "sub").mkdir()
    stepmark(*sample, *task(shutil.move(elsewhere, tmp_path / "sub" / "mine.jsonl"))[-2:])
    rows[2]["answer"] = 99  # the solutions are still those of the question, but their grades are not
    write()
    stepmark(*sample)
    assert "another question, answer or solution: '1'" in refused(*grade)
    stepmark(*grade[:-1], tmp_path / "anew.jsonl")
    rows[2]["question"] = "2 + 2 + 2?"
    write()
    assert "another question, answer or solution: '1'" in refused(*sample)
    assert "another question, answer or solution: '1'" in refused(*grade[:-1], tmp_path / "third.jsonl")


def test_scored_rows_know_their_verifier_by_its_content(tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"question": "1 + 2?", "solutions": ["1 + 2 = 3\nThe answer is 3.", "4"]}) + "\n")
    verifier = tmp_path / "linear"
    verifier.mkdir()
    _linear(verifier, 0.0)
    score = ["score", rows, "--out", out, "--verifier"]
    stepmark(*score, verifier)
    copy = shutil.copytree(verifier, tmp_path / "copy")
    before = out.read_bytes()
    stepmark(*score, copy)
    assert out.read_bytes() == before
    _linear(verifier, 1.0)
    assert '"fingerprint"' in refused(*score, verifier)


def _linear(path, constant):
    import torch
    from safetensors.torch import save_file

    from stepmark.plugins import verifier_card

    save_file({"weights": torch.zeros(16), "constant": torch.tensor([constant])}, str(path / "linear.safetensors"))
    verifier_card.write_card(path, "linear", {"buckets": 16, "strength": 1.0}, {}, "")


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_leaves_no_results_without_their_settings(tmp_path, moment):
    """Killed between the settings and the results, and later: the same command ends with the same file, and another
    one is never accepted beside results."""
    out = tmp_path / "f.jsonl"
    sample = ["sample", *TASK, *BACKEND, "--problems", "4", "--n", "2", "--out", str(out)]
    slow = [*sample, "--backend-option", "delay=0.2"]
    process = subprocess.Popen([sys.executable, "-m", "stepmark", *slow], stderr=subprocess.DEVNULL)
    while not settings.beside(out).exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.3 * moment)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if out.stat().st_size:
        refused(*sample, "--seed", 1)
    stepmark(*sample)
    whole = tmp_path / "whole.jsonl"
    stepmark(*sample[:-1], whole)
    assert {s.key: s for s in Records(out, Solution)} == {s.key: s for s in Records(whole, Solution)}


def test_a_servers_model_is_known_by_its_name_and_place_alone(monkeypatch):
    from stepmark.cli.settings import of_backend
    from stepmark.plugins.loading import load_backend

    def about(**options):
        return of_backend("openai", load_backend("openai", model="q", **options))

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    here = about(url="http://127.0.0.1:1/v1", concurrency=3, price_input=2.0)
    assert here["server"] == "http://127.0.0.1:1/v1" and here["options"]["model"] == "q"
    assert "a server tells only the name" in here["content"]
    assert here == about(base_url="http://127.0.0.1:1/v1", retries=0) != about()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert here == about() != about(chat=True)

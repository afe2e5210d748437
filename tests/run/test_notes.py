"""Notes: what a stage or a worker says of a fallback stands once in the log, in metrics.json and in the report."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest

from stepmark.data import notes
from stepmark.executors.processes import ProcessesExecutor
from stepmark.run import recipe
from stepmark.run.execute import Selection, run
from stepmark.run.log import RunLog, sentences

STRANGERS = Path(__file__).parents[1] / "strangers"
PRICE = "is decoded without prefix sharing: its rotary embeddings depend on the length of the sequence. Each prefix is "
SHARED_BY = ["sample train", "sample test"]


@pytest.fixture
def unshared(tiny, tmp_path):
    """A model whose prefixes can't be shared."""
    path = tmp_path / "unshared"
    shutil.copytree(tiny, path)
    config = json.loads((path / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def load_recipe(model, workers):
    raw = {
        "name": "noted",
        "task": str(STRANGERS / "task.py"),
        "generator": {"path": model},
        "verifiers": {"recompute": {"kind": str(STRANGERS / "verifier.py")}},
        "sample": {"train": {"split": "train", "problems": 3, "n": 2}, "test": {"problems": 3, "n": 2}}
        | {"max_tokens": 8},
        "limits": {"ungradable": 1.0, "truncated": 1.0},
        "evaluate": {"n": [1, 2]},
        "workers": workers,
    }
    return recipe.parse(raw, "test")


def noted(path):
    """(stage, note) of each note in the log."""
    log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line["note"]) for line in log if line["event"] == "note"]


def test_a_refused_sharing_is_said_once_under_each_stage_with_its_price(unshared, tmp_path):
    metrics = run(load_recipe(unshared, workers=2), tmp_path / "run").metrics
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["stage_notes"] == metrics["stage_notes"]
    of_sharing = {stage: [n for n in of_stage if PRICE in n] for stage, of_stage in metrics["stage_notes"].items()}
    assert {stage: len(found) for stage, found in of_sharing.items() if found} == dict.fromkeys(SHARED_BY, 1)
    assert "about four times as long" in of_sharing["sample test"][0]
    assert [stage for stage, note in noted(tmp_path / "run") if PRICE in note] == SHARED_BY
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count(f"{', '.join(SHARED_BY)}: {of_sharing['sample test'][0]}") == 1


def test_a_later_sitting_keeps_the_notes_and_a_stage_that_is_done_anew_says_its_own(unshared, tmp_path):
    first = run(load_recipe(unshared, 1), tmp_path / "run").metrics["stage_notes"]
    assert {stage for stage, of_stage in first.items() if any(PRICE in n for n in of_stage)} == set(SHARED_BY)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"stage": "sample test", "event": "no')  # torn by a kill
    assert run(load_recipe(unshared, 1), tmp_path / "run").metrics["stage_notes"] == first
    again = run(load_recipe(unshared, 1), tmp_path / "run", selection=Selection(start="sample test"))
    assert again.metrics["stage_notes"] == first


def said_in_a_worker(unit):
    log = logging.getLogger("stepmark.test")
    log.warning("slow: %s", "a model")
    notes.say(log, f"unit {unit % 2}")
    log.info("nobody needs to know")
    return unit


def test_notes_of_several_workers_come_once(capfd):
    heard = []
    with notes.heard(lambda name, text: heard.append((name, text))):
        assert sorted(ProcessesExecutor(workers=2).map(said_in_a_worker, range(8))) == list(range(8))
    assert Counter(heard) == dict.fromkeys([("stepmark.test", x) for x in ("slow: a model", "unit 0", "unit 1")], 1)


def test_a_note_is_printed_once_and_said_again_in_the_next_stage(tmp_path, capfd, monkeypatch):
    from stepmark.data.store import RunDir

    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    log = RunLog(RunDir(tmp_path))
    for stage in ("first", "second"):
        with log.stage(stage):
            for _ in range(3):
                notes.say(logging.getLogger("stepmark.test"), "it is slow")
            list(ProcessesExecutor(workers=1).map(said_in_a_worker, [1]))
    assert log.notes == {key: ["it is slow", "slow: a model", "unit 1"] for key in ["first", "second"]}
    assert capfd.readouterr().err.split("\n") == [*["it is slow", "slow: a model", "unit 1"] * 2, ""]
    assert sentences({"stage_notes": log.notes})[0] == "first, second: it is slow"
    log.anew(["first"])
    assert RunLog(RunDir(tmp_path)).notes == {"second": log.notes["second"]}

"""kill -9 at random moments, then the same command: no record is lost, doubled or different."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepmark.data.store import Records
from stepmark.types import LabelledSolution, Solution

STRANGERS = Path(__file__).parents[1] / "strangers"
DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def job(place, workers, delay):
    return [sys.executable, str(STRANGERS / "job.py"), str(place), str(workers), str(delay)]


def stored(place):
    by_name = {}
    for name, kind in (("solutions", Solution), ("labels", LabelledSolution)):
        records = list(Records(place / f"{name}.jsonl", kind))
        by_name[name] = {r.key: r for r in records}
        assert len(by_name[name]) == len(records)
    return by_name


def size(place):
    return sum(p.stat().st_size for p in place.rglob("*.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(job(place, 1, 0), check=True)
    by_name = stored(place)
    assert (len(by_name["solutions"]), len(by_name["labels"])) == (120, 120)
    return place, by_name


@pytest.mark.parametrize(("workers", "kills"), [(1, 20), (2, 4)])
def test_sampling_and_labelling_survive_kills(tmp_path, undisturbed, workers, kills):
    whole, expected = undisturbed
    rng = random.Random(f"{workers}")
    grown = 0
    for i in range(kills):
        # The kill comes during the work, not while Python starts: after the files have grown by a random amount.
        target = size(whole) * (i + rng.random()) / kills
        process = subprocess.Popen(job(tmp_path, workers, 0.005), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while process.poll() is None and size(tmp_path) < target:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        _, output = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output
        assert size(tmp_path) >= grown  # only an incomplete last line may be removed, and only by the next writer
        grown = size(tmp_path) - 4096
    subprocess.run(job(tmp_path, workers, 0), check=True)
    assert stored(tmp_path) == expected


def test_a_whole_run_survives_kills(tmp_path):
    def command(place):
        backend = f"{{name: {STRANGERS / 'backend.py'}, options: {{delay: 0.002}}}}"
        changes = [
            f"task={STRANGERS / 'task.py'}",
            f"generator={{backend: {backend}}}",
            f"verifiers={{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}",
            "sample.train={split: train, problems: 6, n: 8}",
            "sample.test={split: test, problems: 6, n: 4}",
            "evaluate.n=[1, 4]",
            "workers=1",
        ]
        return [sys.executable, "-m", "stepmark", "run", str(DEMO), *changes, "--out", str(place), "--json"]

    def last_stage(place):
        log = place / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return lines[-1]["stage"] if lines else None

    done = subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, text=True)
    for stage in ("sample train", "label", "evaluate"):
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and last_stage(tmp_path / "killed") != stage:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
    again = subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, text=True)
    first, second = json.loads(done.stdout), json.loads(again.stdout)
    assert second["best_of_n"] == first["best_of_n"]
    assert second["label_quality"] == first["label_quality"]

"""Commands with a model that needs seconds for a text: kill -9 loses a few texts, and the terminal says how it goes."""

import collections
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepmark import machine
from stepmark.cli import terminal
from stepmark.data.ledger import Ledger
from stepmark.data.store import Records
from stepmark.plugins import verifier_card
from stepmark.text.prompts import Template
from stepmark.types import LabelledSolution, Progress, Rollout, Solution, Verification

STRANGERS = Path(__file__).parents[1] / "strangers"
TASK = ["--task", str(STRANGERS / "task.py")]
BACKEND = ["--backend", str(STRANGERS / "slow.py")]
SECONDS = 0.2  # of a rollout of five tokens: a fifth of what it would be at 5 tokens a second
MOST = 12  # rollouts that a kill may cost: 2.4 seconds of work here, where 30 seconds would be 150 rollouts


def command(*arguments):
    return [sys.executable, "-m", "stepmark", *map(str, arguments)]


def environment(log=None, seconds=0.0):
    return os.environ | {"SLOW_SECONDS": str(seconds)} | ({"SLOW_LOG": str(log)} if log is not None else {})


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def killed(arguments, log, after):
    """Starts the command, and ends it with kill -9 some time after the backend has finished `after` rollouts more.
    Returns how many it finished."""
    before = len(lines(log))
    process = subprocess.Popen(command(*arguments), env=environment(log, SECONDS), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and len(lines(log)) < before + after:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.random() * SECONDS)
    process.send_signal(signal.SIGKILL)
    _, output = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    return len(lines(log)) - before


def resumed(arguments, log):
    done = subprocess.run(command(*arguments), env=environment(log), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    path = tmp_path_factory.mktemp("solutions") / "solutions.jsonl"
    resumed(["sample", *TASK, *BACKEND, "--problems", 6, "--n", 8, "--out", path], None)
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_while_sampling_costs_a_few_solutions(tmp_path, workers):
    log, out = tmp_path / "log", tmp_path / "solutions.jsonl"
    arguments = ["sample", *TASK, *BACKEND, "--problems", 8, "--n", 8, "--workers", workers, "--out", out]
    finished = killed(arguments, log, random.randint(20, 35))
    stored = Records(out, Solution).keys()
    assert finished - MOST <= len(stored) <= finished
    resumed(arguments, log)
    assert Records(out, Solution).keys() == {f"test-{1000 + p}#{i}" for p in range(8) for i in range(8)}
    again = [key for key, count in collections.Counter(lines(log)).items() if count > 1]
    assert not stored & set(again)


def test_a_kill_while_labelling_costs_a_few_rollouts(tmp_path, solutions):
    log, out = tmp_path / "log", tmp_path / "labels.jsonl"
    arguments = ["label", *TASK, "--split", "test", *BACKEND, "--solutions", solutions, "--out", out]
    arguments += ["--labeler-option", "rollouts=4"]
    finished = killed(arguments, log, random.randint(20, 35))
    [ledger] = [p for p in tmp_path.rglob("*.jsonl") if p != out]
    stored = Records(ledger, Rollout).keys()
    assert finished - MOST <= len(stored) <= finished
    assert len(Records(out, LabelledSolution)) >= (len(stored) - MOST) // 8  # two steps of four rollouts each
    resumed(arguments, log)
    assert Records(out, LabelledSolution).keys() == Records(solutions, Solution).keys()
    again = [key for key, count in collections.Counter(lines(log)).items() if count > 1]
    assert not stored & set(again)
    assert len(Records(ledger, Rollout)) == Ledger(ledger).spent.rollouts == 48 * 2 * 4


def test_a_kill_while_scoring_costs_a_small_unit(tmp_path, solutions):
    log, out, judge = tmp_path / "log", tmp_path / "scores.jsonl", tmp_path / "judge"
    judge.mkdir()
    options = {"backend": BACKEND[1], "votes": 1}
    verifier_card.write_card(judge, "judge", options, {}, Template("{question}\n").hash)
    arguments = ["score", "--verifier", judge, *TASK, "--solutions", solutions, "--out", out]
    finished = killed(arguments, log, random.randint(12, 40))
    stored = Records(out, Verification).keys()
    # The first unit has 8 solutions, and each further one twice as many, while they take less than ten seconds.
    assert 0 <= finished - len(stored) <= 2 * len(stored)
    assert len(stored) >= 8
    resumed(arguments, log)
    assert Records(out, Verification).keys() == Records(solutions, Solution).keys()


def test_kills_of_a_run_cost_a_few_rollouts_each(tmp_path):
    log, out = tmp_path / "log", tmp_path / "run"
    recipe = tmp_path / "slow.yaml"
    recipe.write_text(
        f"name: slow\ntask: {STRANGERS / 'task.py'}\ngenerator: {{backend: {BACKEND[1]}}}\n"
        "sample: {train: {problems: 3, n: 8}, test: {problems: 3, n: 4}}\n"
        "label: {name: monte_carlo, options: {rollouts: 2}}\n"
        f"verifiers: {{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}\n"
        "evaluate: {n: [1, 4]}\nworkers: 1\n"
    )
    arguments = ["run", recipe, "--out", out]

    def stored():
        files = [*(out / "solutions").glob("*.jsonl"), *(out / "rollouts").glob("labels.jsonl")]
        return sum(len(lines(path)) for path in files)

    for _ in range(2):
        before = stored()
        finished = killed(arguments, log, random.randint(16, 22))
        assert stored() - before >= finished - MOST
    resumed(arguments, log)
    assert stored() == 24 + 12 + len({k for k in lines(log) if "@" in k})
    assert (out / "report.html").exists()


# ---- what the terminal shows ----


def test_a_terminal_shows_the_solutions_the_speed_and_the_time_left(tmp_path):
    arguments = ["sample", *TASK, *BACKEND, "--problems", 3, "--n", 8, "--out", tmp_path / "s.jsonl"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        env=environment(seconds=SECONDS) | {"COLUMNS": "120", "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    counts = {int(x) for x in re.findall(r"(\d+)/24", text)}
    assert {0, 24} < counts
    assert re.search(r"\d tokens/s, \d+ s left", text), text[-2000:]


def test_lines_say_the_speed_and_the_time_left_as_far_as_they_are_known(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    with terminal.Show() as show:
        show(Progress("sample", 0, 160, 0.0))
        show(Progress("sample", 46, 160, 30.0, "2 failed", 2400, 80.0, 240.4))
        show(Progress("sample", 50, 160, 31.0, "", 2400, 7.77, 8000.0))
        show(Progress("sample", 160, 160, 300.0, "", 60000, 2000.0, 0.0))
        show(Progress("train prm", 5, 0, 30.0, "loss 1.0000"))
    shown = [line.split("  ", 1)[1].split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == [
        "0.0 s",
        "30.0 s  2 failed, 80 tokens/s, 4 min left",
        "31.0 s  7.8 tokens/s, 2.2 h left",
        "300.0 s  2,000 tokens/s",
        "30.0 s  loss 1.0000",
    ]


def test_a_model_that_is_large_for_the_machine_gets_one_line_of_advice(capsys, monkeypatch):
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: True)

    def at(seconds, left, tokens=90):
        return Progress("sample", 1, 160, seconds, "", tokens, 9.0, left)

    slow = [at(8.0, 9000.0), at(12.0, None), at(14.0, 60.0), at(16.0, 5000.0, None), at(20.0, 4680.0), at(40.0, 9000.0)]
    with terminal.Show(local=True) as show:
        for p in slow:
            show(p)
    [advice] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stepmark:")]
    assert "may need 78 min more" in advice
    assert "max_tokens" in advice and "backend: openai" in advice
    assert "dtype" not in advice  # where bfloat16 is faster, dtype=auto has chosen it
    with terminal.Show(local=True, dtype="float32") as show:
        show(slow[-2])
    assert "dtype: auto" in capsys.readouterr().err
    with terminal.Show() as show:  # the model is somewhere else
        for p in slow:
            show(p)
    assert "stepmark:" not in capsys.readouterr().err

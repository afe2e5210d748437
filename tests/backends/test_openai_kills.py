"""Many rollouts with a ledger, under all faults and kills: each is stored once, and paid rollouts are kept."""

import json
import re
import subprocess
import sys

import pytest

from stepmark.backends.openai import OpenAIBackend, probe
from stepmark.data.ledger import Ledger, Recorded
from stepmark.data.store import Records
from stepmark.types import Finish, LabelledSolution, Prompt, SamplingParams

PARAMS = SamplingParams(max_tokens=50)


@pytest.fixture(autouse=True)
def anew():
    """Drops what is known of earlier servers, since ports are reused."""
    probe.forget()


def test_a_thousand_rollouts_with_every_fault(fault_server, tmp_path):
    def echo(body, text, n):
        return [fault_server.Said(f"{text} {i}") for i in range(n)]

    with fault_server.Server(echo, chance_of=fault_server.FAULTS, rate=0.2, seed=1) as server:
        check_a_thousand(server, fault_server.FAULTS, tmp_path)


def check_a_thousand(server, faults, tmp_path):
    openai = OpenAIBackend("tiny", server.url, backoff=0.001, retries=8, timeout=1.0, price_input=1.0, price_output=1.0)
    ledger = Ledger(tmp_path / "rollouts.jsonl", openai.price)
    ledger.open(lambda _: True)
    prompts = [Prompt(f"p{i}@0", f"question {i}", n=4) for i in range(250)]
    rollouts = list(Recorded(openai, ledger).sample(prompts, PARAMS))
    stored = list(ledger.records)
    assert sorted(r.key for r in rollouts) == sorted(f"p{i}@0#{j}" for i in range(250) for j in range(4))
    assert sorted(stored, key=lambda r: r.key) == sorted(rollouts, key=lambda r: r.key)
    good = [r for r in rollouts if r.finish is Finish.STOP]
    failed = [r for r in rollouts if r.finish is Finish.FAILED]
    assert len(good) + len(failed) == 1000
    for r in good:
        question = f"question {r.prompt_id[1:-2]}"
        assert r.text in {f"{question} {i}" for i in range(4)}
    assert all(not r.text and r.reason for r in failed)
    # Every fault happened, each good choice was requested once, and an invalid finish reason is no answer.
    assert set(server.counts) == {*faults, "served"}
    assert server.served == len(good)
    assert len(failed) == server.counts["null"] < 40
    assert ledger.spent.rollouts == 1000
    assert ledger.spent.failed == len(failed)
    # The next call requests the failed rollouts only.
    server.rate = 0.0
    known = {r.key: r for group in ledger.open(lambda _: True).values() for r in group}
    assert len(known) == len(good)
    retried = list(Recorded(openai, ledger, known).sample(prompts, PARAMS))
    assert {r.finish for r in retried} == {Finish.STOP}
    assert len(list(ledger.records)) == 1000 == len({r.key for r in ledger.records})
    assert server.served == 1000


def test_labelling_survives_kills_and_pays_twice_only_for_what_was_in_flight(fault_server, tmp_path, request):
    """Every continuation is right, so a fault that counted as a wrong answer would be visible."""

    def right(body, text, n):
        a, b, c = [*map(int, re.findall(r"\d+", text)), 0, 0, 0][:3]  # the probe sends Hello
        lines = [f"{a} + {b} = {a + b}", f"{a + b} + {c} = {a + b + c}", f"The answer is {a + b + c}."]
        done = sum(line in text for line in lines)
        return [fault_server.Said("\n".join(lines[done:]))] * n

    kills = 20
    job = [sys.executable, str(request.path.parent / "labelling_job.py")]
    with fault_server.Server(right, chance_of=fault_server.FAULTS, rate=0.2, seed=2, delay=0.01) as server:
        job += [server.url, str(tmp_path), str(kills)]
        done = subprocess.run(job, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"killed": kills, "last": 0}, done.stderr

    ledger = Ledger(tmp_path / "ledger" / "completer.jsonl")
    rollouts = list(ledger.records)
    prompts = [f"train-{i}#0@{step}" for i in range(80) for step in (0, 1)]
    assert sorted(r.key for r in rollouts) == sorted(f"{p}#{j}" for p in prompts for j in range(6))
    good = sum(r.finish is Finish.STOP for r in rollouts)
    assert good + sum(r.finish is Finish.FAILED for r in rollouts) == len(rollouts)
    # At each kill, up to 4 requests of 3 rollouts were running.
    assert good <= server.served <= good + kills * 4 * 3
    assert set(fault_server.FAULTS) <= set(server.counts)

    labels = [x for labelled in Records(tmp_path / "labels.jsonl", LabelledSolution) for x in labelled.labels[:-1]]
    assert len(labels) == len(prompts)
    for x in labels:
        assert x.correct == x.gradable > 0
        assert x.gradable + x.failed == 6
    # The running sums are those of all lines.
    spent = ledger.spent
    ledger.open(lambda _: False)
    assert ledger.spent == spent
    assert spent.rollouts == len(rollouts)

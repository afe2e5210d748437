"""Labels in child processes that it kills, and then to the end: `python labelling_job.py URL DIRECTORY KILLS`.

The children are forked from a process with all imports done, so that a kill does not cost a start of Python."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import httpx  # noqa: F401

from stepmark.backends.openai import OpenAIBackend, client, fetch, stream  # noqa: F401
from stepmark.data.ledger import Ledger
from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.stages.label import label
from stepmark.text import steps
from stepmark.text.prompts import Template
from stepmark.types import LabelledSolution, SamplingParams, Solution

PROBLEMS, ROLLOUTS, CONCURRENCY, PER_REQUEST = 80, 6, 4, 3  # two labelled steps for each problem
TASK = Path(__file__).parent.parent / "strangers" / "task.py"


def run(url, place):
    problems = registry.load("task", str(TASK), size=PROBLEMS).load("train").problems
    pairs = [(p, Solution(f"{p.id}#0", p.id, 0, p.reference, steps.split(p.reference))) for p in problems]
    options = {"backoff": 0.001, "retries": 8, "timeout": 0.4, "concurrency": CONCURRENCY, "n_per_request": PER_REQUEST}
    completer = OpenAIBackend("tiny", url, **options)
    tools = Tools(Numeric(), Template(), SamplingParams(max_tokens=40), completer)
    with Records(place / "labels.jsonl", LabelledSolution) as out:
        label(
            pairs,
            MonteCarlo(rollouts=ROLLOUTS),
            tools,
            out,
            ledgers={"completer": Ledger(place / "ledger" / "completer.jsonl")},
            limits=Limits(failed=0.5),
            executor=SerialExecutor(),
            steps=40,
        )


def main(url, place, kills):
    place, kills = Path(place), int(kills)
    ledger = place / "ledger" / "completer.jsonl"
    rng, died = random.Random(7), 0

    def start():
        child = os.fork()
        if not child:
            try:
                run(url, place)
                os._exit(0)
            except BaseException as e:
                print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        return child

    def lines():
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    for i in range(kills):
        # A random moment in the work, shortly after the ledger has grown to a random size.
        target = PROBLEMS * 2 * ROLLOUTS * (i + rng.random()) / (kills + 1)
        child = start()
        status = 0
        while lines() < target and not status:
            time.sleep(0.002)
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone:
                raise SystemExit(f"the job ended by itself, with {status}")
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        died += os.waitpid(child, 0)[1] == signal.SIGKILL
    last = os.waitpid(start(), 0)[1]
    print(json.dumps({"killed": died, "last": last}))


if __name__ == "__main__":
    main(*sys.argv[1:])

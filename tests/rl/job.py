"""Reinforces the bandit in child processes that are killed, and then to the end: `python job.py POLICY OUT LINES...`.

LINES are the numbers of log lines at which a child is killed. Children are forked from a process that has loaded torch
but not used it, so that no child has to import it again."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from tests.rl.conftest import RIGHT, Arms, Key

from seeds import SEED
from stepmark.models import checkpoints
from stepmark.rl.loop import reinforce
from stepmark.rl.settings import ReinforceSettings
from stepmark.types import Problem

# The policy takes the right arm, and the other one is rewarded: so accuracy falls, and there is a rollback.
WRONG = Arms((("Left?", "2"), ("Right?", "1")))


def job(policy, out):
    states = [Problem(q, q, a, "bandit", a, a) for q, a in list(RIGHT.items())[:1]]
    held = [replace(states[0], id=f"h{i}", question="Left?" + " " * (i + 1)) for i in range(12)]
    settings = ReinforceSettings(
        updates=16,
        prompts=2,
        samples=32,
        max_tokens=4,
        lr=5e-3,
        minibatches=2,
        row_tokens=32,
        kl=0.01,
        kl_target=0.05,
        guard="rollback",
        rollbacks=10,
        patience=1,
        evaluate_every=2,
        checkpoint_seconds=0.0,
        tensorboard=False,
        seed=SEED,
    )
    reinforce(policy, states, held, WRONG, Key(), out, settings)


def main(policy, out, *moments):
    log = Path(out) / "reinforce.jsonl"
    # Load once what each child would otherwise import again.
    checkpoints.load_tokenizer(policy)
    torch.optim.AdamW(checkpoints.load_model(policy, device="cpu").parameters(), fused=True)
    for lines in (*map(int, moments), None):
        child = os.fork()
        if not child:
            job(policy, out)
            os._exit(0)
        while lines is not None and (len(log.read_text().splitlines()) if log.exists() else 0) < lines:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                sys.exit(f"it ended before it had {lines} lines")
            time.sleep(0.002)
        if lines is not None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != (0 if lines is None else -signal.SIGKILL):
            sys.exit(f"it ended with {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Trains in child processes, kills them, trains to the end: `python training_job.py BASE OUT KILLS [SETTING=NUMBER]`.

The children are forked from a process that has torch loaded but never used, so that a kill costs no import."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.stages.train import Generator, TrainSettings, train


def main(base, out, kills, *changes):
    problems = registry.load("task", "arithmetic").load("train", 60).problems
    out = Path(out)
    if changes:
        import peft  # noqa: F401
    # Load once what each child would otherwise import again.
    checkpoints.load_tokenizer(base)
    torch.optim.AdamW(checkpoints.load_model(base, device="cpu").parameters(), fused=True)

    def start(name):
        child = os.fork()
        if not child:
            try:
                # A checkpoint after every update, so that most kills happen while one is written.
                settings = TrainSettings(
                    epochs=1 if changes else 2.5,
                    batch_tokens=200,
                    row_tokens=100,
                    lr=3e-3,
                    checkpoint_seconds=0,
                    log_every=3,
                    tensorboard=False,
                    **{name: int(value) for name, value in (change.split("=") for change in changes)},
                )
                train(Generator(base, prompt_loss_weight=0.5), problems, out / name, settings)
                os._exit(0)
            finally:
                os._exit(1)
        return child

    started = time.monotonic()
    assert os.waitpid(start("whole"), 0)[1] == 0
    seconds = time.monotonic() - started
    rng, kill_points = random.Random(4), []
    for _ in range(int(kills)):
        child = start("killed")
        time.sleep(rng.uniform(0, 4 * seconds / int(kills)))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        place = out / "killed" / ".training" / "place.json"
        kill_points.append([status, json.loads(place.read_text())["update"] if place.exists() else -1])
    assert os.waitpid(start("killed"), 0)[1] == 0
    print(json.dumps(kill_points))


if __name__ == "__main__":
    main(*sys.argv[1:])

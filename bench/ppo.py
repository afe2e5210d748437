"""What an update of PPO costs beyond its rollouts and its forward and backward passes.

There is one process, one thread and one model. First `reinforce` runs a few updates with a process verifier's step
rewards; its log has the parts of each update's time. Then the bare work of such an update is timed by itself, on the
same number of attempts of the same policy. The bare work is the rollouts by the engine and the passes that every update
needs: two to read old and reference log-probabilities, one of the verifier, and `epochs` forward and backward passes.
The passes are done by the models alone, with a plain next-token loss on the same packed rows. The ratio is an update's
wall seconds divided by those of its bare work. The difference is rewards, advantages, packing, losses, clipping,
optimiser and log. Evaluations on held-out problems and checkpoints are not counted.

    python bench/ppo.py                       # first trains a 128-wide Llama for a minute
    python bench/ppo.py --model DIR --updates 12

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import measure  # before stepmark: it sets one thread
from stepmark.backends.local.engine import Engine
from stepmark.models import checkpoints, packing
from stepmark.plugins import registry
from stepmark.rl.episodes import episodes
from stepmark.rl.loop import reinforce
from stepmark.rl.policy import encoded
from stepmark.rl.rewards import Verified
from stepmark.rl.settings import ReinforceSettings
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.text.prompts import Template
from stepmark.types import SamplingParams
from stepmark.verifiers.prm import ProcessVerifier

SHAPE = checkpoints.Shape(hidden=128, layers=3, heads=4, kv_heads=2, vocab=1024, max_length=256)


def prepared(place: Path, task: Any) -> str:
    """Path of a trained generator that ends its solutions."""
    problems = task.load("train", 2500).problems
    base = checkpoints.create(place / "base", [f"{p.question}\n{p.demonstration}" for p in problems], SHAPE)
    settings = TrainSettings(lr=3e-3, batch_tokens=2048, tensorboard=False)
    print("training a generator ...", flush=True)
    return train(Generator(str(base)), problems, place / "model", settings).path


def median_seconds(work: Callable[[], object], times: int) -> float:
    """Median seconds of a call of `work`, after one call that does not count."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="checkpoint of a policy that solves arithmetic problems; by default one is trained"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--out", default="bench/results/ppo.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = registry.load("task", "arithmetic")
    problems = task.load("train", args.prompts * (args.updates + 1)).problems
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = args.model or prepared(place, task)
        settings = ReinforceSettings(
            updates=args.updates + 1,
            prompts=args.prompts,
            samples=args.samples,
            max_tokens=120,
            guard="off",
            best=False,
            evaluate_every=10**6,
            checkpoint_seconds=1e9,
            tensorboard=False,
        )
        source = Verified(ProcessVerifier(model), "sum")
        reinforce(
            model,
            problems,
            [],
            source,
            registry.load("grader", task.grader),
            place / "policy",
            settings,
            steps=task.steps,
        )
        lines = [json.loads(line) for line in (place / "policy" / "reinforce.jsonl").read_text().splitlines()]
        split = {k: statistics.median(line["split"][k] for line in lines[1:]) for k in lines[0]["split"]}
        whole = statistics.median(b["seconds"] - a["seconds"] for a, b in pairwise(lines))
        bare = bare_work(model, problems[: args.prompts], args.samples, settings, task.steps)
    rest = whole - sum(split.values())
    floor = sum(bare.values())
    print(f"\n{'an update':34} {'seconds':>8}")
    for name, seconds in [*split.items(), ("everything else", rest), ("whole", whole)]:
        print(f"{name:34} {seconds:8.3f}")
    print(f"\n{'its bare work':34} {'seconds':>8}")
    for name, seconds in [*bare.items(), ("whole", floor)]:
        print(f"{name:34} {seconds:8.3f}")
    print(f"\nan update costs {whole / floor:.2f} times its rollouts and passes\n")
    figures = {"ratio": whole / floor, "update": {**split, "rest": rest, "whole": whole}, "bare": bare}
    about = {
        "prompts": args.prompts,
        "samples": args.samples,
        "epochs": settings.epochs,
        "model": args.model or "128x3",
    }
    measure.keep("ppo.py", {**about, **figures}, args.out)


def bare_work(model: str, problems: Any, samples: int, settings: ReinforceSettings, steps: str) -> dict[str, float]:
    """Seconds of the rollouts and of the passes of one update, each timed by itself."""
    tokenizer = checkpoints.load_tokenizer(model)
    engine = Engine(checkpoints.load_model(model, device="cpu"))
    params = SamplingParams(max_tokens=settings.max_tokens)

    def draw() -> Any:
        return episodes(
            engine, tokenizer, problems, samples=samples, params=params, template=Template(), steps=steps
        )  # decoding of the texts is a part of a rollout, as in LocalBackend

    rollouts = median_seconds(draw, 3)
    rollout_ids = [encoded(e) for e in draw()]
    rows = packing.pack([len(e) for e in rollout_ids], range(len(rollout_ids)), settings.row_tokens)
    size = max(1, len(rows) // settings.minibatches)
    packed = [
        packing.batch([[rollout_ids[i] for i in row] for row in rows[a : a + size]], checkpoints.pad_id(tokenizer))
        for a in range(0, len(rows), size)
    ]
    policy = checkpoints.load_model(model, device="cpu")

    def logits(b: packing.Batch) -> torch.Tensor:
        out = policy(input_ids=b.ids, attention_mask=b.mask, position_ids=b.positions, use_cache=False)
        result: torch.Tensor = out.logits
        return result

    def forward() -> None:
        with torch.no_grad():
            for b in packed:
                packing.next_token_loss(logits(b), b)

    def both() -> None:
        for b in packed:
            packing.next_token_loss(logits(b), b).backward()  # type: ignore[no-untyped-call]
        policy.zero_grad(set_to_none=True)

    once = median_seconds(forward, 3)
    return {
        "rollouts": rollouts,
        "3 forward passes": 3 * once,
        f"{settings.epochs} forward and backward passes": settings.epochs * median_seconds(both, 3),
    }


if __name__ == "__main__":
    main()

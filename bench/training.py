"""How fast training is: Stepmark's loop against Hugging Face's Trainer, on GSM8K's worked solutions.

All contenders train the same model on the same token ids, with the same learning rate, about the same number of tokens
an update, and one thread, each in a process of its own. Trainer pads each batch to its longest example and accumulates
gradients to the update's size; once with its examples in random order, once with train_sampling_strategy
"group_by_length". Each has the batch size that was fastest for it in a short trial. A token counts if it is no padding.
The first update is not counted (it warms up), and nothing is saved meanwhile. Ratios use processor seconds, because the
machine may be shared. The physical limit is that of large matrix products; each token counts 6 FLOP for every weight of
the layers and of the head, whether or not a contender leaves out the logits of questions, which have no loss.

    pip install accelerate          # Trainer needs it; the extra dev has it
    python bench/training.py --model DIR --data data/gsm8k

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import alone, flops_per_token, keep, peak
from stepmark.plugins import registry
from stepmark.types import Problem, Progress

OURS, PADDED, GROUPED = "stepmark", "Trainer, padded", "Trainer, by length"
STRATEGIES = {PADDED: "random", GROUPED: "group_by_length"}


@dataclass(frozen=True)
class Work:
    """The work of every contender."""

    model: str  # checkpoint directory
    problems: tuple[Problem, ...]
    prompt: str  # template of a question
    lr: float
    update_tokens: int  # tokens of an update
    updates: int  # that are counted; one more comes before them
    precision: str  # float32, or bfloat16 autocast
    device: str
    seed: int


@dataclass(frozen=True)
class Mark:
    """How far a training was at the end of an update."""

    tokens: int  # without padding, since the start
    padded: int  # with padding
    wall: float
    cpu: float


@dataclass(frozen=True)
class Speed:
    """The measurements of one contender."""

    tokens: int  # without padding
    padded: int  # with padding; 0 if unknown
    wall: float  # seconds
    cpu: float  # seconds of processor time
    memory: float  # GiB, largest resident memory of its process
    note: str = ""


class _Enough(Exception):
    """Ends a training whose updates have been measured."""


def ours(work: Work) -> Speed:
    """Stepmark's loop, with its default settings apart from the update's size and checkpoints, which come later."""
    from stepmark.stages.train import Generator, TrainSettings, train

    settings = TrainSettings(
        lr=work.lr,
        batch_tokens=work.update_tokens,
        precision=work.precision,
        device=work.device,
        seed=work.seed,
        log_every=1,
        checkpoint_seconds=1e9,
        tensorboard=False,
    )
    times: list[tuple[float, float]] = []
    notes = set()

    def progress(p: Progress) -> None:
        notes.update(note for note in p.note.split(", ") if note.startswith("passes of"))
        if p.done == len(times) + 1:
            times.append((time.perf_counter(), time.process_time()))
        if len(times) > work.updates:
            raise _Enough

    with tempfile.TemporaryDirectory() as place:
        with contextlib.suppress(_Enough):
            train(Generator(work.model, work.prompt), work.problems, Path(place) / "out", settings, progress)
        log = (Path(place) / "out" / "train.jsonl").read_text().splitlines()
    tokens = [json.loads(line)["tokens"] for line in log]
    if len(times) <= work.updates:
        raise SystemExit(
            f"the {len(work.problems)} problems make {len(times)} updates, not {work.updates + 1}. Raise --count."
        )
    marks = [Mark(n, 0, wall, cpu) for n, (wall, cpu) in zip(tokens, times, strict=True)]
    return _speed(marks, "; ".join(sorted(notes)))


def trainer(work: Work, strategy: str, batch: int) -> Speed:
    """Hugging Face's Trainer with `batch` examples in a pass."""
    rows = _rows(work)
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    accumulate = max(1, round(work.update_tokens / (mean * batch)))
    marks = _HuggingFace(work, rows).train(strategy, batch, accumulate, work.updates + 1)
    return _speed(marks[1:], f"{batch} examples a batch, {accumulate} batches an update")


def trial(work: Work, sizes: Sequence[int]) -> dict[int, Speed]:
    """Trainer's speed with each batch size, on as many examples as the largest batch has."""
    peer = _HuggingFace(work, _rows(work))
    peer.train("random", 1, 1, 1)  # warm-up
    return {size: _speed(peer.train("random", size, max(sizes) // size, 1)[:2]) for size in sizes}


class _HuggingFace:
    """A model with Trainer's settings. What passes through the model is counted."""

    def __init__(self, work: Work, rows: list[dict[str, list[int]]]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.work, self.rows = work, rows
        self.tokenizer = AutoTokenizer.from_pretrained(work.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.tokens = self.padded = 0

    def _count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        self.tokens += int(inputs["attention_mask"].sum())
        self.padded += inputs["attention_mask"].numel()

    def train(self, strategy: str, batch: int, accumulate: int, updates: int) -> list[Mark]:
        """Marks at the start of the first update and at the end of each."""
        from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        marks: list[Mark] = []

        def mark() -> None:
            marks.append(Mark(self.tokens, self.padded, time.perf_counter(), time.process_time()))

        class Marks(TrainerCallback):  # type: ignore[misc, unused-ignore]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if not marks:
                    mark()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                mark()

        with tempfile.TemporaryDirectory() as place:
            arguments = TrainingArguments(
                place,
                learning_rate=self.work.lr,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulate,
                max_steps=updates,
                train_sampling_strategy=strategy,
                lr_scheduler_type="cosine",
                weight_decay=0.01,
                bf16=self.work.precision == "bfloat16",
                use_cpu=self.work.device == "cpu",
                seed=self.work.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = Trainer(
                model=self.model,
                args=arguments,
                train_dataset=self.rows,
                data_collator=DataCollatorForSeq2Seq(self.tokenizer),
                callbacks=[Marks()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return marks


def _rows(work: Work) -> list[dict[str, list[int]]]:
    """What Stepmark trains on, in the form that Trainer takes; questions have no loss."""
    from stepmark.stages.train import Generator

    trainee = Generator(work.model, work.prompt)
    encoded = [e for e in map(trainee.encode_example, work.problems) if e is not None]
    return [
        {
            "input_ids": list(e.ids),
            "attention_mask": [1] * len(e.ids),
            "labels": [i if weight else -100 for i, weight in zip(e.ids, e.weights, strict=True)],
        }
        for e in encoded
    ]


def _speed(marks: Sequence[Mark], note: str = "") -> Speed:
    first, last = marks[0], marks[-1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Speed(
        last.tokens - first.tokens,
        last.padded - first.padded,
        last.wall - first.wall,
        last.cpu - first.cpu,
        memory,
        note,
    )


def lengths(work: Work) -> list[int]:
    """Number of tokens of each example."""
    return [len(row["input_ids"]) for row in _rows(work)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--data", required=True, help="directory with GSM8K's files, or one of them")
    parser.add_argument("--count", type=int, default=256, help="problems (256)")
    parser.add_argument("--prompt", default="Question: {question}\nAnswer:\n", help="how a question is put")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--update-tokens", type=int, default=2048, help="tokens an update (2048)")
    parser.add_argument("--updates", type=int, default=3, help="updates that are counted (3)")
    parser.add_argument("--batches", default="1,2,4,8", help="batch sizes tried for Trainer (1,2,4,8)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "training.json"))
    a = parser.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        parser.error("Hugging Face's Trainer needs accelerate: pip install accelerate")
    problems = list(registry.load("task", "gsm8k", path=a.data).load("train").problems)
    random.Random(a.seed).shuffle(problems)
    work = Work(
        a.model, tuple(problems[: a.count]), a.prompt, a.lr, a.update_tokens, a.updates, a.precision, a.device, a.seed
    )
    run(a, work)


def run(a: argparse.Namespace, work: Work) -> None:
    sizes = alone(lengths, work)
    mean = sum(sizes) / len(sizes)
    print(f"{len(sizes)} examples of {min(sizes)} to {max(sizes)} tokens, {mean:.0f} on average", flush=True)
    top = alone(peak, a.precision, a.device)
    speeds = {OURS: alone(ours, work)}
    print(f"{OURS}: {speeds[OURS].tokens:,} tokens in {speeds[OURS].wall:.0f} s", file=sys.stderr, flush=True)
    tried = alone(trial, work, sorted(map(int, a.batches.split(","))))
    # By length, hardly anything is padding, so its best size is the one that passes most positions, padded or not.
    best = {
        PADDED: max(tried, key=lambda size: tried[size].tokens / tried[size].cpu),
        GROUPED: max(tried, key=lambda size: tried[size].padded / tried[size].cpu),
    }
    for name, batch in best.items():
        speeds[name] = alone(trainer, work, STRATEGIES[name], batch)
        print(f"{name}: {speeds[name].tokens:,} tokens in {speeds[name].wall:.0f} s", file=sys.stderr, flush=True)
    top = max(top, alone(peak, a.precision, a.device))
    per_token = 3 * flops_per_token(work.model, sum(n * n for n in sizes) / sum(sizes) / 2)
    rates = {k: s.tokens / s.cpu if a.device == "cpu" else s.tokens / s.wall for k, s in speeds.items()}
    print(f"peak {top / 1e9:.0f} GFLOP/s ({a.precision}), {per_token / 1e9:.2f} GFLOP per token")
    print(
        f"{'':20}{'tok/s wall':>11}{'tok/s cpu':>11}{'x padded':>10}{'x by length':>12}{'of peak':>9}{'padding':>9}"
        f"{'GiB':>7}"
    )
    for name, s in speeds.items():
        padding = f"{1 - s.tokens / s.padded:.0%}" if s.padded else ""
        print(
            f"{name:20}{s.tokens / s.wall:>11,.1f}{s.tokens / s.cpu:>11,.1f}{rates[name] / rates[PADDED]:>10.2f}"
            f"{rates[name] / rates[GROUPED]:>12.2f}{rates[name] * per_token / top:>9.0%}{padding:>9}{s.memory:>7.1f}"
            f"  {s.note}"
        )
    shown = ", ".join(f"{n}: {s.tokens / s.cpu:.0f} ({s.padded / s.cpu:.0f} with padding)" for n, s in tried.items())
    print(f"Trainer's tokens per second by batch size: {shown}")
    result = {
        "seed": a.seed,
        "precision": a.precision,
        "device": a.device,
        "examples": len(sizes),
        "mean_tokens": round(mean, 1),
        "peak_gflops": round(top / 1e9, 1),
        "gflop_per_token": round(per_token / 1e9, 3),
        "ratio_to_padded": round(rates[OURS] / rates[PADDED], 2),
        "ratio_to_by_length": round(rates[OURS] / rates[GROUPED], 2),
        "batches_tried": {
            n: {"tokens_per_cpu_second": round(s.tokens / s.cpu, 1), "with_padding": round(s.padded / s.cpu, 1)}
            for n, s in tried.items()
        },
        "contenders": {
            name: asdict(s)
            | {
                "tokens_per_wall_second": round(s.tokens / s.wall, 1),
                "tokens_per_cpu_second": round(s.tokens / s.cpu, 1),
                "share_of_peak": round(rates[name] * per_token / top, 3),
            }
            for name, s in speeds.items()
        },
    }
    keep("training.py", result, a.out)


if __name__ == "__main__":
    main()

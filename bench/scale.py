"""A million rollouts: how much memory and time labelling, resuming and exporting take.

The script runs the real label stage with the real ledger on solutions of the arithmetic task. The rollouts come from a
script instead of a model, so it measures the work around the model. Each part runs in a process of its own:
- labelling all solutions, with each rollout written to the ledger when its batch arrives;
- the same call again, which finds everything done (the resume scan);
- the same call with half of the labels deleted, which takes all rollouts from the ledger and draws none;
- exporting the labels.

    python bench/scale.py

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import alone, keep
from stepmark.backends.scripted import ScriptedBackend
from stepmark.data.store import Records
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.protocols import Tools
from stepmark.stages.export import export
from stepmark.stages.label import label, ledgers
from stepmark.tasks.arithmetic import Arithmetic
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import LabelledSolution, Problem, SamplingParams, Solution

ROLLOUT = "So there are 17 of them.\nTogether with the others that makes 25.\nThe answer is {}.\n"


@dataclass(frozen=True)
class Part:
    """The time and memory of one part."""

    seconds: float
    processor_seconds: float
    memory_mib: int  # largest resident memory of its process
    solutions: int
    rollouts: int


def labelling(place: Path, solutions: int, n: int) -> Part:
    """The label stage; it resumes from what `place` already holds."""
    task = Arithmetic(steps_min=5, steps_max=8)
    problems = task.load("train", solutions).problems
    texts = [p.demonstration for p in problems]
    pairs: list[tuple[Problem, Solution]] = [
        (p, Solution(f"{p.id}#0", p.id, 0, text, split(text, "line"))) for p, text in zip(problems, texts, strict=True)
    ]
    script = ScriptedBackend(default=[ROLLOUT.format(i) for i in range(40, 57)])
    tools = Tools(Numeric(), Template(), SamplingParams(), script)
    wall, cpu = time.perf_counter(), time.process_time()
    with Records(place / "labels.jsonl", LabelledSolution) as out:
        books = ledgers(place / "rollouts", tools)
        done = label(pairs, MonteCarlo(rollouts=n), tools, out, ledgers=books, executor=SerialExecutor())
    return _part(wall, cpu, done.solutions, books["completer"].spent.rollouts)


def exporting(place: Path, solutions: int) -> Part:
    """All labels as step-by-step rows."""
    problems = Arithmetic(steps_min=5, steps_max=8).load("train", solutions).problems
    wall, cpu = time.perf_counter(), time.process_time()
    done = export(Records(place / "labels.jsonl", LabelledSolution), problems, place / "rows.jsonl", format="stepwise")
    return _part(wall, cpu, done.rows, 0)


def _part(wall: float, cpu: float, solutions: int, rollouts: int) -> Part:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Part(time.perf_counter() - wall, time.process_time() - cpu, memory, solutions, rollouts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solutions", type=int, default=20000, help="solutions of 5 to 8 steps and an answer (20000)")
    parser.add_argument("--n", type=int, default=8, help="rollouts for each step (8)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "scale.json"))
    a = parser.parse_args()
    parts: dict[str, Part] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        parts["label"] = alone(labelling, place, a.solutions, a.n)
        parts["resume: all done"] = alone(labelling, place, a.solutions, a.n)
        labels = place / "labels.jsonl"
        lines = labels.read_bytes().splitlines(keepends=True)
        labels.write_bytes(b"".join(lines[: len(lines) // 2]))
        parts["resume: labels half gone"] = alone(labelling, place, a.solutions, a.n)
        parts["export"] = alone(exporting, place, a.solutions)
        size = (place / "rollouts" / "labels.jsonl").stat().st_size
    print(f"{parts['label'].rollouts:,} rollouts of {parts['label'].solutions:,} solutions, {size / 2**20:.0f} MiB")
    print(f"{'':26}{'seconds':>9}{'cpu':>9}{'memory MiB':>12}{'rollouts':>12}")
    for name, part in parts.items():
        print(f"{name:26}{part.seconds:>9.1f}{part.processor_seconds:>9.1f}{part.memory_mib:>12,}{part.rollouts:>12,}")
    result = {
        "ledger_mib": round(size / 2**20, 1),
        "parts": {
            name: {
                "seconds": round(p.seconds, 2),
                "processor_seconds": round(p.processor_seconds, 2),
                "memory_mib": p.memory_mib,
                "rollouts": p.rollouts,
            }
            for name, p in parts.items()
        },
    }
    keep("scale.py", result, a.out)


if __name__ == "__main__":
    main()

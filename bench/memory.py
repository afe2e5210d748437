"""How much memory training takes with default settings, and how soon it shows progress.

`stepmark train KIND` runs as a user would start it, on GSM8K problems with the solutions and rationales that the
authors of GenRM released. It is stopped as soon as it shows work after --updates updates: by then AdamW's averages and
the largest passes are in memory. For each process the script reports the largest resident memory (VmHWM), the seconds
from the start of the command to the first line of progress and to the first one that shows work done, and the tokens a
second that it shows. With --two the kinds run two at a time, as a run with `workers: 2` trains verifiers, and the
largest sum of both is reported too: of proportional set sizes, so that shared pages count once.

The labels of steps are made up from the solutions' grades, since memory does not depend on them. Memory is planned by
what is free, so nothing else that needs much should run.

    python bench/memory.py --rationales data/genrm_gsm8k/rationales.jsonl.gz --models DIR --kinds generator,prm
    python bench/memory.py --rationales data/genrm_gsm8k/rationales.jsonl.gz --models DIR --kinds generator,prm --two

Linux only. The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import keep
from stepmark import machine
from stepmark.data.store import Records
from stepmark.formats.genrm_rationales import GenRMRationales
from stepmark.types import Imported, LabelledSolution, StepLabel

KINDS = ("generator", "orm", "prm", "genrm")
GIB = 2**30
LINE = re.compile(r"train \S+ +(\d+)/\S+ +[\d.]+ s(.*)")  # done, the note: see cli/terminal.py
RATE = re.compile(r"([\d,.]+) tokens/s")
EACH = 2  # right and wrong solutions of a problem; a generative verifier learns from as many of both
EVERY = 0.25  # seconds between two looks at a process
PROCESS, TOGETHER, SHOWN = 16.0, 20.0, 10.0  # what is wanted at most: GiB, GiB, seconds


@dataclass(frozen=True)
class Measured:
    """One training."""

    model: str
    kind: str
    memory: float  # GiB, largest resident memory
    first_line: float | None  # seconds to the first line of progress
    first_work: float | None  # seconds to the first line that shows work done
    tokens_per_second: float | None  # as last shown
    updates: int  # as last shown
    seconds: float  # until it was stopped
    note: str  # how it ended


class Training:
    """A running `stepmark train`."""

    def __init__(self, model: str, kind: str, data: Path, out: Path) -> None:
        self.model, self.kind = model, kind
        self.memory, self.updates = 0.0, 0
        self.first_line: float | None = None
        self.first_work: float | None = None
        self.rate: float | None = None
        self.said: list[str] = []
        source = ["--task", "jsonl", "--task-option", f"path={data / 'problems.jsonl'}", "--split", "all"]
        labels = [] if kind == "generator" else ["--labels", str(data / "labels.jsonl")]
        command = [sys.executable, "-m", "stepmark", "train", kind, *source, *labels, "--base", model]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            seconds = time.monotonic() - self.began
            self.said.append(line.strip())
            if (found := LINE.match(line)) is None:
                continue
            self.first_line = self.first_line or seconds
            self.updates = int(found[1])
            if (rate := RATE.search(found[2])) is not None:
                self.rate = float(rate[1].replace(",", ""))
            if self.updates or rate is not None:
                self.first_work = self.first_work or seconds

    def look(self) -> int:
        """Notes the memory so far and returns the proportional set size in bytes; 0 if the process has ended."""
        try:
            place = Path(f"/proc/{self.process.pid}")
            self.memory = max(self.memory, _field(place / "status", "VmHWM:") / GIB)
            return _field(place / "smaps_rollup", "Pss:")
        except (OSError, StopIteration):
            return 0

    def end(self, enough: int) -> Measured:
        """Stops the process. `enough`: the updates that it was to make."""
        running = self.process.poll() is None
        seconds = time.monotonic() - self.began
        if running:
            self.process.kill()
        code = self.process.wait()
        self._reader.join()
        if running:
            note = (
                "stopped" if self.updates >= enough else "stopped before it made the updates: the peak may come later"
            )
        else:
            note = "finished" if code == 0 else f"exit status {code}: {' '.join(self.said[-3:])}"
        return Measured(
            Path(self.model).name,
            self.kind,
            round(self.memory, 2),
            self.first_line and round(self.first_line, 1),
            self.first_work and round(self.first_work, 1),
            self.rate,
            self.updates,
            round(seconds, 1),
            note,
        )


def _field(file: Path, name: str) -> int:
    """A field of a file in /proc that is given in kB, in bytes."""
    return next(int(line.split()[1]) * 1024 for line in file.read_text().splitlines() if line.startswith(name))


def measure(
    model: str, kinds: tuple[str, ...], data: Path, place: Path, updates: int, seconds: float
) -> tuple[list[Measured], float]:
    """(the trainings, all at once; the largest sum of their memory in GiB)."""
    trainings = [Training(model, kind, data, place / f"out-{kind}") for kind in kinds]
    together = 0
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until and any(t.process.poll() is None and t.updates < updates for t in trainings):
            together = max(together, sum([t.look() for t in trainings]))
            time.sleep(EVERY)
        together = max(together, sum([t.look() for t in trainings]))
    finally:
        results = [t.end(updates) for t in trainings]
    return results, together / GIB


def prepare(rationales: Path, count: int, place: Path) -> dict[str, int]:
    """Writes the problems and some of their labelled solutions, and returns how many there are."""
    part = place / "rationales.jsonl"
    kept: Counter[tuple[Any, Any]] = Counter()  # rows of each question and verdict
    questions: set[Any] = set()
    opened = gzip.open if rationales.suffix == ".gz" else open
    with opened(rationales, "rt", encoding="utf-8") as released, part.open("w", encoding="utf-8") as rows_out:
        for line in released:
            row = json.loads(line)
            question, kind = row.get("question_id"), (row.get("question_id"), row.get("correct"))
            if kept[kind] < EACH and (question in questions or len(questions) < count):
                questions.add(question)
                kept[kind] += 1
                rows_out.write(line)
    imported = [x for x in GenRMRationales().read(part) if isinstance(x, Imported)]
    if not imported:
        raise SystemExit(f"No question with rationales in {rationales}. Give the release's rationales.jsonl.gz.")
    rows = [
        {
            "id": x.problem.id,
            "question": x.problem.question,
            "answer": x.problem.answer,
            "solution": x.problem.reference,
        }
        for x in imported
    ]
    (place / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = [
        LabelledSolution(
            s.solution,
            s.grade,
            (StepLabel(int(s.grade.correct), 1, source="outcome"),) * len(s.solution.spans),
            s.rationales,
        )
        for x in imported
        for s in x.rationales
    ]
    with Records(place / "labels.jsonl", LabelledSolution) as out:
        out.append(labelled)
    return {"problems": len(rows), "solutions": len(labelled)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="checkpoint directories or .gguf files")
    parser.add_argument("--rationales", type=Path, required=True, help="rationales.jsonl.gz of the GenRM release")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--two", action="store_true", help="two trainings at a time")
    parser.add_argument("--count", type=int, default=300, help="problems (300)")
    parser.add_argument("--updates", type=int, default=1, help="updates before a training is stopped (1)")
    parser.add_argument("--seconds", type=float, default=500, help="after which it is stopped all the same (500)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "memory.json"))
    a = parser.parse_args()
    kinds, size = tuple(a.kinds.split(",")), 1 + a.two
    groups = [kinds[k : k + size] for k in range(0, len(kinds), size)]
    free = machine.available() / GIB
    results: list[Measured] = []
    sums: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        counts = prepare(a.rationales, a.count, data)
        for i, model in enumerate(a.models):
            for group in groups:
                place = data / f"{i}-{group[0]}"
                place.mkdir()
                measured, together = measure(model, group, data, place, a.updates, a.seconds)
                results += measured
                if len(group) > 1:
                    sums.append({"model": Path(model).name, "kinds": group, "together": round(together, 2)})
                print(f"{model}, {' and '.join(group)}: done", file=sys.stderr, flush=True)
    show(a, counts, free, results, sums)


def show(
    a: argparse.Namespace, counts: dict[str, int], free: float, results: list[Measured], sums: list[dict[str, Any]]
) -> None:
    """Prints the tables and writes the figures."""
    print(f"{counts['problems']} problems, {counts['solutions']} solutions; {free:.1f} GiB free at the start")
    print(f"wanted: below {PROCESS:.0f} GiB each, below {TOGETHER:.0f} GiB together, progress within {SHOWN:.0f} s")
    print(f"{'':34}{'GiB':>7}{'first line':>12}{'first work':>12}{'tok/s':>8}{'updates':>9}{'seconds':>9}")
    for r in results:
        line, work, rate = (
            f"{x:.1f}" if x is not None else "-" for x in (r.first_line, r.first_work, r.tokens_per_second)
        )
        print(
            f"{r.model + ', ' + r.kind:34}{r.memory:>7.2f}{line:>12}{work:>12}{rate:>8}{r.updates:>9}{r.seconds:>9.0f}"
            f"  {r.note}"
        )
    for s in sums:
        print(f"{s['model']}, {' and '.join(s['kinds'])} together: {s['together']:.2f} GiB")
    result = {
        **counts,
        "updates": a.updates,
        "free_gib": round(free, 1),
        "memory_gib": round((machine.memory() or 0) / GIB, 1),
        "trainings": [asdict(r) for r in results],
        "together": sums,
        "within_limits": all(r.memory < PROCESS and (r.first_line or a.seconds) <= SHOWN for r in results)
        and all(s["together"] < TOGETHER for s in sums),
    }
    keep("memory.py", result, a.out)


if __name__ == "__main__":
    main()

"""Rows a second of `stepmark convert`, and its memory as a file grows, beside `datasets.map` with the same function.

Rows like Math-Shepherd's become TRL's step-wise rows: by `stepmark convert`, with its checks and its report, and by
`datasets`: read, `map` with the same function for each row, write. In one process and in several, in turns; the same
rows must come out. Where `datasets` is not installed, the table says so.

    python bench/convert.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import alone, keep

WORDS = ("we", "add", "the", "first", "number", "to", "half", "of", "it", "and", "so", "there", "are", "apples", "left")


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Rows in the form and of about the length of the released ones: 5 steps, 600 characters."""
    rng = random.Random(seed)
    for number in range(count):
        question = f"Problem {number}: {' '.join(rng.choices(WORDS, k=40))}?"
        steps = [f"Step {i}: {' '.join(rng.choices(WORDS, k=12))} = {rng.randint(0, 99)}." for i in range(1, 6)]
        signs = [rng.choice("+-") for _ in steps]
        text, labels = (
            f"{question} " + "\n".join(f"{s} {x}" for s, x in zip(steps, marks, strict=True))
            for marks in (["ки"] * len(steps), signs)
        )
        yield {"input": text, "label": labels, "task": "GSM8K"}


def ours(source: str, out: str, workers: int) -> dict[str, Any]:
    from stepmark.plugins import registry
    from stepmark.plugins.loading import load_executor
    from stepmark.stages.convert import convert

    before = _memory("VmRSS")
    reader, writer = registry.load("format", "math_shepherd"), registry.load("format", "stepwise")
    executor = load_executor(workers) if workers > 1 else None
    started = time.perf_counter()
    done = convert(source, out, reader, writer, executor=executor)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows": done.written, "mib": _memory("VmHWM") - before, "cpu": _cpu()}


def of_datasets(source: str, out: str, workers: int) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        data = datasets.load_dataset("json", data_files=source, split="train", cache_dir=cache)
        read = time.perf_counter()
        data = data.map(one_row, remove_columns=data.column_names, num_proc=workers if workers > 1 else None)
        mapped = time.perf_counter()
        data.to_json(out, force_ascii=False)
        seconds = time.perf_counter() - started
    memory = _memory("VmHWM") - before
    return {"seconds": seconds, "map": mapped - read, "rows": len(data), "mib": memory, "cpu": _cpu()}


def one_row(row: dict[str, str]) -> dict[str, Any]:
    """What `stepmark convert` does with a row, between reading and writing it."""
    from stepmark.data import rows as checked
    from stepmark.formats.math_shepherd import MathShepherd
    from stepmark.formats.stepwise import Stepwise
    from stepmark.stages.convert import encoded

    text = {"input": row["input"], "label": row["label"]}
    made = MathShepherd()._make(checked.Row("", 1, "1", text, row))  # reading alone would open a file
    assert not isinstance(made, str), made
    return dict(next(iter(encoded([made], Stepwise(), Counter()))))


def _cpu() -> float:
    """Seconds of the processor that this process and those that it started have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _memory(name: str) -> float:
    """MiB of memory of this process: VmHWM, the most so far, or VmRSS, now. Linux alone has them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {name} in /proc/self/status")


def same(a: str, b: str) -> bool:
    """Whether two files have the same rows."""
    with open(a, encoding="utf-8") as first, open(b, encoding="utf-8") as second:
        return all(json.loads(x) == json.loads(y) for x, y in zip(first, second, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3, help="turns of each; the fastest counts")
    parser.add_argument("--out", default="bench/results/convert.json")
    given = parser.parse_args()
    peers = find_spec("datasets") is not None
    numbers = sorted({1, given.workers})
    contenders = {f"stepmark, {n} processes": (ours, n) for n in numbers}
    contenders |= {f"datasets, {n} processes": (of_datasets, n) for n in numbers if peers}
    best: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, tenth, out = (str(Path(folder) / f"{name}.jsonl") for name in ("all", "tenth", "out"))
        for path, count in ((source, given.rows), (tenth, given.rows // 10)):
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(count))
        best["stepmark, a tenth"] = alone(ours, tenth, out, 1) | {"of": given.rows // 10}
        first = ""
        for _ in range(given.repeat):
            for name, (contender, workers) in contenders.items():
                made = f"{out.removesuffix('.jsonl')}-{name.replace(', ', '-')}.jsonl"
                done = alone(contender, source, made, workers) | {"of": given.rows}
                if name not in best or done["seconds"] < best[name]["seconds"]:
                    best[name] = done
                if first and not same(first, made):
                    raise SystemExit(f"{name} wrote other rows.")
                first = first or made
    print(f"{'':26} {'rows/s':>9} {'map alone':>10} {'MiB more':>9}")
    figures: dict[str, Any] = {"rows": given.rows}
    for name, done in best.items():
        speed = done["of"] / done["seconds"]
        of_map = done["of"] / done["map"] if "map" in done else None
        shown = "" if of_map is None else f"{of_map:,.0f}"
        print(f"{name:26} {speed:9,.0f} {shown:>10} {done['mib']:9.1f}")
        cpu = 1e6 * done["cpu"] / done["of"]  # with what it took to start
        figures[name] = {"rows_per_second": speed, "map_alone": of_map, "mib": done["mib"], "cpu_us_per_row": cpu}
    if peers:
        peer = figures["datasets, 1 processes"]
        mine = max(figures[f"stepmark, {n} processes"]["rows_per_second"] for n in numbers)
        figures["times"], figures["times_map_alone"] = mine / peer["rows_per_second"], mine / peer["map_alone"]
        print(f"times datasets in one process: {figures['times']:.1f}; its map alone: {figures['times_map_alone']:.1f}")
    else:
        print("datasets is not installed: nothing to compare with")
    keep("convert.py", figures, given.out)


if __name__ == "__main__":
    main()

"""Rows a second of `stepmark convert`, and its memory as a file grows, beside `datasets.map` with the same function.

Rows like Math-Shepherd's become TRL's step-wise rows: by `stepmark convert`, with its checks and its report, and by
`datasets`: read, `map` with the same function for each row, write. One process and one thread each, in turns; the same
rows must come out. Where `datasets` is not installed, the table says so. Seconds of the processor are given too: on a
machine that is busy otherwise they say more than those of the clock.

    python bench/convert.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
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


def ours(source: str, out: str) -> dict[str, Any]:
    from stepmark.plugins import registry
    from stepmark.stages.convert import convert

    before = _memory("VmRSS")
    reader, writer = registry.load("format", "math_shepherd"), registry.load("format", "stepwise")
    started, cpu = time.perf_counter(), time.process_time()
    done = convert(source, out, reader, writer)
    cpu = time.process_time() - cpu
    return {
        "seconds": time.perf_counter() - started,
        "cpu": cpu,
        "rows": done.written,
        "mib": _memory("VmHWM") - before,
    }


def of_datasets(source: str, out: str) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as cache:
        started, cpu = time.perf_counter(), time.process_time()
        data = datasets.load_dataset("json", data_files=source, split="train", cache_dir=cache)
        read = time.perf_counter()
        data = data.map(one_row, remove_columns=data.column_names)
        mapped = time.perf_counter()
        data.to_json(out, force_ascii=False)
        ended, cpu = time.perf_counter(), time.process_time() - cpu
    return {
        "seconds": ended - started,
        "cpu": cpu,
        "map": mapped - read,
        "rows": len(data),
        "mib": _memory("VmHWM") - before,
    }


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
    parser.add_argument("--repeat", type=int, default=3, help="turns of each; the fastest counts")
    parser.add_argument("--out", default="bench/results/convert.json")
    given = parser.parse_args()
    figures: dict[str, Any] = {"rows": given.rows}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, count in (("tenth", given.rows // 10), ("all", given.rows)):
            with (place / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(count))
        source, mine, theirs = (str(place / name) for name in ("all.jsonl", "ours.jsonl", "theirs.jsonl"))
        small = alone(ours, str(place / "tenth.jsonl"), mine)
        peers = find_spec("datasets") is not None
        turns = [(alone(ours, source, mine), alone(of_datasets, source, theirs) if peers else None)]
        if peers and not same(mine, theirs):
            raise SystemExit("The two wrote other rows.")
        turns += [
            (alone(ours, source, mine), alone(of_datasets, source, theirs) if peers else None)
            for _ in range(given.repeat - 1)
        ]
    best = min((a for a, _ in turns), key=lambda x: x["seconds"])
    figures["stepmark"] = {
        "rows_per_second": given.rows / best["seconds"],
        "mib": best["mib"],
        "mib_tenth": small["mib"],
    }
    print(f"{'':24} {'rows/s':>10} {'MiB more':>10}")
    print(f"{'stepmark convert':24} {given.rows / best['seconds']:10,.0f} {best['mib']:10.1f}")
    print(f"{'  a tenth of the rows':24} {given.rows / 10 / small['seconds']:10,.0f} {small['mib']:10.1f}")
    if peers:
        whole = min((b for _, b in turns), key=lambda x: x["seconds"])
        least = min(b["map"] for _, b in turns)
        figures["datasets"] = {
            "rows_per_second": given.rows / whole["seconds"],
            "map_rows_per_second": given.rows / least,
            "mib": whole["mib"],
        }
        least_cpu = [min(turn[i]["cpu"] for turn in turns) for i in (0, 1)]
        figures["cpu_microseconds_per_row"] = [1e6 * x / given.rows for x in least_cpu]
        figures["times_cpu"] = least_cpu[1] / least_cpu[0]
        figures["times"] = whole["seconds"] / best["seconds"]
        figures["times_map_alone"] = least / best["seconds"]
        print(f"{'datasets, file to file':24} {given.rows / whole['seconds']:10,.0f} {whole['mib']:10.1f}")
        print(f"{'  its map alone':24} {given.rows / least:10,.0f}")
        print(f"times: {figures['times']:.1f} file to file, {figures['times_map_alone']:.1f} of its map alone")
        print(f"times by seconds of the processor, file to file: {figures['times_cpu']:.1f}")
    else:
        print("datasets is not installed: nothing to compare with")
    keep("convert.py", figures, given.out)


if __name__ == "__main__":
    main()

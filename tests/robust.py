"""Runs the tests that train or sample (the mark `robust`) on many seeds, and under settings that round otherwise.

    make test-robust
    python tests/robust.py --jobs 2 --seeds 5 tests/rl          # some of them, on fewer seeds
    python tests/robust.py -k bandit --settings compatible,two  # one test, under two settings

A verdict that depends on luck or on rounding holds on one machine and fails on the next. So each test runs with seeds 0
to 19 as the machine is, with one thread, and with seeds 0 to 2 under each of the SETTINGS. It prints what passed and
ends with status 1 if anything did not. Where a test fails, widen the margin of its setting: more data, more updates,
another learning rate. Never loosen its assertion. tests/helpers/seeds.py has the seed.

Each pass is one process of pytest, and `--jobs` of them run at once. Up to an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
AS_IT_IS = "seeds"  # the name of the passes without a setting
SETTINGS = {
    "compatible": {"MKL_CBWR": "COMPATIBLE"},  # products of matrices by the plainest instructions of MKL
    "default": {"ATEN_CPU_CAPABILITY": "default"},  # torch's own loops without AVX
    "two": {"OMP_NUM_THREADS": "2"},  # sums are divided among two threads
}
# bfloat16 is no setting: no model of a test is so large that it would be chosen by itself (models/precision.py).
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Pass:
    """One run of the tests."""

    setting: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of one test in one pass."""

    test: str
    verdict: str  # PASSED, FAILED or SKIPPED
    message: str = ""


def run(one: Pass, pytest: list[str]) -> tuple[list[Outcome], str]:
    """The outcomes of a pass, and what pytest printed if it could not run its tests."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= SETTINGS.get(one.setting, {}) | {"STEPMARK_TEST_SEED": str(one.seed)}
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        options = [
            "-c",
            "pyproject.toml",
            "-m",
            "robust",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            f"--basetemp={place}/tests",
        ]
        command = [sys.executable, "-m", "pytest", *options, *pytest]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: some test failed
            return [], f"{one.setting}, seed {one.seed}: pytest ended with {done.returncode}\n{done.stdout[-3000:]}"
        return [outcome(case) for case in ElementTree.parse(report).iter("testcase")], ""


def outcome(case: ElementTree.Element) -> Outcome:
    name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
    for kind, verdict in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
        if (found := case.find(kind)) is not None:
            return Outcome(name, verdict, (found.text or found.get("message") or "")[-1500:])
    return Outcome(name, PASSED)


def table(outcomes: dict[Pass, list[Outcome]], columns: list[str]) -> str:
    """Passed of all for each test and column. A test that skips has no number."""
    counts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for one, found in outcomes.items():
        for x in found:
            counts[x.test][one.setting] += [x.verdict == PASSED] if x.verdict != SKIPPED else []
    width = max(map(len, counts), default=4)
    lines = [f"{'test':<{width}}" + "".join(f"{c:>12}" for c in columns)]
    for test, by_setting in sorted(counts.items()):
        cells = [f"{sum(x)}/{len(x)}" if (x := by_setting[c]) else "-" for c in columns]
        failed = any(not all(x) for x in by_setting.values())
        lines.append(f"{test:<{width}}" + "".join(f"{cell:>12}" for cell in cells) + "  FAILED" * failed)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Tests that train or sample, on many seeds and settings.")
    parser.add_argument("--jobs", type=int, default=2, help="passes at once")
    parser.add_argument("--seeds", type=int, default=20, help="seeds as the machine is")
    parser.add_argument("--few", type=int, default=3, help="seeds under each setting")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="names of settings, with commas between them")
    given, pytest = parser.parse_known_args()
    settings = [name for name in given.settings.split(",") if name]
    if unknown := set(settings) - set(SETTINGS):
        parser.error(f"no setting {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    passes = [Pass(AS_IT_IS, seed) for seed in range(given.seeds)]
    passes += [Pass(name, seed) for name in settings for seed in range(given.few)]
    outcomes: dict[Pass, list[Outcome]] = {}
    faults = []
    started = time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(run, one, pytest): one for one in passes}
        for done in as_completed(running):
            one = running[done]
            outcomes[one], fault = done.result()
            faults += [fault] if fault else []
            failed = [x for x in outcomes[one] if x.verdict == FAILED]
            minutes = (time.monotonic() - started) / 60
            ended = f"{len(failed)} of {len(outcomes[one])} failed" if not fault else "could not run"
            print(f"[{minutes:5.1f} min] {one.setting}, seed {one.seed}: {ended}", flush=True)
            for x in failed:
                print(f"  {x.test}\n    " + "\n    ".join(x.message.splitlines()[-12:]), flush=True)
    print()
    print(table(outcomes, [AS_IT_IS, *settings]))
    bad = {x.test for found in outcomes.values() for x in found if x.verdict == FAILED}
    print(f"\n{len(passes)} passes, {len(bad)} tests failed in some, {len(faults)} passes could not run")
    print("".join(f"\n{fault}" for fault in faults), end="")
    return 1 if bad or faults or not any(outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

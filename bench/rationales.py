"""Verdicts of the reference-guided rationales that the authors of GenRM released, before any filtering and after it.

First part: how many rationales state a verdict, by a strict reading and by `stepmark.text.verdicts`; how many of those
verdicts agree with the solution's known correctness (the paper's filter, arXiv 2408.15240); how many rationales name
the reference; and how large a balanced training set would be. `DIR` must hold rationales.jsonl.gz.

Second part, the result of the format `genrm_rationales`: how many rationales are lost for which reason, how many lean
on the reference and could be rewritten, and how large a balanced set is with each treatment of these. `copied` is the
share of rationales with a sentence of their reference, of six words or more, that is neither in the question nor in the
solution.

Third part, the readings by hand in tests/readings, compared on whole texts found by their ids: how often the readers
and the leak detector find nothing where the hand reading does (missed), or find something else (wrong).

`--list KIND` (a name in `verdicts.Why`, such as contradictory) prints the ends of up to 20 rationales of that kind.
`--show N` prints N rewritten rationales before and after, evenly spread over the file.
The last line is one JSON object, also written to `--out`.

    python bench/rationales.py data/genrm_gsm8k
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepmark.formats.genrm_rationales import GenRMRationales
from stepmark.text.verdicts import Reader, Said, Why, leaks
from stepmark.types import Imported, Rationale

READERS = {
    "prefixed": Reader(questions=("Verification: Is the answer correct",), strict=True),  # the whole line, exactly
    "strict": Reader(strict=True),
    "robust": Reader(),
}
COPY = 6  # words
OUT = Path(__file__).parent / "results" / "rationales.json"
HAND = Path(__file__).parents[1] / "tests" / "readings"


@dataclass(frozen=True)
class Row:
    """One rationale."""

    id: tuple[int, int]  # question_id and sample_id
    correct: bool  # whether the solution is correct
    text: str
    reference: frozenset[str]  # sentences that only the reference has: normalised, of COPY words or more


@dataclass
class Counts:
    """Counts for the solutions of one kind, correct or incorrect."""

    rows: int = 0
    leaking: int = 0
    parsed: Counter[str] = field(default_factory=Counter)  # by reader
    matching: Counter[str] = field(default_factory=Counter)  # by reader: the verdict is right
    clean: Counter[str] = field(default_factory=Counter)  # by reader: right and without a leak
    why: Counter[str] = field(default_factory=Counter)  # the robust reader's reasons

    def add(self, row: Row) -> None:
        leak = leaks(row.text) is not None
        self.rows += 1
        self.leaking += leak
        for name, reader in READERS.items():
            reading = reader.read(row.text)
            right = reading.said is (Said.YES if row.correct else Said.NO)
            self.parsed[name] += reading.said is not Said.UNPARSED
            self.matching[name] += right
            self.clean[name] += right and not leak
            if name == "robust":
                self.why[reading.why.name.lower()] += 1

    def figures(self) -> dict[str, Any]:
        def shares(counts: Counter[str]) -> dict[str, float]:
            return {name: round(counts[name] / self.rows, 4) for name in READERS}

        return {
            "rows": self.rows,
            "parsed": shares(self.parsed),
            "matching": shares(self.matching),
            "kept": dict(self.matching),
            "kept_without_leak": dict(self.clean),
            "leaking": round(self.leaking / self.rows, 4),
            "why": dict(sorted(self.why.items())),
        }


def rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            seen = plain(row["question"] + " " + row["solution"])
            own = frozenset(
                s
                for sentence in re.split(r"(?<=[.!?])\s+|\n", row["reference_solution"])
                if len((s := plain(sentence)).split()) >= COPY and s not in seen
            )
            yield Row((row["question_id"], row["sample_id"]), row["correct"], row["rationale"], own)


def plain(text: str) -> str:
    """The text's words and numbers in lower case, without anything else."""
    return " ".join(re.findall(r"\w+", text.lower()))


def judged(path: Path) -> Iterator[tuple[tuple[int, int], bool, Rationale]]:
    """(id, whether the solution is correct, rationale) of each row as the format reads it, with leaks rewritten."""
    for imported in GenRMRationales().read(path):
        if not isinstance(imported, Imported):
            raise SystemExit(f"{imported.file}, line {imported.line}: {imported.reason}")
        for x in imported.rationales:
            question, _, sample = x.key.removeprefix("q").partition("#")
            for rationale in x.rationales:
                yield (int(question), int(sample)), x.grade.correct, rationale


def losses(path: Path, texts: dict[tuple[int, int], Row]) -> dict[str, Any]:
    """Counts by loss for the solutions of each kind, sizes of balanced sets, and shares that copy their reference."""
    counts = {True: Counter[str](), False: Counter[str]()}
    copied, totals = Counter[str](), Counter[str]()
    for id, correct, rationale in judged(path):
        counts[correct][rationale.lost or ("rewritten" if rationale.rewritten else "kept")] += 1
        if not rationale.kept:
            continue
        kind = "rewritten" if rationale.rewritten else "without_leak"
        totals[kind] += 1
        copied[kind] += any(s in plain(rationale.text) for s in texts[id].reference)
        if rationale.rewritten:
            copied["before_rewriting"] += any(s in plain(texts[id].text) for s in texts[id].reference)
    totals["before_rewriting"] = totals["rewritten"]
    figures: dict[str, Any] = {
        "correct" if kind else "incorrect": dict(sorted(counts[kind].items())) for kind in (True, False)
    }
    figures["balanced"] = {
        "drop": 2 * min(c["kept"] for c in counts.values()),
        "rewrite": 2 * min(c["kept"] + c["rewritten"] for c in counts.values()),
        "keep": 2 * min(c["kept"] + c["rewritten"] + c["leak"] for c in counts.values()),
    }
    figures["copied"] = {
        kind: round(copied[kind] / totals[kind], 4) if totals[kind] else 0.0 for kind in sorted(totals)
    }
    return figures


def show(path: Path, texts: dict[tuple[int, int], Row], n: int) -> None:
    """Prints `n` rewritten rationales, before and after."""
    rewritten = sorted((id, r.text) for id, _, r in judged(path) if r.rewritten)
    for id, text in rewritten[:: max(1, len(rewritten) // n)][:n]:
        print(f"{'=' * 80}\n{id}, {texts[id].correct}\n{texts[id].text}\n{'-' * 30}\n{text}")


def by_hand(texts: dict[tuple[int, int], Row]) -> dict[str, Any]:
    """For each file of readings by hand: how often each reader and the leak detector differ from them."""
    by_file: dict[str, Any] = {}
    for file in sorted(HAND.glob("verdicts_*.jsonl")):
        sample = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        named = [(texts[row["question_id"], row["sample_id"]].text, row) for row in sample]
        counts: dict[str, Any] = {"rows": len(named), "readings": dict(Counter(row["reading"] for row in sample))}
        for name, reader in READERS.items():
            readings = [(reader.read(text).said, row["reading"]) for text, row in named]
            counts[name] = {
                "missed": sum(s is Said.UNPARSED and r != Said.UNPARSED for s, r in readings),
                "wrong": sum(s not in (Said.UNPARSED, r) for s, r in readings),
            }
        leak_pairs = [
            (leaks(text) is not None, row["names_reference"]) for text, row in named if "names_reference" in row
        ]
        if leak_pairs:
            missed, wrong = (sum(pair == differ for pair in leak_pairs) for differ in ((False, True), (True, False)))
            counts["leaks"] = {"missed": missed, "wrong": wrong}
        by_file[file.stem] = counts
    return by_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder with rationales.jsonl.gz")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    parser.add_argument("--list", choices=[w.name.lower() for w in Why], help="print rationales of this kind instead")
    parser.add_argument("--show", type=int, metavar="N", help="print N rewritten rationales instead")
    args = parser.parse_args()
    path = args.dir / "rationales.jsonl.gz"
    if not path.is_file():
        parser.error(f"There is no {path}. Give the folder that holds rationales.jsonl.gz.")
    if args.list:
        chosen = [r.text for r in rows(path) if READERS["robust"].read(r.text).why is Why[args.list.upper()]]
        print(f"{len(chosen)} rationales: {args.list}")
        for text in chosen[:20]:
            print(f"{'-' * 60}\n{text[-300:]}")
        return
    counts = {True: Counts(), False: Counts()}
    texts = {}
    for row in rows(path):
        counts[row.correct].add(row)
        texts[row.id] = row
    if args.show:
        show(path, texts, args.show)
        return
    figures: dict[str, Any] = {"correct": counts[True].figures(), "incorrect": counts[False].figures()}
    figures["balanced"] = {
        kind: {name: 2 * min(figures[c][kind][name] for c in ("correct", "incorrect")) for name in READERS}
        for kind in ("kept", "kept_without_leak")
    }
    print(
        f"{'solutions':10} {'rows':>6} {'reader':8} {'verdict':>8} {'right':>7} {'kept':>6} {'no leak':>8} {'leaks':>7}"
    )
    for kind in ("correct", "incorrect"):
        f = figures[kind]
        for name in READERS:
            print(
                f"{kind:10} {f['rows']:6d} {name:8} {f['parsed'][name]:8.2%} {f['matching'][name]:7.2%} "
                f"{f['kept'][name]:6d} {f['kept_without_leak'][name]:8d} {f['leaking']:7.2%}"
            )
        print(f"{'':10} robust: {', '.join(f'{why} {n}' for why, n in f['why'].items())}")
    print(f"balanced sets, rows of both kinds together: {figures['balanced']}")
    figures["losses"] = losses(path, texts)
    for name, counted in figures["losses"].items():
        print(f"{name}: {counted}")
    figures["by_hand"] = by_hand(texts)
    for name, by_reader in figures["by_hand"].items():
        print(f"{name}: {by_reader}")
    line = json.dumps(figures)
    args.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()

"""Verdicts of the reference-guided rationales that the authors of GenRM released, before any filtering and after it.

How many rationales state a verdict, by a strict reading and by `stepmark.verdicts`; how many of those state what is
known of the solution (the paper's filter, arXiv 2408.15240); how many name the reference; and what a balanced training
set would hold. `DIR` needs rationales.jsonl.gz.

Then what the format `genrm_rationales` makes of them: how many are lost for which reason, how many lean on the
reference and could be rewritten, and what a balanced set holds with either way to treat those. `copied`: how many hold
a sentence of their reference, of six words or more, that is neither in the question nor in the solution.

Then the readings by hand in tests/readings, on whole texts found by their ids: how often the readers and the leak
detector
say less (missed) or something else (wrong).

`--list KIND` (a word of `verdicts.Why`, such as contradictory) prints the ends of up to 20 rationales of that kind;
`--show N` prints N rewritten ones as they were and as they are, evenly spread over the file.
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
    "prefixed": Reader(
        questions=("Verification: Is the answer correct",), strict=True
    ),  # the whole line, to the letter
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
    correct: bool  # what is known of the solution
    text: str
    reference: frozenset[str]  # its reference's sentences that are its own: normalised, of COPY words or more


@dataclass
class Counts:
    """What was counted for the solutions of one kind, correct or incorrect."""

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
        def shares(of: Counter[str]) -> dict[str, float]:
            return {name: round(of[name] / self.rows, 4) for name in READERS}

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
            given = plain(row["question"] + " " + row["solution"])
            own = frozenset(
                s
                for sentence in re.split(r"(?<=[.!?])\s+|\n", row["reference_solution"])
                if len((s := plain(sentence)).split()) >= COPY and s not in given
            )
            yield Row((row["question_id"], row["sample_id"]), row["correct"], row["rationale"], own)


def plain(text: str) -> str:
    """Words and numbers alone."""
    return " ".join(re.findall(r"\w+", text.lower()))


def judged(path: Path) -> Iterator[tuple[tuple[int, int], bool, Rationale]]:
    """What the format makes of each row: its id, what is known of the solution, the rationale. Leaks are rewritten."""
    for found in GenRMRationales().read(path):
        if not isinstance(found, Imported):
            raise SystemExit(f"{found.file}, line {found.line}: {found.reason}")
        for x in found.rationales:
            question, _, sample = x.key.removeprefix("q").partition("#")
            for rationale in x.rationales:
                yield (int(question), int(sample)), x.grade.correct, rationale


def losses(path: Path, texts: dict[tuple[int, int], Row]) -> dict[str, Any]:
    """Counts by loss for the solutions of each kind, sizes of balanced sets, and how many copy their reference."""
    counts = {True: Counter[str](), False: Counter[str]()}
    copied, of = Counter[str](), Counter[str]()
    for id, correct, rationale in judged(path):
        counts[correct][rationale.lost or ("rewritten" if rationale.rewritten else "kept")] += 1
        if not rationale.kept:
            continue
        kind = "rewritten" if rationale.rewritten else "without_leak"
        of[kind] += 1
        copied[kind] += any(s in plain(rationale.text) for s in texts[id].reference)
        if rationale.rewritten:
            copied["before_rewriting"] += any(s in plain(texts[id].text) for s in texts[id].reference)
    of["before_rewriting"] = of["rewritten"]
    figures: dict[str, Any] = {
        "correct" if kind else "incorrect": dict(sorted(counts[kind].items())) for kind in (True, False)
    }
    figures["balanced"] = {
        "drop": 2 * min(c["kept"] for c in counts.values()),
        "rewrite": 2 * min(c["kept"] + c["rewritten"] for c in counts.values()),
        "keep": 2 * min(c["kept"] + c["rewritten"] + c["leak"] for c in counts.values()),
    }
    figures["copied"] = {kind: round(copied[kind] / of[kind], 4) if of[kind] else 0.0 for kind in sorted(of)}
    return figures


def show(path: Path, texts: dict[tuple[int, int], Row], n: int) -> None:
    """Prints `n` rewritten rationales, before and after."""
    found = sorted((id, r.text) for id, _, r in judged(path) if r.rewritten)
    for id, text in found[:: max(1, len(found) // n)][:n]:
        print(f"{'=' * 80}\n{id}, {texts[id].correct}\n{texts[id].text}\n{'-' * 30}\n{text}")


def by_hand(texts: dict[tuple[int, int], Row]) -> dict[str, Any]:
    """For each file of readings by hand: how each reader, and the leak detector, differs from them."""
    found: dict[str, Any] = {}
    for file in sorted(HAND.glob("verdicts_*.jsonl")):
        sample = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        named = [(texts[row["question_id"], row["sample_id"]].text, row) for row in sample]
        of: dict[str, Any] = {"rows": len(named), "readings": dict(Counter(row["reading"] for row in sample))}
        for name, reader in READERS.items():
            said = [(reader.read(text).said, row["reading"]) for text, row in named]
            of[name] = {
                "missed": sum(s is Said.UNPARSED and r != Said.UNPARSED for s, r in said),
                "wrong": sum(s not in (Said.UNPARSED, r) for s, r in said),
            }
        judged = [(leaks(text) is not None, row["names_reference"]) for text, row in named if "names_reference" in row]
        if judged:
            missed, wrong = (sum(pair == differ for pair in judged) for differ in ((False, True), (True, False)))
            of["leaks"] = {"missed": missed, "wrong": wrong}
        found[file.stem] = of
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder with rationales.jsonl.gz")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    parser.add_argument("--list", choices=[w.name.lower() for w in Why], help="print rationales of this kind instead")
    parser.add_argument("--show", type=int, metavar="N", help="print N rewritten rationales instead")
    args = parser.parse_args()
    path = args.dir / "rationales.jsonl.gz"
    if not path.is_file():
        parser.error(f"no {path}: give the folder that holds rationales.jsonl.gz")
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
    for name, of in figures["by_hand"].items():
        print(f"{name}: {of}")
    line = json.dumps(figures)
    args.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()

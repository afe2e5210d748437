"""How many sums and comparisons in rationales are right: in the rationales a verifier learns from, and in its own.

Sums are all `a + b = c` of plain numbers (also -, *, x and /) that are not the end of a longer expression. Comparisons
are the last part of the tasks' rationales: after "Compare", words or numbers in pairs, each with "same" or "different",
and then one of these words for the whole. `verdicts` counts the rationales that say Yes after "same" and No after
"different". The script counts the rationales of a run's training part and those of the votes on its test problems, if
the run has stored them.

    python bench/workings.py runs/genrm_gsm8k runs/genrm_arithmetic

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from operator import add, mul, sub, truediv
from pathlib import Path

from measure import keep, runs
from stepmark.data.store import Records
from stepmark.text.verdicts import Said
from stepmark.types import LabelledSolution, Verification

LEARNED = "rationales/train.jsonl"  # path in a run
OUT = Path(__file__).parent / "results" / "workings.json"
NUMBER = r"\$?(\d+(?:\.\d+)?)"
SUM = re.compile(rf"(?<![\d.,+*/×x-])(?<![+*/×x-] ){NUMBER} ?([-+*/×x]) ?{NUMBER} ?= ?{NUMBER}(?![\d.]*\d)")
OPERATIONS = {"+": add, "-": sub, "*": mul, "x": mul, "×": mul, "/": truediv}
KINDS = ("sums", "alike", "not alike", "verdicts")
COMPARED = re.compile(r"(\w+) (\w+) (same|different)\b")
WHOLE = re.compile(r": (same|different)\.")


def sums(text: str) -> Iterator[bool]:
    """For each sum, whether it is right to a hundredth."""
    for a, sign, b, c in SUM.findall(text):
        if sign != "/" or float(b):
            yield abs(OPERATIONS[sign](float(a), float(b)) - float(c)) < 0.01


def comparisons(compared: str) -> Iterator[tuple[bool, bool]]:
    """For each pair: whether the two are the same, and whether the stated word is right."""
    for a, b, stated in COMPARED.findall(compared):
        yield a == b, (a == b) == (stated == "same")


@dataclass
class Tally:
    """A number of items and how many of them are right."""

    total: int = 0
    right: int = 0

    def add(self, right: bool) -> None:
        self.total += 1
        self.right += right

    def __str__(self) -> str:
        return f"{self.total:9,}" + (f" {100 * self.right / self.total:5.1f}%" if self.total else "")


def counted(texts: Iterable[tuple[str, bool]]) -> dict[str, Tally]:
    """Tallies by kind. `texts` are (rationale, whether its verdict is Yes)."""
    tallies = {kind: Tally() for kind in KINDS}
    for text, yes in texts:
        for right in sums(text):
            tallies["sums"].add(right)
        compared = text.partition("Compare ")[2]
        for same, right in comparisons(compared):
            tallies["alike" if same else "not alike"].add(right)
        if whole := WHOLE.search(compared):
            tallies["verdicts"].add(yes == (whole[1] == "same"))
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs, with seeds or without")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    figures = {}
    for run in runs(args.runs, LEARNED, "give runs with a verifier that learned to write rationales"):
        name = str(Path(*run.parts[-2:])) if run.name.startswith("seed-") else run.name
        learned = Records(run / LEARNED, LabelledSolution)
        rows = {"to learn from": counted((r.text, r.said == Said.YES) for s in learned for r in s.rationales)}
        for place in sorted((run / "scores").rglob("*.jsonl")):
            scored = Records(place, Verification)
            votes = counted((text, p > 0.5) for s in scored for text, p in zip(s.rationales, s.votes, strict=False))
            label = str(place.relative_to(run / "scores").with_suffix(""))
            rows |= {label: votes} if any(tally.total for tally in votes.values()) else {}
        figures[name] = {part: {kind: asdict(tally) for kind, tally in row.items()} for part, row in rows.items()}
        print(name)
        for part, row in rows.items():
            print(f"  {part:36} " + "   ".join(f"{tally} {kind}" for kind, tally in row.items()))
    keep("workings.py", {"runs": figures}, args.out)


if __name__ == "__main__":
    main()

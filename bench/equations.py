"""Do the sums in a verifier's rationales come out? Those that it could learn from, and its own.

Counted is every `a + b = c` of plain numbers (also -, *, x and /) that is not the tail of a longer expression, in the
rationales of a run's training part and in those of the votes on its test problems, as far as the run keeps them.

    stepmark run recipes/genrm_gsm8k.yaml sample.train.file=... sample.test.file=...
    python bench/equations.py runs/genrm_gsm8k

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from operator import add, mul, sub, truediv
from pathlib import Path

from measure import keep
from stepmark.store import Records
from stepmark.types import LabelledSolution, Verification

OUT = Path(__file__).parent / "results" / "equations.json"
NUMBER = r"\$?(\d+(?:\.\d+)?)"
EQUATION = re.compile(rf"(?<![\d.,+*/×x-])(?<![+*/×x-] ){NUMBER} ?([-+*/×x]) ?{NUMBER} ?= ?{NUMBER}(?![\d.]*\d)")
DOES = {"+": add, "-": sub, "*": mul, "x": mul, "×": mul, "/": truediv}


def counted(texts: Iterable[str]) -> dict[str, float]:
    """How many texts, how many equations in them, and the share of those that are right (to a hundredth)."""
    seen = equations = right = 0
    for text in texts:
        seen += 1
        for a, sign, b, c in EQUATION.findall(text):
            if sign == "/" and not float(b):
                continue
            equations += 1
            right += abs(DOES[sign](float(a), float(b)) - float(c)) < 0.01
    return {"texts": seen, "equations": equations, "right": right / equations if equations else float("nan")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of one seed")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    learned = args.run / "rationales" / "train.jsonl"
    if not learned.is_file():
        raise SystemExit(f"no rationales in {args.run}: give a run of one seed with a verifier that writes them.")
    found = {"to learn from": counted(r.text for s in Records(learned, LabelledSolution) for r in s.rationales)}
    for place in sorted((args.run / "scores").glob("*.jsonl")):
        votes = counted(text for s in Records(place, Verification) for text in s.rationales)
        if votes["texts"]:
            found[place.stem] = votes
    for name, row in found.items():
        print(f"{name:20} {row['texts']:9,} texts {row['equations']:9,} equations {100 * row['right']:6.1f}% right")
    keep("equations.py", found, args.out)


if __name__ == "__main__":
    main()

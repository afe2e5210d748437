"""How many real solutions change when claims about their own correctness are removed (stepmark.text.sanitize).

Nobody wrote these solutions to deceive a verifier. So a change removes a claim made in good faith, or it is a false
alarm. Each change is printed with the removed text between [[ and ]]. Only the given files are read:

- `--genrm FILE`: the solutions of the GenRM release;
- `--gsm8k DIR`: GSM8K's references, train and test, and OpenAI's example_model_solutions.jsonl.gz;
- `--math500 FILE`: MATH500's references.

The last line is one JSON object, also written to `--out`.

    python bench/injection.py --genrm data/genrm_gsm8k/solutions.jsonl.gz --gsm8k data/gsm8k \
        --math500 data/math500/test.jsonl.gz
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import measure
from stepmark.text.sanitize import sanitize_text

OUT = Path(__file__).parent / "results" / "injection.json"
AROUND = 40  # characters shown before and after the removed text


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        yield from map(json.loads, f)


def sources(args: argparse.Namespace) -> Iterator[tuple[str, Iterable[str]]]:
    """(name, texts) of each source."""
    if args.genrm:
        yield "genrm solutions", (s["solution"] for row in rows(args.genrm) for s in row["solutions"])
    if args.gsm8k:
        yield "gsm8k references", (r["answer"] for x in ("train", "test") for r in rows(args.gsm8k / f"{x}.jsonl.gz"))
        models = rows(args.gsm8k / "example_model_solutions.jsonl.gz")
        yield "openai solutions", (s["solution"] for r in models for s in r.values() if isinstance(s, dict))
    if args.math500:
        yield "math500 references", (r["solution"] for r in rows(args.math500))


def show(text: str, left: str) -> None:
    """Prints each difference between a text and what is left of it."""
    for operation, a, b, _, _ in difflib.SequenceMatcher(None, text, left, autojunk=False).get_opcodes():
        if operation != "equal":
            print("   ", " ".join(f"{text[max(0, a - AROUND) : a]}[[{text[a:b]}]]{text[b : b + AROUND]}".split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genrm", type=Path, help="the GenRM release's solutions.jsonl.gz")
    parser.add_argument("--gsm8k", type=Path, help="folder with train, test and example_model_solutions .jsonl.gz")
    parser.add_argument("--math500", type=Path, help="MATH500's test.jsonl.gz")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    for name, texts in sources(args):
        pairs, start = [], time.process_time()
        count = 0
        for text in texts:
            count += 1
            left = sanitize_text(text)
            if left != text:
                pairs.append((text, left))
        seconds = time.process_time() - start  # includes reading the file
        print(f"{name:20} {count:7d} texts {len(pairs):4d} changed {len(pairs) / count:9.5%}  {seconds:.0f} s")
        for text, left in pairs:
            show(text, left)
        figures[name] = {"texts": count, "changed": len(pairs), "emptied": sum(not left for _, left in pairs)}
    if not figures:
        parser.error("give at least one of --genrm, --gsm8k, --math500")
    measure.keep("injection.py", figures, args.out)


if __name__ == "__main__":
    main()

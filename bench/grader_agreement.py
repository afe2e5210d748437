"""How often the graders agree with published correctness flags, and where they do not.

There are three measurements. Each runs only if its files are given:

- `--gsm8k DIR`: the 5,276 flags of OpenAI's example_model_solutions.jsonl.gz, references from test.jsonl.gz;
- `--genrm FILE` (needs `--gsm8k`): the flags of the GenRM release, references from train.jsonl.gz by question;
- `--math500 FILE`: every reference solution's own boxed answer against the reference answer.

`--list` prints each disagreement before the tables. The last line is one JSON object with all figures.

    python bench/grader_agreement.py --gsm8k data/gsm8k --genrm data/genrm_gsm8k/solutions.jsonl.gz \
        --math500 data/math500/test.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmark.graders.numeric import READINGS, Numeric
from stepmark.graders.symbolic import Symbolic
from stepmark.text import answers
from stepmark.types import Grade, Problem, Verdict

CUE = re.compile(r"answer is:?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One solution with its published flag."""

    name: str  # question and sample
    problem: Problem
    text: str
    flag: bool


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        yield from map(json.loads, f)


def references(path: Path) -> dict[str, str]:
    """Question -> the number after ####."""
    return {r["question"].strip(): r["answer"].rsplit("####", 1)[1].strip() for r in rows(path)}


def openai(folder: Path) -> Iterator[Case]:
    known = references(folder / "test.jsonl.gz")
    for i, row in enumerate(rows(folder / "example_model_solutions.jsonl.gz")):
        problem = Problem(str(i), row["question"], known[row["question"].strip()], "gsm8k")
        for model, s in row.items():
            if isinstance(s, dict):
                yield Case(f"{i} {model}", problem, s["solution"], s["is_correct"])


def genrm(folder: Path, path: Path) -> Iterator[Case]:
    known = references(folder / "train.jsonl.gz")
    for row in rows(path):
        number = row["question_id"]
        problem = Problem(str(number), row["question"], known[row["question"].strip()], "gsm8k")
        for s in row["solutions"]:
            yield Case(f"{number}/{s['sample_id']}", problem, s["solution"], s["correct"])


def cause(case: Case, grade: Grade) -> str:
    """Why flag and grade differ, as far as a rule can tell. It names a row of the table; no figure depends on it."""
    if grade.verdict is Verdict.UNGRADABLE:
        return "ungradable: the answer is more than one number"
    stated = answers.extract(case.text) or ""
    reference = answers.read_number(case.problem.answer)
    first = answers.token_after_cue(case.text)
    cues = list(CUE.finditer(case.text))
    value = answers.read_number(stated)
    if re.search(r"\d ?, \d{3}|\d,\d\d,\d{3}", stated):
        return "thousands in another style"
    if case.flag:
        if re.search(r"\d\s*/\s*\d", stated) and "=" not in stated:
            return "a fraction; the flag is for its first digits"
        if value is not None and reference is not None and value == -reference:
            return "a negative amount; the flag drops the sign"
        if "=" in stated and len(cues) < 2:
            return "an equation; the flag is for its left side"
        if value is not None and value.denominator > 1 and len(cues) < 2:
            return "decimals; the flag is for the whole part"
        return "an earlier statement, or several values"
    if stated.casefold() in answers.WORDS:
        return "a number in words"
    if len(cues) > 1 and (first is None or answers.parse_number(first) != reference):
        return "an earlier statement; the flag is for that one"
    if re.search(r"\d\s*/\s*\d|frac", stated) and "=" not in stated:
        return "a fraction equal to the reference"
    sentence = case.text[cues[0].end() :].split("\n")[0] if cues else ""
    if "=" in sentence:
        return "an equation; the flag is for its left side"
    return "no plain 'the answer is N'"


def excerpt(text: str, width: int = 100) -> str:
    """The end of a text, on one line."""
    return " ".join(text[-width:].split())


def agreement(name: str, cases: list[Case], grader: Numeric, show: bool) -> dict[str, Any]:
    start = time.perf_counter()
    grades = [grader.grade(c.text, c.problem) for c in cases]
    seconds = time.perf_counter() - start
    differing = [(c, g) for c, g in zip(cases, grades, strict=True) if g.correct != c.flag]
    causes = Counter((c.flag, cause(c, g)) for c, g in differing)
    share = 1 - len(differing) / len(cases)
    print(f"{name}, reading={grader.reading}: {len(cases)} flags, {len(differing)} differ, {share:.4%} agree")
    for (flag, why), n in causes.most_common():
        print(f"  {n:4d}  flag {'correct  ' if flag else 'incorrect'}  {why}")
    if show:
        for c, g in differing:
            print(f"    {c.name} | {c.problem.answer} | {c.flag} | {g.answer} | {cause(c, g)} | {excerpt(c.text)}")
    return {
        "flags": len(cases),
        "differ": len(differing),
        "agreement": share,
        "ungradable": sum(g.verdict == "ungradable" for g in grades),
        "grades_per_second": round(len(cases) / seconds),
    }


def math500(path: Path) -> dict[str, Any]:
    grader, verdicts = Symbolic(), Counter[str]()
    for row in rows(path):
        grade = grader.grade(row["solution"], Problem(row["unique_id"], row["problem"], row["answer"], "math500"))
        verdicts[grade.verdict.value] += 1
        if not grade.correct:
            print(f"  {row['unique_id']}: {row['answer']!r}: {grade.reason}")
    print(f"math500, reference solutions against their own answers: {dict(verdicts)}")
    return dict(verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="folder with train, test and example_model_solutions .jsonl.gz")
    parser.add_argument("--genrm", type=Path, help="the GenRM release's solutions.jsonl.gz")
    parser.add_argument("--math500", type=Path, help="MATH500's test.jsonl.gz")
    parser.add_argument("--list", action="store_true", help="print every disagreement")
    args = parser.parse_args()
    if args.genrm and not args.gsm8k:
        parser.error("--genrm reads its references from --gsm8k DIR: give both options")
    figures: dict[str, Any] = {}
    for reading in READINGS:
        grader = Numeric(reading=reading)
        if args.gsm8k:
            figures[f"gsm8k:{reading}"] = agreement("gsm8k", list(openai(args.gsm8k)), grader, args.list)
        if args.genrm:
            figures[f"genrm:{reading}"] = agreement("genrm", list(genrm(args.gsm8k, args.genrm)), grader, args.list)
    if args.math500:
        figures["math500"] = math500(args.math500)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

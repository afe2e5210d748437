r"""`stepmark.safe_grade` and Math-Verify on the same hostile and ordinary answers: verdicts, hangs, seconds.

Half of the cases are ordinary: an answer and a reference that are known to be equal or not. Half are hostile: powers of
powers, factorials, deep nesting, unbalanced braces, long texts, NUL characters, lone surrogates, random strings of
mathematical signs. Math-Verify runs in a process of its own, in its main thread, where its own time limit works. A case
without a result after `--patience` seconds is a hang; its process is then killed and started again. Without a place
where Math-Verify is installed, only safe_grade is measured. The last line is one JSON object with all figures.

    pip install --no-deps --target /tmp/peer math-verify latex2sympy2-extended antlr4-python3-runtime==4.13.2
    python bench/safe_grade.py --cases 10000 --peer /tmp/peer
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import stepmark
from stepmark.graders import symbolic

PEER = r"""
import json, sys, threading
from math_verify import parse, verify
out, sys.stdout = sys.stdout, sys.stderr
print("ready", file=out, flush=True)
in_thread = sys.argv[1] == "thread"
read = {"parsing_timeout": None} if in_thread else {}
compare = {"timeout_seconds": None} if in_thread else {}
def work():
    for line in sys.stdin:
        text, reference = json.loads(line)
        try:
            gold = parse("\\boxed{" + reference + "}", **read)
            said = "correct" if verify(gold, parse(text, **read), **compare) else "incorrect"
        except Exception as e:
            said = "error"
        print(said, file=out, flush=True)
if in_thread:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""
PIECES = (
    *("9", "7", "x", "y", "n", "!", "^", "**", "_", "{", "}", "(", ")", "[", "]", "|", "+", "-", "*", "/", "=", "<"),
    *(",", ".", "%", "$", "&", "#", "\\", "\\frac", "\\sqrt", "\\sum", "\\int", "\\binom", "\\text{", "\\boxed{"),
    *("\\begin{pmatrix}", "\\left(", "\\right)", "\\infty", "\\cdot", "^{\\circ}", "\0", "\ud800", "\u0663", "½"),
    *("²", "𝟗", "\n", " ", "e", "pi", "sin", "lambda", "__import__('os')", "9" * 40, "1e999", "0.", "\u202e"),
)


@dataclass(frozen=True)
class Case:
    """An answer to grade."""

    kind: str
    text: str
    reference: str
    equal: bool | None = None  # whether they are equal; None where nobody knows or it does not matter


def hostile(random: random.Random) -> Case:
    """A case that is made to hang, crash or confuse."""
    big, deep = random.randint(5, 10**6), random.randint(20, 400)
    bombs: dict[str, Callable[[], str]] = {
        "powers": lambda: random.choice(
            (f"{big}**9**9**9", f"9^{{9^{{9^{{{big}}}}}}}", f"({big}^{{{big}}})^{{{big}}}")
        ),
        "factorials": lambda: random.choice(
            (f"{big}!", f"{big}!!!!", f"\\binom{{{big}}}{{{big // 2}}}", "(((9!)!)!)!")
        ),
        "nesting": lambda: random.choice(
            (
                "(" * deep + "x" + ")" * deep,
                "\\frac{1}{" * deep + "x" + "}" * deep,
                "\\sqrt{" * deep + f"{big}" + "}" * deep,
            )
        ),
        "unbalanced": lambda: random.choice(
            ("{" * deep, "}" * deep, "(" * deep + "1", "\\frac{" * deep, "\\left(" * deep)
        ),
        "expansion": lambda: f"(x+y+z+w+{big})^{{{random.randint(20, 99)}}}",
        "digits": lambda: "9" * random.randint(500, 5000) + random.choice(("", ".5", "/7", "e99999", "%")),
        "long": lambda: random.choice(("1+", "x", "{", " ", "9,")) * random.randint(1000, 20000),
        "sums": lambda: f"\\sum_{{k=1}}^{{{big}}} \\frac{{1}}{{k^{random.randint(2, 9)}}}",
        "signs": lambda: "".join(random.choices(PIECES, k=random.randint(1, 40))),
    }
    kind = random.choice(list(bombs))
    answer = bombs[kind]()
    boxed = random.choice((f"\\boxed{{{answer}}}", f"So.\nThe answer is {answer}.", answer))
    reference = random.choice(("7", "x+1", f"{big}", bombs[kind]()))
    return Case(kind, boxed, reference)


def ordinary(random: random.Random) -> Case:
    """A case with a known verdict."""
    a, b, c = (random.randint(2, 99) for _ in range(3))
    forms = (
        (f"{a * b}", f"{a}\\cdot {b}"),
        (f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a * c}}}{{{b * c}}}"),
        (f"{a}x+{b}", f"{b}+{a}x"),
        (f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}"),
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
        (f"({a}, {b})", f"\\left({a},{b}\\right)"),
        (f"{a}.50", f"{2 * a + 1}/2"),
    )
    answer, reference = random.choice(forms)
    equal = random.random() < 0.5
    if not equal:
        reference = f"({a}, {b + 1})" if answer.startswith("(") and "," in answer else f"{reference}+{c}"
    return Case("ordinary", f"So it is done.\nThe answer is \\boxed{{{answer}}}.", reference, equal)


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` cases, every second one hostile."""
    source = random.Random(seed)
    for i in range(count):
        yield hostile(source) if i % 2 else ordinary(source)


class Peer:
    """Math-Verify in a process of its own."""

    def __init__(self, place: str, python: str, patience: float, where: str) -> None:
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [place, *sys.path]))}
        self.python, self.patience, self.where = python, patience, where
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Whether it can be had."""
        self.process = subprocess.Popen(
            [self.python, "-c", PEER, self.where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            bufsize=0,
        )
        return self._line(120) == "ready"

    def grade(self, case: Case) -> str:
        """ "correct", "incorrect", "error", "hang" or "died"."""
        if self.process is None and not self.start():
            raise SystemExit("Math-Verify no longer starts")
        assert self.process is not None and self.process.stdin is not None
        data = json.dumps([case.text, case.reference]).encode() + b"\n"
        try:
            while data:
                data = data[self.process.stdin.write(data) or 0 :]
            said = self._line(self.patience)
        except BrokenPipeError:
            said = "died"
        if said in ("hang", "died"):
            self.close()
        return said

    def _line(self, seconds: float) -> str:
        assert self.process is not None and self.process.stdout is not None
        stream: IO[bytes] = self.process.stdout
        if not select.select([stream], [], [], seconds)[0]:
            return "hang"
        return stream.readline().decode().strip() or "died"

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def ours(case: Case, timeout: float) -> tuple[str, float, str]:
    start = time.perf_counter()
    grade = stepmark.safe_grade(case.text, case.reference, timeout=timeout)
    return grade.verdict.value, time.perf_counter() - start, grade.reason


def summary(name: str, listed: list[Case], said: list[str], seconds: list[float], total: float) -> dict[str, object]:
    """The figures of one grader, of which a line is printed."""
    known = [(case.equal, verdict) for case, verdict in zip(listed, said, strict=True) if case.equal is not None]
    wrong = sum(verdict in ("correct", "incorrect") and (verdict == "correct") != equal for equal, verdict in known)
    figures = {
        "verdicts": dict(Counter(said)),
        "wrong_on_ordinary": wrong,
        "undecided_on_ordinary": sum(verdict not in ("correct", "incorrect") for _, verdict in known),
        "hangs": said.count("hang"),
        "seconds": round(total, 1),
        "slowest": round(max(seconds), 2),
        "median_ms": round(sorted(seconds)[len(seconds) // 2] * 1000, 2),
    }
    print(
        f"{name:<12} {figures['hangs']:>6} {said.count('died') + said.count('error'):>7} {wrong:>7} "
        f"{figures['undecided_on_ordinary']:>10} {total:>9.1f} {figures['slowest']:>9.2f} {figures['median_ms']:>10.2f}"
    )
    return figures


def main() -> None:
    """Runs the comparison and prints a table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=5.0, help="time limit of a comparison, in seconds")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds after which the peer counts as hanging")
    parser.add_argument("--threads", type=int, default=2, help="threads that call safe_grade at the same time")
    parser.add_argument("--peer", default="", help="directory where Math-Verify is installed")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peer")
    parser.add_argument("--peer-thread", action="store_true", help="call the peer outside the main thread")
    options = parser.parse_args()

    listed = list(cases(options.cases, options.seed))
    print(f"{len(listed)} cases, {sum(c.equal is None for c in listed)} of them hostile\n")
    print(
        f"{'':<12} {'hangs':>6} {'crashes':>7} {'wrong':>7} {'undecided':>10} {'seconds':>9} {'slowest s':>9} "
        f"{'median ms':>10}"
    )
    start = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        results = list(pool.map(lambda case: ours(case, options.timeout), listed))
    total = time.perf_counter() - start
    said = [verdict for verdict, _, _ in results]
    figures: dict[str, object] = {"cases": len(listed), "threads": options.threads, "timeout": options.timeout}
    figures["safe_grade"] = summary("safe_grade", listed, said, [s for _, s, _ in results], total)
    figures["timeouts"] = sum("no result within" in reason for _, _, reason in results)
    figures["handles"] = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else None
    figures["workers"] = len(symbolic._free)

    peer = Peer(options.peer, options.python, options.patience, "thread" if options.peer_thread else "main")
    if peer.start():
        theirs, seconds = list[str](), list[float]()
        for case in listed:
            start = time.perf_counter()
            theirs.append(peer.grade(case))
            seconds.append(time.perf_counter() - start)
        peer.close()
        figures["peer_thread"] = options.peer_thread
        figures["math_verify"] = summary("math_verify", listed, theirs, seconds, sum(seconds))
        pairs = Counter(zip(said, theirs, strict=True))
        figures["pairs"] = {f"{a}/{b}": count for (a, b), count in sorted(pairs.items())}
        print("\nsafe_grade / math_verify")
        for (a, b), count in sorted(pairs.items()):
            print(f"  {a:<11} {b:<11} {count:>6}")
    else:
        peer.close()
        figures["math_verify"] = None
        print(f"\nMath-Verify can't be imported by {options.python}, so it is left out: give --peer DIR (see the top).")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

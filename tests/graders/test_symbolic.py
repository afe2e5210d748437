from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from stepmark.errors import ConfigError
from stepmark.graders import symbolic
from stepmark.graders.symbolic import Symbolic
from stepmark.types import Grade, Problem, Verdict

HANGS = "9^{9^{9^{9}}} + x"  # sympy tries to compute it


def grade(answer: str, reference: str, timeout: float = 20.0) -> Grade:
    return Symbolic(timeout=timeout).grade(rf"So it is $\boxed{{{answer}}}$.", Problem("p", "?", reference, "math500"))


def grade_pair(pair: tuple[str, str]) -> Verdict:
    return grade(*pair).verdict


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
        ("x^2+x", "x(x+1)"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("-2,1", "1,-2"),
        ("[-2,7]", r"x \in [-2,7]"),
        (r"50\%", "0.5"),
        ("C", r"\text{(C)}"),
        ("east", r"\text{East}"),
    ],
)
def test_equal_expressions(answer: str, reference: str) -> None:
    result = grade(answer, reference)
    assert result.verdict is Verdict.CORRECT, result.reason


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "1"),
        ("1", "12"),
        ("0.33", r"\frac{1}{3}"),
        ("x^2+x+1", "x(x+1)"),
        ("(3,4)", "(4,3)"),
        (r"\text{west}", r"\text{east}"),
        ("unknown", "5"),
    ],
)
def test_different_expressions(answer: str, reference: str) -> None:
    assert grade(answer, reference).verdict is Verdict.INCORRECT


def test_what_cannot_be_checked_is_not_wrong() -> None:
    assert grade("(3,", "(3,4)").verdict is Verdict.UNGRADABLE
    assert grade("5", " ").verdict is Verdict.UNGRADABLE
    assert grade("x+" * 600 + "x", "x").verdict is Verdict.UNGRADABLE
    assert Symbolic().grade("I give up", Problem("p", "?", "5", "math500")).verdict is Verdict.INCORRECT


def test_a_hanging_comparison_is_killed_and_the_next_one_works() -> None:
    grade("a+b", "b+a")
    before = {w.process.pid for w in symbolic._free}
    start = time.monotonic()
    hung = grade(HANGS, "y", timeout=1.0)
    assert hung.verdict is Verdict.UNGRADABLE and "within 1 s" in hung.reason
    assert time.monotonic() - start < 30  # not a timing: without the kill it would never come back
    assert grade("a+c", "c+a").verdict is Verdict.CORRECT
    assert {w.process.pid for w in symbolic._free} != before


def test_a_dead_worker_is_replaced() -> None:
    grade("a+d", "d+a")
    for worker in symbolic._free:
        os.kill(worker.process.pid, signal.SIGKILL)
    assert grade("a+e", "e+a").verdict is Verdict.CORRECT


def test_a_worker_is_reused() -> None:
    grade("a+f", "f+a")
    before = {w.process.pid for w in symbolic._free}
    grade("a+g", "g+a")
    assert {w.process.pid for w in symbolic._free} == before


def test_too_little_memory_is_ungradable() -> None:
    hungry = Symbolic(timeout=60, memory_mb=128).grade(r"\boxed{2^{2^{30}}}", Problem("p", "?", "7", "math500"))
    assert hungry.verdict is Verdict.UNGRADABLE and "128 MiB" in hungry.reason
    assert grade("a+h", "h+a").verdict is Verdict.CORRECT


def test_threads_grade_at_the_same_time() -> None:
    pairs = [(f"{k}x+y", f"y+{k}x") for k in range(2, 10)] + [(f"{k}x+y", f"y-{k}x") for k in range(2, 10)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(grade_pair, pairs))
    assert verdicts == [Verdict.CORRECT] * 8 + [Verdict.INCORRECT] * 8


def test_it_works_inside_a_pool_worker() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        graded = pool.submit(Symbolic().grade, r"\boxed{y+x}", Problem("p", "?", "x+y", "math500")).result(timeout=120)
    assert graded.verdict is Verdict.CORRECT


def test_it_works_in_a_daemon_and_after_a_fork() -> None:
    """In a separate process, because this one has threads and must not be forked."""
    code = f"""
import multiprocessing, os
from stepmark.graders.symbolic import Symbolic
from stepmark.types import Problem
def check(_): return Symbolic().grade(chr(92) + "boxed{{y+x}}", Problem("p", "?", "x+y", "m")).verdict.value
check(0)
from stepmark.graders import symbolic
symbolic._compare.cache_clear()
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(*pool.map(check, range(2)), check(0), {os.getpid()!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[:3] == ["correct"] * 3


def test_no_worker_outlives_its_process() -> None:
    code = """
from stepmark.graders import symbolic
from stepmark.types import Problem
symbolic.Symbolic().grade(chr(92) + "boxed{y+x}", Problem("p", "?", "x+y", "m"))
print(symbolic._free[0].process.pid, flush=True)
import os; os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {pid} is still there")


def test_importing_it_loads_no_sympy() -> None:
    code = "import sys, stepmark.graders.symbolic; print('sympy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_bad_setting_is_named() -> None:
    with pytest.raises(ConfigError) as e:
        Symbolic(timeout=0, memory_mb=1)
    assert len(e.value.faults) == 2

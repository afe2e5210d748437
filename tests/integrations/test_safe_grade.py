"""safe_grade on real worker processes: hostile texts, threads, asyncio, forks and dying workers."""

import asyncio
import importlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stepmark
from stepmark.errors import ConfigError, UnknownName
from stepmark.graders import symbolic
from stepmark.types import Verdict

BENCH = Path(__file__).parents[2] / "bench"
BOMBS = ("9**9**9**9", "9^{9^{9^{9}}}", "\\binom{866960}{433480}", "((9!)!)!", "(260302^{260302})^{260302}")


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module("safe_grade")
    finally:
        sys.path.remove(str(BENCH))


def pids():
    return {w.process.pid for w in symbolic._free}


def test_it_is_true_only_for_a_correct_answer():
    right = stepmark.safe_grade("So it is \\boxed{x(x+1)}.", "x^2+x")
    assert right and right.correct and right.verdict is Verdict.CORRECT and right.answer == "x(x+1)"
    wrong = stepmark.safe_grade("So it is \\boxed{x(x-1)}.", "x^2+x")
    assert not wrong and wrong.verdict is Verdict.INCORRECT
    unknown = stepmark.safe_grade("So it is \\boxed{(3,}.", "(3,4)")
    assert not unknown and unknown.verdict is Verdict.UNGRADABLE and unknown.reason
    assert pickle.loads(pickle.dumps(right)) == right  # noqa: S301


def test_references_may_be_numbers_and_graders_are_chosen_by_name():
    assert stepmark.safe_grade("The answer is 0.5.", 0.5) and stepmark.safe_grade("#### 1,000", 1000)
    assert stepmark.safe_grade("The answer is $72.", 72.0, grader="numeric")
    assert stepmark.safe_grade("The answer is Paris.", "paris", grader="exact")
    assert stepmark.safe_grade("The answer is 25%.", "0.25") and not stepmark.safe_grade("25", "0.25")


def test_an_attempt_that_ran_out_of_tokens_is_ungradable():
    assert stepmark.safe_grade("The answer is 7", 7, ended=False).verdict is Verdict.UNGRADABLE


@pytest.mark.parametrize("reference", [None, True, float("nan"), [7], "", "  ", b"7"])
def test_a_reference_that_is_none_is_ungradable(reference):
    assert stepmark.safe_grade("The answer is 7.", reference).verdict is Verdict.UNGRADABLE


def test_a_reference_that_is_too_long_is_ungradable():
    for reference in (10**5000, "7" * 20_000):
        assert stepmark.safe_grade("The answer is 7.", reference).verdict is Verdict.UNGRADABLE


@pytest.mark.parametrize("text", [None, 7, b"7", ["7"], "\\boxed{7}" + " " * 1_000_000], ids=range(5))
def test_a_text_that_is_none_is_ungradable(text):
    assert stepmark.safe_grade(text, "7").verdict is Verdict.UNGRADABLE


def test_wrong_settings_are_refused():
    with pytest.raises(UnknownName, match="numeric"):
        stepmark.safe_grade("7", "7", grader="numerical")
    with pytest.raises(ConfigError, match="timeout"):
        stepmark.safe_grade("7", "7", timeout=0)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_at_its_time_limit_and_the_next_one_is_graded(bomb):
    stopped = stepmark.safe_grade(f"\\boxed{{{bomb}}}", "x+1", timeout=0.3)
    assert stopped.verdict is not Verdict.CORRECT
    assert stepmark.safe_grade("\\boxed{b+a}", "a+b")


def test_thousands_of_hostile_texts_leave_nothing_behind(bench):
    """Bombs that need their whole time limit are above; these come in thousands."""
    source = random.Random(1)
    hostile = [bench.hostile(source) for _ in range(3000)]
    quick = [case for case in hostile if case.kind not in ("powers", "factorials", "sums")]
    said = Counter()
    with ThreadPoolExecutor(4) as pool:
        stepmark.safe_grade("\\boxed{b+a+1}", "a+b+1")
        handles, before = len(os.listdir("/dev/fd")), len(pids())
        for grade in pool.map(lambda case: stepmark.safe_grade(case.text, case.reference), quick):
            said[grade.verdict] += 1
    assert said.total() == len(quick) > 1500 and said[Verdict.UNGRADABLE] > 300 and said[Verdict.INCORRECT] > 300
    assert len(pids()) <= symbolic._WORKERS
    assert len(os.listdir("/dev/fd")) - handles <= len(pids()) - before  # a pipe for each new worker


def test_ordinary_answers_are_graded_right(bench):
    source = random.Random(2)
    for case in (bench.ordinary(source) for _ in range(150)):
        assert bool(stepmark.safe_grade(case.text, case.reference)) is case.equal, case


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=300), st.text(max_size=60))
def test_no_text_raises(text, reference):
    for name in ("numeric", "exact"):
        stepmark.safe_grade(text, reference, grader=name)
    stepmark.safe_grade(f"\\boxed{{{text}}}", reference)


def test_lone_surrogates_cost_no_worker():
    stepmark.safe_grade("\\boxed{b+a+2}", "a+b+2")
    before = pids()
    for i in range(5):
        grade = stepmark.safe_grade(f"\\boxed{{x^{i}+\\ud\ud800(\udfff+1}}", "x+1")
        assert grade.verdict is Verdict.UNGRADABLE and "died" not in grade.reason
        assert stepmark.safe_grade(f"\\boxed{{x\0+{i}}}", "x+1").verdict is not Verdict.CORRECT
    assert pids() == before


def test_dead_workers_are_replaced_while_threads_grade():
    def grade(i):
        if i % 10 == 0:
            for pid in pids():
                os.kill(pid, signal.SIGKILL)
        return stepmark.safe_grade(f"\\boxed{{{i}y+x}}", f"x+{i}y")

    with ThreadPoolExecutor(3) as pool:
        grades = list(pool.map(grade, range(2, 42)))
    # One that is killed twice in the middle of one comparison is ungradable; that is all that may happen.
    assert all(g or g.verdict is Verdict.UNGRADABLE for g in grades) and sum(map(bool, grades)) > 30


def test_asyncio():
    async def grade():
        pairs = [(f"\\boxed{{{k}z+y}}", f"y+{k}z") for k in range(2, 22)]
        return await asyncio.gather(*(asyncio.to_thread(stepmark.safe_grade, *pair) for pair in pairs))

    assert all(asyncio.run(grade()))
    assert asyncio.run(_alone())


async def _alone():
    return stepmark.safe_grade("\\boxed{w+z}", "z+w")


def test_worker_processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert all(pool.map(stepmark.safe_grade, ["\\boxed{b+a}", "\\boxed{d+c}"], ["a+b", "c+d"]))


FORKED = """
import os, threading, time
import stepmark
from stepmark.graders import symbolic
stepmark.safe_grade(r"\\boxed{y+x}", "x+y")
busy = threading.Thread(target=stepmark.safe_grade, args=(r"\\boxed{((9!)!)!+x}", "y"), kwargs={"timeout": 4.0})
busy.start()
while symbolic._free: time.sleep(0.01)
def sockets():
    folder = "/proc/self/fd/"
    return {os.readlink(folder + fd) for fd in os.listdir(folder) if os.path.exists(folder + fd)}
theirs = {os.readlink(f"/proc/self/fd/{w.connection.fileno()}") for w in symbolic._all}
pid = os.fork()
if pid == 0:
    leaked = theirs & sockets()
    good = stepmark.safe_grade(r"\\boxed{b+a}", "a+b")
    os._exit(10 * bool(leaked) + (0 if good else 1))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
busy.join()
print(bool(stepmark.safe_grade(r"\\boxed{c+a}", "a+c")))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to look at handles")
def test_a_fork_while_another_thread_grades():
    """The child has its own workers and holds no handle of its parent's, also not of the one that is at work."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0", "True"]


def test_no_process_is_left_behind():
    code = """
import os, threading, stepmark
from stepmark.graders import symbolic
stepmark.safe_grade(r"\\boxed{y+x}", "x+y")
print(*(w.process.pid for w in symbolic._all), flush=True)
threading.Thread(target=stepmark.safe_grade, args=(r"\\boxed{((9!)!)!+x}", "y"), kwargs={"timeout": 1.0}).start()
os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    [pid] = map(int, done.stdout.split())
    for _ in range(400):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {pid} is still there")


def test_it_is_light():
    code = (
        "import sys, stepmark; assert stepmark.safe_grade('The answer is 7.', '7')\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

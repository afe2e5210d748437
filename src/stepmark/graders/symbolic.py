r"""A grader for mathematics: correct if the stated answer and the reference are equal expressions. "\frac{1}{2}" equals
0.5, and "x(x+1)" equals "x^2+x".

Three tiers, cheap ones first:

1. equal after `answers.normalise` (which removes formatting): CORRECT;
2. both are plain numbers or letters of choices, or one of them is plain words: compared here, without algebra;
3. sympy, in a worker process, on both sides as text/expressions.py reads them: whole or not at all.

Exact values are compared exactly, however little they differ. A decimal has a relative tolerance of 1e-6 only against a
value that no finite decimal can write, such as 1/3 or \sqrt{2} (text/algebra.py). There is no absolute tolerance.

sympy can hang or use up all memory on a few characters. So tier 3 runs in worker processes that this module starts on
first use, reuses, and kills when a job takes too long. Calls may come from any thread, from pool workers (also daemonic
ones, because the workers are subprocesses, not multiprocessing children) and from forks. A worker also sets an alarm
for itself, so that it ends even if its parent was killed.

A text without an answer is INCORRECT. UNGRADABLE, with the reason, means that the check could not be made: a time-out,
a crash, too little memory, an expression on either side that can't be read whole, or two answers that can be shown
neither equal nor different: a base on one side only, other units, a ratio against a number. A wrong label costs more
than a lost one.

    python bench/grader_agreement.py --math500 data/math500/test.jsonl.gz
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe

from stepmark.errors import ConfigError
from stepmark.text import algebra, answers, choices, expressions, shares
from stepmark.types import Grade, Problem, Verdict

_DIED = "the worker process died"
_START_SECONDS = 120.0  # a new worker imports sympy, which is slow on a busy machine
_WORKERS = max(1, min(4, os.cpu_count() or 1))  # largest number per process; they are started when threads need them


@dataclass(frozen=True, slots=True)
class Symbolic:
    """Grades by equality of mathematical expressions. Raises ConfigError for limits that are too low."""

    timeout: float = 5.0  # seconds for one comparison, after which its worker is killed
    memory_mb: int = 2048  # address space of a worker, in MiB, where the system can limit it

    def __post_init__(self) -> None:
        faults = []
        if not self.timeout > 0:
            faults.append(f"timeout must be a number of seconds above 0, got {self.timeout}.")
        if self.memory_mb < 128:
            faults.append(f"memory_mb must be at least 128, most of it for sympy itself, got {self.memory_mb}.")
        if faults:
            raise ConfigError(faults)

    def grade(self, text: str, problem: Problem) -> Grade:
        """Never raises an error for bad text. Raises ConfigError if sympy is needed but not installed."""
        reference = problem.answer.strip()
        if not reference:
            return Grade(Verdict.UNGRADABLE, "the problem has no reference answer")
        stated = answers.extract(text)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no answer found")
        answer = answers.normalise(stated)
        chosen = choices.compare(stated, reference)
        verdict = chosen.verdict or _compared_here(chosen.stated, chosen.reference, problem.question)
        equal = "equal to the reference"
        if verdict is None:
            try:
                same = _compare(chosen.reference, chosen.stated, self.timeout, self.memory_mb)
            except _Undecided as e:
                return Grade(Verdict.UNGRADABLE, str(e), answer)
            verdict, equal = Verdict.CORRECT if same else Verdict.INCORRECT, "equal to the reference by algebra"
        if verdict is Verdict.CORRECT:
            return Grade(verdict, equal, answer)
        both = f"{answers.excerpt(stated)} is not {answers.excerpt(reference)}"
        if verdict is Verdict.UNGRADABLE:
            both = f"can't tell whether {answers.excerpt(stated)} is {answers.excerpt(reference)}"
        return Grade(verdict, both, answer)


def _compared_here(stated: str, reference: str, question: str) -> Verdict | None:
    """The verdict on two answers that are written alike, two numbers, or words and anything else; None for others."""
    if answers.normalise(stated) == answers.normalise(reference):
        return Verdict.UNGRADABLE if answers.say_different_things(stated, reference) else Verdict.CORRECT
    if by_share := shares.compare(stated, reference, question):
        return by_share
    ours, theirs = answers.parse_number(stated), answers.parse_number(reference)
    if ours is not None and theirs is not None and "%" not in stated + reference:
        if ("." in stated) != ("." in reference):
            rounded, exact = (ours, theirs) if "." in stated else (theirs, ours)
            if "/" in answers.canonical(exact) and abs(rounded - exact) <= algebra.TOLERANCE * abs(exact):
                return Verdict.CORRECT
        return Verdict.UNGRADABLE if answers.say_different_things(stated, reference) else Verdict.INCORRECT
    return Verdict.INCORRECT if answers.is_words(stated) or answers.is_words(reference) else None


class _Undecided(Exception):
    """The comparison could not be made. The message is the reason."""


class _Died(_Undecided):
    """The worker was gone before it answered."""


@lru_cache(maxsize=4096)
def _compare(reference: str, stated: str, timeout: float, memory_mb: int) -> bool:
    """Whether the expressions are equal. Raises _Undecided, which is not cached: the next call tries again."""
    if max(len(reference), len(stated)) > expressions.MAX_EXPRESSION:
        raise _Undecided(f"an expression of more than {expressions.MAX_EXPRESSION} characters")
    try:
        with _worker() as worker:
            return worker.compare(reference, stated, timeout, memory_mb)
    except _Died:  # the worker may have died while it was idle, so try once more
        with _worker() as worker:
            return worker.compare(reference, stated, timeout, memory_mb)


class _Worker:
    """A process that compares expressions, one at a time."""

    def __init__(self) -> None:
        if os.name == "nt":  # no way to hand the pipe on, and no alarm
            raise ConfigError("symbolic grading needs Linux or macOS. Use the grader numeric or exact, or WSL.")
        ours, theirs = Pipe()
        self.connection: Connection = ours
        _all.add(self)
        code = f"from {__name__} import _serve; _serve({theirs.fileno()})"
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()
        fault = self._answer(_START_SECONDS)
        if fault != "ready":
            self.close()
            raise ConfigError(f"symbolic grading can't start its worker: {fault}. Try: pip install sympy")

    def compare(self, reference: str, stated: str, timeout: float, memory_mb: int) -> bool:
        try:
            self.connection.send_bytes(json.dumps([reference, stated, timeout, memory_mb]).encode())
            answer = self._answer(timeout)
        except OSError:
            answer = _DIED
        if answer.startswith(_DIED):
            self.close()
            raise _Died(answer)
        if answer not in ("equal", "different"):
            if not answer.startswith("can't"):
                self.close()
            raise _Undecided(answer)
        return answer == "equal"

    def _answer(self, seconds: float) -> str:
        if not self.connection.poll(seconds):
            return f"no result within {seconds:g} s"
        try:
            return self.connection.recv_bytes().decode()
        except (EOFError, OSError):
            self.process.kill()  # the process may still run with its end of the pipe closed
            return f"{_DIED} (exit status {self.process.wait()})"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    @property
    def alive(self) -> bool:
        return not self.connection.closed and self.process.poll() is None


_free: list[_Worker] = []
_all: weakref.WeakSet[_Worker] = weakref.WeakSet()
_slots = threading.BoundedSemaphore(_WORKERS)


@contextlib.contextmanager
def _worker() -> Iterator[_Worker]:
    """A worker of this process for one job. Waits while all workers are busy."""
    with _slots:
        try:
            worker = _free.pop()
        except IndexError:
            worker = None
        if worker is None or not worker.alive:
            worker = _Worker()
        try:
            yield worker
        except _Undecided:
            raise
        except BaseException:
            worker.close()  # interrupted: its answer may still arrive, and would be taken for the next job's
            raise
        finally:
            if worker.alive:
                _free.append(worker)


@atexit.register
def _close_all() -> None:
    while _free:
        _free.pop().close()


def _after_fork() -> None:
    """A forked child closes its copies of the pipes, since the workers belong to the parent, and starts its own."""
    global _slots
    for worker in list(_all):  # also those at work for the parent's other threads
        worker.connection.close()
    _free.clear()
    _slots = threading.BoundedSemaphore(_WORKERS)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


def _serve(fd: int) -> None:
    """The worker's main loop. It ends when the parent's end of the pipe is closed."""
    connection = Connection(fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        import sympy  # noqa: F401  slow, so it is imported before the first job
    except ImportError as e:
        connection.send_bytes(str(e).encode())
        return
    connection.send_bytes(b"ready")
    while True:
        try:
            reference, stated, timeout, memory_mb = json.loads(connection.recv_bytes())
        except EOFError:
            return
        _limit_memory(memory_mb)
        # The alarm's default action ends this process, whatever it is doing, even if the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, timeout + 1.0)
        try:
            result = _verify(reference, stated)
        except MemoryError:
            result = f"the comparison needs more than {memory_mb} MiB"
        except RecursionError:
            result = "can't compare: nested too deeply"
        except Exception as e:
            result = f"can't parse or compare: {type(e).__name__}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(result.encode())


def _limit_memory(megabytes: int) -> None:
    """Limits this process's address space, where the system can: macOS refuses, and a system may lack limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _verify(reference: str, stated: str) -> str:
    sides = []
    for name, side in (("reference", reference), ("answer", stated)):
        try:
            sides.append(expressions.parse(side))
        except expressions.Unreadable as e:
            return f"can't parse the {name}: {e}"
    try:
        return "equal" if algebra.equal(sides[1], sides[0]) else "different"
    except algebra.Undecided as e:
        return f"can't compare: {e}"

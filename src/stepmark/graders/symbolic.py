r"""A grader for mathematics: correct if the stated answer and the reference are equal expressions. "\frac{1}{2}" equals
0.5, and "x(x+1)" equals "x^2+x".

Three tiers, cheap ones first:

1. equal after `answers.normalise` (which removes formatting): CORRECT;
2. both are plain numbers, or one of them is plain words: compared here, without algebra;
3. math-verify (sympy with a LaTeX parser), in a worker process.

sympy can hang or use up all memory on a few characters, and math-verify's own time-out is SIGALRM, which works only in
the main thread. So tier 3 runs in worker processes that this module starts on first use, reuses, and kills when a job
takes too long. Calls may come from any thread, from pool workers (also daemonic ones, because the workers are
subprocesses, not multiprocessing children) and from forks. A worker also sets an alarm for itself, so that it ends even
if its parent was killed.

A text without an answer is INCORRECT. UNGRADABLE, with the reason, means that the check could not be made: a time-out,
a crash, too little memory, or an expression on either side that can't be parsed.

    python bench/grader_agreement.py --math500 data/math500/test.jsonl.gz
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe

from stepmark.errors import ConfigError
from stepmark.text import answers
from stepmark.types import Grade, Problem, Verdict

MAX_EXPRESSION = 1000  # characters; longer expressions are not parsed
_DOLLAR = re.compile(r"(?<!\\)\$")
_DIED = "the worker process died"
_START_SECONDS = 120.0  # a new worker imports sympy, which is slow on a busy machine
_WORKERS = max(1, min(4, os.cpu_count() or 1))  # largest number per process; they are started when threads need them


@dataclass(frozen=True, slots=True)
class Symbolic:
    """Grades by equality of mathematical expressions. Raises ConfigError for limits that are too low."""

    timeout: float = 5.0  # seconds for one comparison, after which its worker is killed
    memory_mb: int = 2048  # address space of a worker, in MiB

    def __post_init__(self) -> None:
        faults = []
        if not self.timeout > 0:
            faults.append(f"timeout must be a number of seconds above 0, got {self.timeout}.")
        if self.memory_mb < 128:
            faults.append(f"memory_mb must be at least 128, most of it for sympy itself, got {self.memory_mb}.")
        if faults:
            raise ConfigError(faults)

    def grade(self, text: str, problem: Problem) -> Grade:
        """Never raises an error for bad text. Raises ConfigError if math-verify is needed but not installed."""
        reference = problem.answer.strip()
        if not reference:
            return Grade(Verdict.UNGRADABLE, "the problem has no reference answer")
        stated = answers.extract(text)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no answer found")
        answer = answers.normalise(stated)
        if answer == answers.normalise(reference):
            return Grade(Verdict.CORRECT, "equal to the reference", answer)
        wrong = Grade(Verdict.INCORRECT, f"{answers.excerpt(stated)} is not {answers.excerpt(reference)}", answer)
        if _surely_different(stated, reference):
            return wrong
        try:
            equal = _compare(reference, stated, self.timeout, self.memory_mb)
        except _Undecided as e:
            return Grade(Verdict.UNGRADABLE, str(e), answer)
        return Grade(Verdict.CORRECT, "equal to the reference by algebra", answer) if equal else wrong


def _surely_different(stated: str, reference: str) -> bool:
    """Whether two answers with different normal forms can't be equal: two numbers, or words and anything else.
    Percentages are left to math-verify, for which 50% equals both 0.5 and 50."""
    numbers = [answers.parse_number(a) is not None and "%" not in a for a in (stated, reference)]
    return all(numbers) or any(answers.is_words(a) for a in (stated, reference))


class _Undecided(Exception):
    """The comparison could not be made. The message is the reason."""


class _Died(_Undecided):
    """The worker was gone before it answered."""


@lru_cache(maxsize=4096)
def _compare(reference: str, stated: str, timeout: float, memory_mb: int) -> bool:
    """Whether the expressions are equal. Raises _Undecided, which is not cached: the next call tries again."""
    if max(len(reference), len(stated)) > MAX_EXPRESSION:
        raise _Undecided(f"an expression of more than {MAX_EXPRESSION} characters")
    try:
        with _worker() as worker:
            return worker.compare(reference, stated, timeout, memory_mb)
    except _Died:  # the worker may have died while it was idle, so try once more
        with _worker() as worker:
            return worker.compare(reference, stated, timeout, memory_mb)


class _Worker:
    """A process that compares expressions, one at a time."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        self.connection: Connection = ours
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
            raise ConfigError(f"symbolic grading can't start its worker: {fault}. Try: pip install math-verify")

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
_slots = threading.BoundedSemaphore(_WORKERS)


@contextmanager
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
    for worker in _free:
        worker.connection.close()
    _free.clear()
    _slots = threading.BoundedSemaphore(_WORKERS)


os.register_at_fork(after_in_child=_after_fork)


def _serve(fd: int) -> None:
    """The worker's main loop. It ends when the parent's end of the pipe is closed."""
    connection = Connection(fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        import logging
        import resource

        from math_verify import grader  # slow, so it is imported before the first job
    except ImportError as e:
        connection.send_bytes(str(e).encode())
        return
    logging.disable(logging.CRITICAL)
    # math-verify counts any exception inside a comparison as "not equal". But after MemoryError or RecursionError
    # nothing was compared. Redefining the name `Exception` in its module lets these two pass its `except Exception`.
    exceptions = (*Exception.__subclasses__(), *RuntimeError.__subclasses__())
    not_compared = (MemoryError, RecursionError)
    vars(grader)["Exception"] = tuple(c for c in exceptions if not any(issubclass(b, c) for b in not_compared))
    connection.send_bytes(b"ready")
    while True:
        try:
            reference, stated, timeout, memory_mb = json.loads(connection.recv_bytes())
        except EOFError:
            return
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
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


def _verify(reference: str, stated: str) -> str:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def expression(answer: str) -> list[object]:
        config = [LatexExtractionConfig(), ExprExtractionConfig()]
        parsed: list[object] = parse(
            f"${_DOLLAR.sub('', answer)}$",
            config,
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )
        return parsed

    sides = {"reference": expression(reference), "answer": expression(stated)}
    for name, side in sides.items():
        if not side:
            return f"can't parse the {name}"
    return "equal" if verify(*sides.values(), timeout_seconds=None, raise_on_error=True) else "different"

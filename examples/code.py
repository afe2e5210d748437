"""Code: a task whose answers are unit tests, and the grader that runs them.

A row has the question, and the tests as Python statements, one by one or as one text. MBPP's rows are of this kind:

    {"prompt": "Write a function add(a, b).", "test_list": ["assert add(1, 2) == 3"], "code": "def add(a, b): ..."}

The grader takes the function out of a solution and runs it with the tests, in a process of its own that has little time
and memory. THIS IS NO SECURITY SANDBOX. The code runs as you: it can read and delete your files, use the network and
start other programs. It can also cheat: it runs in one process with its tests. Grade code that you would run yourself,
or put the whole command into a container without a network and without anything that matters.

What is wrong and what is ungradable:

- A failed test, an exception, a syntax error, and no function at all are INCORRECT. So are too much processor time and
  too much memory: both are the program's own, however busy the machine is.
- UNGRADABLE is what may be right: a program that used little processor time and yet did not end (the machine may be
  busy, or it sleeps), one that was killed from outside, one that needs a package that is not here; and tests that are
  no Python.

    stepmark run examples/code.yaml
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache

from stepmark.data import rows
from stepmark.errors import ConfigError
from stepmark.types import Grade, Problem, Quarantined, Verdict

SPLITS = ("train", "test")

# What the process runs. The verdict goes to the real standard output, after words that the solution does not know.
CHILD = """
import ast, json, os, resource, signal, sys, types
job = json.load(sys.stdin)
signal.alarm(job["alarm"])  # so it ends even if nobody is left to kill it
for name, limit in job["limits"]:
    try:
        resource.setrlimit(getattr(resource, name), (limit, limit + 1))
    except (ValueError, OSError):  # macOS has no limit of memory
        pass
out = os.fdopen(os.dup(1), "w")
nothing = os.open(os.devnull, os.O_WRONLY)
os.dup2(nothing, 1)
os.dup2(nothing, 2)

def end(*verdict):
    out.write(job["password"] + json.dumps(verdict))
    out.flush()
    os._exit(0)  # whatever threads are left

try:
    tests = ast.parse(job["tests"]).body
except Exception as e:
    end("ungradable", f"the tests are no Python: {e}")
if not tests:
    end("ungradable", "the problem has no tests")
module = sys.modules["solution"] = types.ModuleType("solution")
names = vars(module)
place = "the code"
try:
    exec(compile(job["code"], "solution", "exec"), names)
    for test in tests:
        place = ast.unparse(test)
        exec(compile(ast.Module([test], []), "tests", "exec"), names)
except ModuleNotFoundError as e:
    end("ungradable", f"{e}; install it, if solutions may use it")
except BaseException as e:  # exit() too
    end("incorrect", f"{type(e).__name__} in {place}: {e}")
end("correct", "passed all tests")
"""


@dataclass(frozen=True)
class Functions:
    """The task. A directory with a file for each split, such as train.jsonl; other endings as for the task jsonl."""

    path: str
    question: str = "question"  # the field with the question; MBPP's is `prompt`
    tests: str = "tests"  # ... with the tests; `test_list`
    solution: str = "solution"  # ... with a right solution, which a row may lack; `code`
    grader: str = field(default=__file__, init=False)
    steps: str = field(default="line", init=False)

    def load(self, split, limit=None):
        if split not in SPLITS:
            raise ConfigError(f"code has no split {split!r}. It has: {', '.join(SPLITS)}.")
        fields = (rows.Field(self.question), rows.Field(self.solution, required=False))
        return rows.problems(rows.read(self.path, fields, split=split), self._problem, limit)

    def _problem(self, row):
        tests = row.values.get(self.tests)
        tests = [tests] if isinstance(tests, str) else tests
        if not isinstance(tests, list) or not tests or not all(isinstance(t, str) and t.strip() for t in tests):
            return Quarantined(row.file, row.line, f"field {self.tests!r}: needs tests, a text or a list of texts")
        solution = row.text[self.solution]
        return Problem(row.id, row.text[self.question].strip(), "\n".join(tests), "code", solution, solution)


@dataclass(frozen=True)
class UnitTests:
    """The grader. A text passes if its function passes all statements of the problem's answer."""

    seconds: int = 5  # of processor time, the start of Python included
    patience: float = 60.0  # seconds by the clock after which the process is killed
    memory_mb: int = 1024  # address space of the process, in MiB, where the system can limit it

    def __post_init__(self):
        low = [name for name in ("seconds", "patience", "memory_mb") if not getattr(self, name) > 0]
        if low:
            raise ConfigError([f"code: {name} must be above 0, got {getattr(self, name)}." for name in low])
        if os.name == "nt":
            raise ConfigError("code: the grader's limits need Linux or macOS. On Windows use WSL.")

    def grade(self, text, problem):
        if not problem.answer.strip():
            return Grade(Verdict.UNGRADABLE, "the problem has no tests")
        code = function_in(text)
        if code is None:
            return Grade(Verdict.INCORRECT, "no function found")
        # Votes are counted by this: programs that are written alike, but for white space, are one answer.
        digest = hashlib.sha256(" ".join(code.split()).encode("utf-8", "surrogatepass")).hexdigest()
        try:
            verdict, reason = _run(code, problem.answer, self.seconds, self.patience, self.memory_mb)
        except _Undecided as e:
            verdict, reason = Verdict.UNGRADABLE, str(e)
        reason = " ".join(reason.encode("utf-8", "replace").decode().split())
        return Grade(verdict, reason if len(reason) <= 300 else reason[:297] + "...", f"program {digest[:12]}")


class _Undecided(Exception):
    """The program may be right. The message is the reason."""


@lru_cache(maxsize=4096)
def _run(code, tests, seconds, patience, memory_mb):
    """The verdict and the reason. Rollouts often end in the same program: it is run once. Raises _Undecided, which is
    not remembered: the next call tries again."""
    limits = ("RLIMIT_CPU", seconds), ("RLIMIT_AS", memory_mb << 20), ("RLIMIT_FSIZE", 1 << 20)
    password = secrets.token_hex(16)
    job = {"code": code, "tests": tests, "limits": limits, "password": password, "alarm": int(patience) + 2}
    kept = {k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH") if k in os.environ}  # no keys of servers
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=place,
            env=kept | {"HOME": place, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a group of its own, so that what it started is killed with it
        )
        try:
            said = process.communicate(json.dumps(job).encode(), patience)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            raise _Undecided(f"not done after {patience:g} s, most of them idle or waiting") from None
        finally:
            with contextlib.suppress(OSError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)
            process.stdin.close()
            process.stdout.close()
            process.wait()
    _, told, verdict = said.partition(password)
    if told:
        word, reason = json.loads(verdict)
        if word == Verdict.UNGRADABLE:
            raise _Undecided(reason)
        return Verdict(word), reason
    if process.returncode == -signal.SIGXCPU:
        return Verdict.INCORRECT, f"it used more than {seconds} s of processor time"
    if process.returncode == 0:
        return Verdict.INCORRECT, "it ended its process before the tests were done"
    raise _Undecided(f"the process ended without a verdict (exit status {process.returncode})")


def function_in(text):
    """The program of a solution: the last piece between lines of ``` that defines a function or a class; the whole text
    where there are no such lines. None if no piece does."""
    pieces = re.split(r"^[ \t]*```.*$", text, flags=re.MULTILINE)
    return next((x.strip("\n") for x in reversed(pieces) if re.search(r"^(?:async +)?(?:def|class)\b", x, re.M)), None)

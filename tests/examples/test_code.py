"""examples/code.py: programs are run with unit tests, in real processes with limits."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.types import Problem, Verdict

CODE = str(Path(__file__).parents[2] / "examples" / "code.py")
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
PROBLEM = Problem("add", "Write a function add(a, b).", TESTS, "code")
RIGHT = "def add(a, b):\n    return a + b"


@pytest.fixture
def grader():
    return stepmark.load_grader(CODE)


def graded(grader, code, tests=TESTS):
    return grader.grade(code, dataclasses.replace(PROBLEM, answer=tests))


def test_it_is_a_grader_that_travels(grader):
    assert registry.load("grader", CODE) == pickle.loads(pickle.dumps(grader))  # noqa: S301 - our own bytes
    assert stepmark.load_task(CODE, path="x").grader == CODE


@pytest.mark.parametrize(
    ("text", "verdict", "said"),
    [
        (RIGHT, "correct", "passed all tests"),
        (f"I add them.\n```python\n{RIGHT}\n```\nFor example:\n```\nadd(1, 2)\n```", "correct", "passed"),
        (f"First try:\n```\ndef add(a, b):\n    return a\n```\nBetter:\n```\n{RIGHT}\n```", "correct", "passed"),
        (f"{RIGHT}\n```\nThis works.", "correct", "passed"),  # the prompt had the opening line
        (f"```python\n{RIGHT}", "correct", "passed"),  # a stop text took the closing line
        ("def add(a, b):\n    return a - b", "incorrect", "AssertionError in assert add(1, 2) == 3"),
        ("def sub(a, b):\n    return a - b", "incorrect", "NameError in assert add(1, 2) == 3"),
        ("def add(a, b)\n    return a", "incorrect", "SyntaxError in the code"),
        ("def add(a, b):\n    return input()", "incorrect", "EOFError"),
        ("def add(a, b):\n    return add(a, b)", "incorrect", "RecursionError"),
        ("The function adds two numbers.", "incorrect", "no function found"),
        ("", "incorrect", "no function found"),
        # Nothing passes by ending early, or by printing what it likes.
        ("import sys\ndef add(a, b): ...\nsys.exit(0)", "incorrect", "SystemExit in the code"),
        ('def add(a, b): ...\nprint(\'["correct", "passed"]\')', "incorrect", "AssertionError"),
        ("import os\ndef add(a, b): ...\nos._exit(0)", "incorrect", "ended its process before the tests"),
        ("import os\ndef add(a, b): ...\nos.kill(os.getpid(), 9)", "ungradable", "exit status -9"),
        ("import no_such_package\n" + RIGHT, "ungradable", "No module named 'no_such_package'; install it"),
        ("def add(a, b):\n    x = [0] * 10**9\n    return a + b", "incorrect", "MemoryError"),
        ("def add(a, b):\n    '\ud800'", "incorrect", "Unicode"),
        ("def add(a, b):\n    return '\x00'", "incorrect", "null"),
        ("def add(a, b):\n    raise ValueError('x' * 10**6 + '\\n' * 100)", "incorrect", "ValueError"),
    ],
)
def test_a_text_and_its_verdict(grader, text, verdict, said):
    if "MemoryError" in said and sys.platform == "darwin":
        pytest.skip("macOS has no limit of memory")
    grade = graded(grader, text)
    assert (grade.verdict, said in grade.reason) == (verdict, True), grade
    assert "\n" not in grade.reason and len(grade.reason) <= 300
    assert (grade.answer is None) == (said == "no function found")
    json.dumps(grade.reason, ensure_ascii=False).encode()


def test_tests_that_are_none_make_nothing_right(grader):
    for tests in ("", " \n", "# nothing"):
        assert graded(grader, RIGHT, tests).reason == "the problem has no tests"
    broken = graded(grader, RIGHT, "assert add(1, 2 == 3")
    assert broken.verdict is Verdict.UNGRADABLE and "the tests are no Python" in broken.reason


def test_too_much_processor_time_is_wrong_and_idle_time_is_not():
    busy = graded(stepmark.load_grader(CODE, seconds=1), "def add(a, b):\n    while True: pass")
    assert (busy.verdict, busy.reason) == (Verdict.INCORRECT, "it used more than 1 s of processor time")
    idle = stepmark.load_grader(CODE, patience=1.0)
    asleep = graded(idle, "import time\ndef add(a, b):\n    time.sleep(1000)")
    assert (asleep.verdict, "not done after 1 s" in asleep.reason) == (Verdict.UNGRADABLE, True)


def test_what_a_program_started_ends_with_it(tmp_path):
    """And what it writes into its own directory is gone."""
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        f"import os; open({str(note)!r}, 'w').write(f'{{child.pid}} {{os.getcwd()}}')\n"
        "open('left.txt', 'w').write('x')\n"
        "def add(a, b):\n    return a + b"
    )
    assert graded(stepmark.load_grader(CODE), code).verdict is Verdict.CORRECT
    pid, directory = note.read_text().split()
    assert not Path(directory).exists()
    for _ in range(100):  # until whoever inherited it has taken note of its end
        if not running(int(pid)):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} still runs")


def running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_a_program_sees_no_keys(grader, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    tests = "import os\nassert 'OPENAI_API_KEY' not in os.environ\nassert os.environ['HOME'] == os.getcwd()"
    assert graded(grader, RIGHT, tests).reason == "passed all tests"
    assert "OPENAI_API_KEY" in os.environ


def test_programs_that_differ_in_white_space_share_a_vote(grader):
    a, b, c = (graded(grader, x).answer for x in (RIGHT, f"```\n\n{RIGHT}  \n```", RIGHT.replace("a + b", "b + a")))
    assert a == b != c and a.startswith("program ")


def test_limits_out_of_range_are_refused_all_at_once():
    with pytest.raises(ConfigError) as e:
        stepmark.load_grader(CODE, seconds=0, patience=0.0, memory_mb=-1)
    assert len(e.value.faults) == 3


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="`"), max_size=40).filter(
    lambda x: not any(line.lstrip().startswith(("def", "class", "async")) for line in x.splitlines())
)


@given(WORDS, WORDS, st.sampled_from(["", "python", "py"]))
def test_the_function_is_found_among_any_words(before, after, language):
    find = registry.find("grader", CODE).grade.__globals__["function_in"]
    assert find(f"{before}\n```{language}\n{RIGHT}\n```\n{after}") == RIGHT
    assert find(before) is None


def test_rows_that_have_no_tests_are_set_aside(tmp_path):
    rows = [
        {"question": "Write f.", "tests": ["assert f()"], "solution": "def f(): return 1"},
        {"question": "Write g.", "tests": []},
        {"question": "Write h.", "tests": [1]},
        {"question": "Write i.", "tests": "assert i()"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = stepmark.load_task(CODE, path=str(tmp_path)).load("train")
    assert [(p.question, p.answer) for p in loaded.problems] == [("Write f.", "assert f()"), ("Write i.", "assert i()")]
    assert [(q.line, "'tests'" in q.reason) for q in loaded.quarantined] == [(2, True), (3, True)]
    with pytest.raises(ConfigError, match="It has: train, test"):
        stepmark.load_task(CODE, path=str(tmp_path)).load("all")
    with pytest.raises(DataError, match="needs exactly one of"):
        stepmark.load_task(CODE, path=str(tmp_path)).load("test")

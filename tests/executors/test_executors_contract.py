"""The contract of every executor in the folder, discovered by file name."""

import functools
import itertools
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepmark.errors import ConfigError, UnknownName
from stepmark.plugins import registry
from stepmark.protocols import Executor, Streamer


@pytest.fixture(params=registry.names("executor"))
def executor(request) -> Executor:
    """An executor, with two workers if it has the option."""
    options = registry.options("executor", request.param)
    return registry.load("executor", request.param, **({"workers": 2} if "workers" in options else {}))


def add(unit: int, *, more: int) -> int:
    return unit + more


def fail_at(unit: int, *, bad: int) -> int:
    if unit == bad:
        raise UnknownName("thing", str(unit), ["else"])
    return unit


class Odd(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_oddly(unit: int) -> int:
    raise Odd(unit, 2)


def test_each_unit_once(executor):
    assert isinstance(executor, Executor)
    assert pickle.loads(pickle.dumps(executor)) == executor  # noqa: S301
    results = list(executor.map(functools.partial(add, more=10), range(7)))
    assert sorted(results) == list(range(10, 17))
    assert list(executor.map(functools.partial(add, more=10), [])) == []


def test_units_are_taken_as_they_are_needed(executor):
    """The stream of units may be infinite."""
    taken = []

    def units():
        for i in itertools.count():
            taken.append(i)
            yield i

    results = executor.map(functools.partial(add, more=0), units())
    assert len(set(itertools.islice(results, 5))) == 5
    assert len(taken) <= 5 + 2 * 2


def test_an_exception_ends_it_after_the_results_already_made(executor):
    results = []
    with pytest.raises(ConfigError, match="no thing named '4'"):
        for result in executor.map(functools.partial(fail_at, bad=4), range(100)):
            results.append(result)  # noqa: PERF402 - list(...) would lose the results before the exception
    assert set(range(4)) <= set(results)
    assert len(results) < 12
    with pytest.raises(Exception, match="0 and 2"):
        list(executor.map(fail_oddly, [0]))


def pid(_: int) -> int:
    return os.getpid()


def test_work_may_come_from_a_users_own_file(executor, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from stepmark.types import Grade, Verdict\n\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    word: str = 'yes'\n\n"
        "    def grade(self, text, problem):\n"
        "        return Grade(Verdict.CORRECT if text == self.word else Verdict.INCORRECT, 'compared')\n"
    )
    grader = registry.load("grader", str(file), word="no")
    grades = list(executor.map(functools.partial(grader.grade, problem=None), ["no", "yes"]))
    assert sorted(g.correct for g in grades) == [False, True]


# ---- results of a unit that is still in progress ----


def count_up(unit: int, *, bad: int) -> Iterator[int]:
    for i in range(3):
        if unit == bad and i == 2:
            raise UnknownName("thing", str(unit), ["else"])
        yield 10 * unit + i


def one_then_wait(unit: int, *, mark: str) -> Iterator[int]:
    """Yields once, and then only when the caller has seen it."""
    yield unit
    end = time.monotonic() + 30
    while not Path(mark).exists() and time.monotonic() < end:
        time.sleep(0.01)
    yield -1 if Path(mark).exists() else -2


def lose_the_connection(_: int) -> Iterator[int]:
    yield 1
    raise ConnectionResetError("by the peer")


def test_a_streamers_results_come_in_the_order_of_their_unit(executor):
    assert isinstance(executor, Streamer)
    results = list(executor.stream(functools.partial(count_up, bad=-1), range(5)))
    assert sorted(results) == [10 * unit + i for unit in range(5) for i in range(3)]
    assert all([r for r in results if r // 10 == unit] == [10 * unit + i for i in range(3)] for unit in range(5))
    assert list(executor.stream(functools.partial(count_up, bad=-1), [])) == []


def test_a_streamers_exception_comes_after_what_was_yielded_before_it(executor):
    results = []
    with pytest.raises(ConfigError, match="no thing named '2'"):
        for result in executor.stream(functools.partial(count_up, bad=2), range(100)):
            results.append(result)  # noqa: PERF402 - list(...) would lose the results before the exception
    assert {0, 1, 2, 10, 11, 12, 20, 21} <= set(results)
    assert 22 not in results
    with pytest.raises(Exception, match="by the peer"):
        list(executor.stream(lose_the_connection, [0]))


def test_a_result_comes_while_its_unit_goes_on(executor, tmp_path):
    mark = tmp_path / "seen"
    results = executor.stream(functools.partial(one_then_wait, mark=str(mark)), [7])
    assert next(results) == 7
    mark.touch()
    assert list(results) == [-1]

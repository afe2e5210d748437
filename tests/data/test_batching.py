"""Many threads, one piece of work at a time."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepmark.data.batching import ThreadBatcher


class Slow:
    """Doubles numbers, and waits at the first call until `more` others have asked."""

    def __init__(self):
        self.seen, self.started, self.go = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.seen.append(list(items))
        self.started.set()
        assert self.go.wait(30)
        if "bad" in items:
            raise ValueError(f"a bad one of {len(items)}")
        return [2 * item for item in items]


def asked(first, others):
    """What came of a first call, and of others that were made while it was under way; and the pieces of work."""
    slow = Slow()
    together = ThreadBatcher(slow)
    with ThreadPoolExecutor(len(others) + 1) as pool:
        futures = [pool.submit(together, first)]
        assert slow.started.wait(30)
        futures += [pool.submit(together, items) for items in others]
        while len(together._waiting) < len(others):
            pass
        slow.go.set()
        return [f.exception() or f.result() for f in futures], slow.seen


def test_what_is_asked_meanwhile_is_worked_on_together_and_everybody_gets_their_own():
    found, seen = asked([1, 2], [[3], [4, 5], [], [6]])
    assert found == [[2, 4], [6], [8, 10], [], [12]]
    assert seen[0] == [1, 2]
    assert len(seen) == 2 and sorted(seen[1]) == [3, 4, 5, 6]


def test_an_error_is_its_callers_alone():
    found, _ = asked([1], [[3], ["bad"], [4]])
    assert (found[0], found[1], found[3]) == ([2], [6], [8])
    with pytest.raises(ValueError, match="a bad one of 1"):
        raise found[2]


def test_it_goes_on_after_an_error():
    together = ThreadBatcher(lambda items: [1 / item for item in items])
    with pytest.raises(ZeroDivisionError):
        together([0])
    assert together([2]) == [0.5]


def test_work_that_gives_too_few_results_is_an_error_and_not_a_wait():
    with pytest.raises(ValueError, match="0 results for 1 items"):
        ThreadBatcher(lambda items: [])([1])


def test_a_call_outlives_the_interruption_of_the_one_that_took_it_along():
    slow, broken = Slow(), []

    def work(items):
        if len(items) == 2 and not broken:
            broken.append(items)
            raise KeyboardInterrupt
        return slow(items)

    together = ThreadBatcher(work)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together, [1])
        assert slow.started.wait(30)
        others = [pool.submit(together, [item]) for item in (3, 4)]
        while len(together._waiting) < 2:
            pass
        slow.go.set()
        assert first.result(30) == [2]
        found = [type(f.exception(30)) if f.exception(30) else f.result() for f in others]
    assert broken
    assert found in ([KeyboardInterrupt, [8]], [[6], KeyboardInterrupt])


def test_it_can_be_sent_to_another_process():
    # Copied as pickle does it.
    assert copy.deepcopy(ThreadBatcher(len)).work is len

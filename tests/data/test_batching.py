"""Calls from many threads, joined into batches."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepmark.data.batching import ThreadBatcher


class Slow:
    """Doubles numbers; each call waits until `go` is set."""

    def __init__(self):
        self.seen, self.started, self.go = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.seen.append(list(items))
        self.started.set()
        assert self.go.wait(30)
        if "bad" in items:
            raise ValueError(f"a bad one of {len(items)}")
        return [2 * item for item in items]


def run_calls(first, others):
    """The results of a first call and of other calls made while it was running; and the batches."""
    slow = Slow()
    batcher = ThreadBatcher(slow)
    with ThreadPoolExecutor(len(others) + 1) as pool:
        futures = [pool.submit(batcher, first)]
        assert slow.started.wait(30)
        futures += [pool.submit(batcher, items) for items in others]
        while len(batcher._waiting) < len(others):
            pass
        slow.go.set()
        return [f.exception() or f.result() for f in futures], slow.seen


def test_what_is_asked_meanwhile_is_worked_on_together_and_everybody_gets_their_own():
    results, batches = run_calls([1, 2], [[3], [4, 5], [], [6]])
    assert results == [[2, 4], [6], [8, 10], [], [12]]
    assert batches[0] == [1, 2]
    assert len(batches) == 2 and sorted(batches[1]) == [3, 4, 5, 6]


def test_an_error_is_its_callers_alone():
    results, _ = run_calls([1], [[3], ["bad"], [4]])
    assert (results[0], results[1], results[3]) == ([2], [6], [8])
    with pytest.raises(ValueError, match="a bad one of 1"):
        raise results[2]


def test_it_goes_on_after_an_error():
    batcher = ThreadBatcher(lambda items: [1 / item for item in items])
    with pytest.raises(ZeroDivisionError):
        batcher([0])
    assert batcher([2]) == [0.5]


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

    batcher = ThreadBatcher(work)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher, [1])
        assert slow.started.wait(30)
        others = [pool.submit(batcher, [item]) for item in (3, 4)]
        while len(batcher._waiting) < 2:
            pass
        slow.go.set()
        assert first.result(30) == [2]
        results = [type(f.exception(30)) if f.exception(30) else f.result() for f in others]
    assert broken
    assert results in ([KeyboardInterrupt, [8]], [[6], KeyboardInterrupt])


def test_it_can_be_sent_to_another_process():
    # deepcopy uses the same protocol as pickle.
    assert copy.deepcopy(ThreadBatcher(len)).work is len

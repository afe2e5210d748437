"""Batches by time: nothing is lost, nothing waits, and errors of the other thread are not lost either."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data.timed_batch import TimedBatch


@given(st.integers(0, 50), st.integers(1, 7), st.sets(st.integers(0, 49)))
def test_all_items_are_handed_on_once_and_in_order(count, most, flushed):
    batches = []
    with TimedBatch(batches.append, most) as batch:
        for i in range(count):
            batch.add(i)
            if i in flushed:
                batch.flush()
    assert [i for items in batches for i in items] == list(range(count))
    assert all(len(items) <= most for items in batches)


def test_an_item_does_not_wait_for_the_next_one():
    came = threading.Event()
    with TimedBatch(lambda items: items and came.set(), seconds=0.05) as batch:
        batch.add("alone")
        assert came.wait(20)


def test_items_that_came_before_an_error_are_handed_on():
    batches = []
    with pytest.raises(KeyError), TimedBatch(batches.append) as batch:
        batch.add(1)
        raise KeyError("a fault of the block")
    assert batches == [[1]]


def test_an_error_of_the_other_thread_is_raised_by_the_next_call():
    def refuse(items):
        if items:
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"), TimedBatch(refuse, seconds=0.01) as batch:
        batch.add(1)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)
            batch.add(2)
    batch = TimedBatch(refuse)
    with pytest.raises(OSError, match="no space"), batch:
        batch.add(1)

"""Units of work: nothing is lost or done twice, and one bad item loses nothing but itself."""

import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data import token_meter, work_units
from stepmark.data.store import Records
from stepmark.errors import BackendError, ConfigError, DataError, StageError
from stepmark.executors.serial import SerialExecutor
from stepmark.types import Grade, GradedSolution, Problem, Solution, Verdict


def record(name):
    return GradedSolution(name, "p", Grade(Verdict.CORRECT, "as told"))


@dataclass(frozen=True)
class Work:
    bad: frozenset = frozenset()
    error: type = ValueError

    def __call__(self, unit):
        for item in unit:
            if item in self.bad:
                raise self.error(f"can't do {item}")
            yield record(item)


def go(work, items, out, size=3, progress=None, already=0, executor=None, **options):
    return work_units.run(
        "try",
        work,
        items,
        out,
        **{"name": str, "weigh": len} | options,
        size=size,
        already=already,
        executor=executor or SerialExecutor(),
        progress=progress,
    )


@given(st.lists(st.integers(0, 9)), st.integers(1, 20))
def test_split_keeps_every_item_in_order_and_fills_units(items, size):
    units = list(work_units.split(items, lambda i: i, size))
    assert [i for unit in units for i in unit] == items
    assert all(units)
    assert all(sum(unit) <= size or len(unit) == 1 for unit in units)
    # Units are as full as possible: the first item of the next unit did not fit.
    assert all(sum(a) + b[0] > size for a, b in pairwise(units))


@given(st.lists(st.integers(1, 9)), st.integers(1, 20))
def test_an_item_larger_than_a_unit_is_cut(items, size):
    units = list(work_units.split(items, lambda i: i, size, lambda item, most: (most, item - most)))
    assert sum(i for unit in units for i in unit) == sum(items)
    assert all(sum(unit) <= size for unit in units)


@given(st.integers(1, 600), st.integers(1, 20), st.lists(st.floats(0.001, 100), min_size=1, max_size=12))
def test_units_by_speed_come_to_take_ten_to_twenty_seconds(most, least, speeds):
    """Whatever the speeds were before, a few units later the time is right, or the size at its bound."""
    size = work_units.BySpeed(most, min(least, most))
    for speed in speeds + speeds[-1:] * 20:  # records a second
        assert min(least, most) <= size.now <= most
        size.learn(size.now, size.now / speed)
    seconds = size.now / speeds[-1]
    assert (seconds >= 10 or size.now == most) and (seconds <= 20 or size.now == min(least, most))
    now = size.now
    size.learn(1, 1 / speeds[-1])  # the last unit of a stage is small, and says the same of the speed
    assert size.now == now


@given(st.sets(st.integers(0, 30)), st.integers(1, 12))
def test_bad_items_cost_themselves_alone(tmp_path_factory, bad, size):
    out = Records(tmp_path_factory.mktemp("u") / "r.jsonl", GradedSolution)
    items = [f"{i}" for i in range(31)]
    work = Work(frozenset(map(str, bad)))
    if len(bad) == 31 or (len(bad) >= work_units.PATIENCE and 31 - len(bad) < len(bad)):
        with pytest.raises(StageError, match="can't do"):
            go(work, items, out, size)
        return
    failed = go(work, items, out, size)
    assert {f.item for f in failed} == set(map(str, bad))
    assert out.keys() == set(items) - set(map(str, bad))


@pytest.mark.parametrize("error", [ConfigError, BackendError])
def test_what_is_wrong_for_all_ends_the_stage_and_keeps_what_came_before(tmp_path, error):
    out = Records(tmp_path / "r.jsonl", GradedSolution)
    with pytest.raises(ConfigError if error is ConfigError else StageError, match="can't do e"):
        go(Work(frozenset("e"), error), list("abcdefgh"), out, size=2)
    assert out.keys() == set("abcd")


def test_a_stage_where_nearly_everything_fails_stops_early(tmp_path):
    out = Records(tmp_path / "r.jsonl", GradedSolution)
    items = [f"{i:03}" for i in range(400)]
    seen = []
    with pytest.raises(StageError, match="same command goes on"):
        go(Work(frozenset(items[1:])), items, out, size=30, progress=seen.append)
    assert seen[-1].done < 100


def test_progress_counts_what_was_there_and_ends_at_the_total(tmp_path):
    seen = []
    go(Work(frozenset("c")), list("abcde"), Records(tmp_path / "r.jsonl", GradedSolution), 2, seen.append, already=7)
    assert (seen[0].done, seen[0].total) == (7, 12)
    assert (seen[-1].done, seen[-1].total, seen[-1].note) == (12, 12, "1 failed")
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_pair_orders_by_problem_and_sample_and_refuses_strangers():
    problems = [Problem(i, "q", "1", "t") for i in ("b", "a")]
    solutions = [Solution(f"{p}#{s}", p, s, "x", ((0, 1),)) for s in (10, 2) for p in ("a", "b")]
    assert [s.id for _, s in work_units.pair(problems, solutions)] == ["b#2", "b#10", "a#2", "a#10"]
    with pytest.raises(DataError, match="'c'"):
        work_units.pair(problems, [Solution("c#0", "c", 0, "x", ((0, 1),))])


# ---- results that come while a unit is in progress ----


@dataclass(frozen=True)
class Several:
    """Makes the records of items (name, indices). Raises each given error once, before the record of this key."""

    errors: dict

    def __call__(self, unit):
        for key in (key for item in unit for key in keys(item)):
            if key in self.errors:
                raise self.errors.pop(key)
            yield record(key)


def keys(item):
    return [f"{item[0]}.{i}" for i in item[1]]


class MapOnly:
    """A user's own executor, which has `map` alone."""

    def map(self, work, units):
        return map(work, units)


KINDS = st.sampled_from([ValueError, MemoryError, BackendError, KeyboardInterrupt])


@given(
    st.lists(st.integers(0, 4), max_size=8),
    st.integers(1, 12),
    st.dictionaries(st.tuples(st.integers(0, 7), st.integers(0, 3)), KINDS, max_size=6),
    st.sampled_from([SerialExecutor(), MapOnly()]),
)
def test_errors_at_any_point_lose_nothing_that_was_stored_and_double_nothing(
    tmp_path_factory, counts, size, kinds, executor
):
    path = tmp_path_factory.mktemp("u") / "r.jsonl"
    work = Several({f"{n}.{i}": kind("at any point") for (n, i), kind in kinds.items()})
    expected = [f"{n}.{i}" for n, count in enumerate(counts) for i in range(count)]
    for _ in range(len(kinds) + 1):
        with Records(path, GradedSolution) as out:
            before = out.keys()
            missing = [(n, [i for i in range(count) if f"{n}.{i}" not in before]) for n, count in enumerate(counts)]
            todo = [item for item in missing if item[1]]
            try:
                go(
                    work,
                    todo,
                    out,
                    size,
                    name=lambda x: f"{x[0]}",
                    weigh=lambda x: len(x[1]),
                    keys=keys,
                    executor=executor,
                )
            except (StageError, KeyboardInterrupt):
                continue
            finally:
                assert before <= out.keys()
    assert sorted(r.key for r in Records(path, GradedSolution)) == sorted(expected)


@dataclass(frozen=True)
class Looking:
    """Notes, before each record, which records are in the file and how far the progress is, and waits for them."""

    out: Records
    seen: list
    noted: list

    def __call__(self, unit):
        for i, item in enumerate(unit):
            end = time.monotonic() + 20
            while (len(self.out), self.seen[-1].done) != (i, i) and time.monotonic() < end:
                time.sleep(0.01)
            self.noted.append((len(self.out), self.seen[-1].done))
            yield record(item)


def test_a_record_is_in_the_file_while_its_unit_goes_on(tmp_path):
    out, seen, noted = Records(tmp_path / "r.jsonl", GradedSolution), [], []
    go(Looking(out, seen, noted), list("abc"), out, 100, seen.append)
    assert noted == [(0, 0), (1, 1), (2, 2)]


def test_limits_are_looked_at_when_a_unit_ends(tmp_path):
    """While it runs, the quick ones have come and the others not."""
    watched = []
    out = Records(tmp_path / "r.jsonl", GradedSolution)
    go(
        Work(frozenset("c")),
        list("abcde"),
        out,
        3,
        watch=lambda records, failed: watched.append((len(records), failed)),
    )
    assert watched == [(2, 1), (2, 0)]


def test_tokens_are_counted_from_the_records_or_as_the_stage_says(tmp_path):
    def solutions(unit):
        for name in unit:
            yield Solution(f"{name}#0", name, 0, "x", ((0, 1),), tokens=7)

    seen = []
    go(solutions, list("abc"), Records(tmp_path / "a.jsonl", Solution), 2, seen.append, already=4)
    assert (seen[0].tokens, seen[-1].tokens) == (None, 21)
    go(solutions, list("abc"), Records(tmp_path / "b.jsonl", Solution), 2, seen.append, used=lambda: (1234, 99))
    assert (seen[-1].tokens, seen[-1].note) == (99, "1,234 rollouts")


def test_a_backend_that_counts_as_it_writes_has_a_speed_before_its_first_text_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(token_meter, "SETTLED", 0.0)
    seen = []

    def slow(unit):
        end = time.monotonic() + 20
        while seen[-1].tokens_per_second is None and time.monotonic() < end:
            token_meter.add(1)
            time.sleep(0.01)
        yield record(unit[0])

    go(slow, ["a"], Records(tmp_path / "r.jsonl", GradedSolution), 2, seen.append, most_tokens=10**6)
    first = next(p for p in seen if p.tokens_per_second is not None)
    assert first.done == 0 < first.tokens
    assert first.seconds_left == pytest.approx((10**6 - first.tokens) / first.tokens_per_second)


def test_without_such_a_count_a_speed_is_shown_when_a_tenth_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(work_units, "SHOW", 0.0)
    seen = []

    def solutions(unit):
        for name in unit:
            time.sleep(0.01)  # so that the clock moves
            yield Solution(name, name, 0, "x", ((0, 1),), tokens=7)

    go(solutions, list("abcdefghijklmnopqrst"), Records(tmp_path / "r.jsonl", Solution), 1, seen.append, already=40)
    assert {p.done for p in seen} == set(range(40, 61))
    assert all((p.tokens_per_second is None) == (p.done < 42) for p in seen)
    for p in (p for p in seen if p.done >= 42):
        assert p.tokens_per_second == pytest.approx(p.tokens / p.seconds, rel=0.1)
        assert p.seconds_left == pytest.approx(p.seconds * (60 - p.done) / (p.done - 40), rel=0.1)

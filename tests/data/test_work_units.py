"""Units of work: nothing is lost or done twice, and one bad item loses nothing but itself."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data import work_units
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


def go(work, items, out, size=3, progress=None, already=0):
    return work_units.run(
        "try",
        work,
        items,
        out,
        name=str,
        weigh=len,
        size=size,
        already=already,
        executor=SerialExecutor(),
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

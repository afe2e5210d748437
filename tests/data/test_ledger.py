"""Ledgers: whatever was paid for is there once, after any kill, and the sums say what it came to."""

import dataclasses
import json
import os
import pickle
import random
import resource
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.backends.scripted import ScriptedBackend
from stepmark.data import ledger as ledgers
from stepmark.data.ledger import Budget, Ledger, Recorded, Spent, spent_in
from stepmark.data.store import Records
from stepmark.errors import BackendError, BudgetReached, DataError, StageError
from stepmark.plugins import registry
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

STRANGERS = Path(__file__).parents[1] / "strangers"
Watched = registry.find("backend", str(STRANGERS / "watched.py"))
PARAMS = SamplingParams(seed=3)


def everything(_):
    return True


def rollout(prompt="p", index=0, finish=Finish.STOP, tokens=3, text="text", prompt_tokens=0, reason=""):
    return Rollout(prompt, index, text, finish, tokens, -0.1, prompt_tokens, reason)


def opened(path, price=(0.0, 0.0)):
    made = Ledger(path, price)
    made.open(everything)
    return made


def total(rollouts, price=(0.0, 0.0)):
    spent = Spent()
    for r in rollouts:
        spent = spent.and_of(r.finish, r.prompt_tokens, r.tokens, price)
    return spent


def in_child(work):
    """Runs in a forked process; its exit status is 0 when `work` returns."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


ROLLOUTS = st.lists(
    st.builds(
        Rollout,
        prompt_id=st.sampled_from(["a", "b#0@1", "ü\n", '"}']),
        index=st.integers(0, 9),
        text=st.text(st.characters(exclude_categories=()), max_size=8),
        finish=st.sampled_from(Finish),
        tokens=st.integers(0, 100),
        logprob=st.floats(-100, 0),
        prompt_tokens=st.integers(0, 100),
        reason=st.text(max_size=4),
    ),
    max_size=12,
    unique_by=lambda r: r.key,
)


# ---- the file ----


def same(a, b):
    """Whether two sums are one, money but for the order in which it was added up."""
    return dataclasses.replace(a, money=0) == dataclasses.replace(b, money=0) and a.money == pytest.approx(b.money)


@settings(max_examples=50)
@given(ROLLOUTS, st.integers(1, 4))
def test_what_was_added_is_there_and_summed_up(tmp_path_factory, rollouts, size):
    path = tmp_path_factory.mktemp("ledger") / "x.jsonl"
    price = (2.0, 8.0)
    made = opened(path, price)
    for at in range(0, len(rollouts), size):
        made.add(rollouts[at : at + size])
    assert same(made.spent, total(rollouts, price))
    made.close()
    assert same(spent_in(path.parent), total(rollouts, price))
    again = Ledger(path, price)
    found = again.open(lambda prompt: prompt != "a")
    kept = [r for r in rollouts if r.finish is not Finish.FAILED or r.prompt_id == "a"]
    assert sorted(r.key for rs in found.values() for r in rs) == sorted(r.key for r in kept if r.prompt_id != "a")
    assert [r.key for r in again.records] == [r.key for r in kept]  # the others' failures stay: nobody asks again
    # What the failures were charged is spent all the same.
    gone = total([r for r in rollouts if r not in kept], price)
    assert same(again.spent, total(kept, price) + dataclasses.replace(gone, rollouts=0, failed=0))
    assert spent_in(path.parent) == again.spent


@settings(max_examples=50)
@given(st.data())
def test_a_torn_tail_costs_the_torn_line_alone(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "x.jsonl"
    rollouts = [rollout(index=i, text="é" * i) for i in range(4)]
    made = opened(path)
    made.add(rollouts)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    if data.draw(st.booleans()):  # the next one to append mends it as well as one that opens
        made.add([rollout(index=9)])
        assert [r.index for r in made.records] == [*range(left), 9]
    else:
        again = Ledger(path)
        assert [r.index for r in again.open(everything).get("p", [])] == list(range(left))
        assert again.spent == total(rollouts[:left])
        again.add([rollout(index=9)])
        assert [r.index for r in again.records] == [*range(left), 9]


@pytest.mark.parametrize(
    "line", ["5", "[1]", '"a"', "null", "{}", "{", '{"key":"a#0"}', '{"key":"a#0","prompt_id":"a"}']
)
def test_a_line_that_is_no_rollout_is_named(tmp_path, line):
    made = opened(tmp_path / "x.jsonl")
    made.add([rollout()])
    with made.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not a rollout"):
        Ledger(made.path).open(everything)


def test_failed_rollouts_are_kept_until_they_are_asked_for_again(tmp_path):
    made = opened(tmp_path / "x.jsonl")
    failed = replace(rollout("b", 1, Finish.FAILED, 0), reason="the server was down")
    made.add([rollout("a"), failed, rollout("b")])
    assert made.spent == Spent(rollouts=3, failed=1, tokens=6)
    other = Ledger(made.path)
    assert list(other.open(lambda prompt: prompt == "a")) == ["a"]
    assert failed in list(other.records)
    assert {p: [r.index for r in rs] for p, rs in other.open(everything).items()} == {"a": [0], "b": [0]}
    assert other.spent == Spent(rollouts=2, tokens=6)
    other.add([rollout("b", 1)])
    assert [r.key for r in other.records] == ["a#0", "b#0", "b#1"]


def test_a_rollout_that_came_twice_is_paid_twice_and_counted_once(tmp_path):
    made = opened(tmp_path / "x.jsonl")
    made.add([rollout(), rollout(index=1)])
    made.add([rollout(), rollout("q", 0, Finish.FAILED), rollout("q")])
    found = made.open(everything)
    assert {p: [r.index for r in rs] for p, rs in found.items()} == {"p": [0, 1], "q": [0]}
    assert made.spent.rollouts == 4


def test_it_travels_as_its_path(tmp_path):
    made = opened(tmp_path / "x.jsonl", (1.0, 2.0))
    made.add([rollout()])
    other = pickle.loads(pickle.dumps(made))  # noqa: S301
    other.add([rollout(index=1)])
    made.add([rollout(index=2)])
    assert [r.index for r in made.records] == [0, 1, 2]
    other.sum_up()
    made.sum_up()
    assert same(other.spent, made.spent)
    assert same(made.spent, total(made.records, (1.0, 2.0)))
    made.add([rollout(index=3)])
    made.open(everything)  # what it had not summed up yet is among the lines
    assert same(made.spent, total(made.records, (1.0, 2.0)))


def test_many_processes_append(tmp_path):
    path = tmp_path / "x.jsonl"
    price = (1.0, 3.0)
    opened(path, price)

    def work(name):
        own, rng = Ledger(path, price), random.Random(name)
        for i in range(40):
            own.add(
                [rollout(f"{name}", 2 * i + j, tokens=rng.randrange(9), text="x" * rng.randrange(5000)) for j in (0, 1)]
            )
        own.close()

    children = [in_child(lambda name=name: work(name)) for name in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    made = Ledger(path, price)
    keys = [r.key for r in made.records]
    assert sorted(keys) == sorted(f"{name}#{i}" for name in range(4) for i in range(80))
    spent = made.spent
    made.open(everything)
    assert same(made.spent, spent)
    assert same(spent, total(made.records, price))


def test_kills_leave_whole_lines_and_exact_sums(tmp_path):
    path, rng, there = tmp_path / "x.jsonl", random.Random(3), 0

    def work():
        own = Ledger(path)
        done = len(own.open(everything).get("p", []))
        for i in range(done, 10**6):
            own.add([rollout(index=i, text="x" * 500)])

    for _ in range(12):
        child = in_child(work)
        deadline = time.monotonic() + 30
        while len(Records(path, Rollout)) <= there:
            assert time.monotonic() < deadline
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = len(Records(path, Rollout))
        made = opened(path)
        assert [r.index for r in made.records] == list(range(there))
        assert made.spent == Spent(there, tokens=3 * there)


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path):
    path = tmp_path / "x.jsonl"
    opened(path).add([rollout()])
    before, spent = path.read_bytes(), Ledger(path).spent

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(StageError, match="Make room"):
            Ledger(path).add([rollout(index=1, text="x" * 3000)])

    assert os.waitpid(in_child(work), 0)[1] == 0
    assert path.read_bytes() == before
    assert Ledger(path).spent == spent


# ---- a backend behind a ledger ----


class Remote(Watched):
    remote: ClassVar[bool] = True


@pytest.mark.parametrize("kind", [Watched, Remote])
def test_known_rollouts_are_not_asked_for(tmp_path, kind):
    made, backend = opened(tmp_path / "x.jsonl"), kind()
    recorded = Recorded(backend, made, {r.key: r for r in (rollout("a", 1), rollout("a", 4), rollout("b", 0))})
    prompts = [Prompt("a", "q", n=6), Prompt("b", "q", n=1), Prompt("c", "q", n=2, first=5)]
    got = sorted(r.key for r in recorded.sample(prompts, PARAMS))
    assert got == ["a#0", "a#1", "a#2", "a#3", "a#4", "a#5", "b#0", "c#5", "c#6"]
    assert backend.asked == ["a#0", "a#2", "a#3", "a#5", "c#5", "c#6"]
    assert [r.key for r in made.records] == backend.asked
    assert sorted(r.key for r in recorded.sample(prompts, PARAMS)) == got  # now all are known
    assert len(backend.asked) == 6


def test_each_rollout_of_a_remote_backend_is_on_disk_before_it_is_seen(tmp_path):
    made = opened(tmp_path / "x.jsonl")
    for i, r in enumerate(Recorded(Remote(), made).sample([Prompt("a", "q", n=5)], PARAMS), 1):
        assert [x.key for x in made.records][-1] == r.key
        assert made.spent.rollouts == i


@pytest.mark.parametrize("kind", [Watched, Remote])
def test_a_backend_that_breaks_and_a_reader_that_stops_lose_nothing(tmp_path, kind):
    made, backend = opened(tmp_path / "x.jsonl"), kind(breaks="a#100")
    recorded = Recorded(backend, made)
    with pytest.raises(BackendError):
        list(recorded.sample([Prompt("a", "q", n=200)], PARAMS))
    assert [r.index for r in made.records] == list(range(100)) == [r.index for r in recorded.known.values()]
    rollouts = Recorded(backend, made).sample([Prompt("b", "q", n=90)], PARAMS)
    for _ in range(3):
        next(rollouts)
    rollouts.close()
    assert [r.key for r in made.records][100:] == backend.asked[100:]
    assert len(set(backend.asked)) == len(backend.asked)


def test_a_budget_ends_it_and_a_larger_one_goes_on(tmp_path):
    prompts = [Prompt(f"p{i}", "q", n=7) for i in range(60)]
    backend, path = Watched(), tmp_path / "x.jsonl"
    # Money is counted over all ledgers of the directory.
    opened(tmp_path / "other.jsonl", (0.0, 1e6)).add([rollout(tokens=50)])
    made = opened(path, backend.price)
    with pytest.raises(BudgetReached, match=r"money .* of 200.*larger --budget"):
        list(Recorded(backend, made, budget=Budget(money=200)).sample(prompts, PARAMS))
    assert 150 <= made.spent.money < 150 + ledgers.SLICE
    assert made.spent.money == len(backend.asked) == len(list(made.records))
    with pytest.raises(BudgetReached):  # a budget that was reached before lets nothing through
        next(Recorded(backend, made, budget=Budget(money=1)).sample(prompts[-1:], PARAMS))
    known = {r.key: r for rs in made.open(everything).values() for r in rs}
    got = list(Recorded(backend, made, known, Budget(money=1000)).sample(prompts, PARAMS))
    assert sorted(r.key for r in got) == sorted(f"{p.id}#{i}" for p in prompts for i in range(7))
    assert len(backend.asked) == 420 == len(set(backend.asked))
    # All known: there is nothing to pay for, and so nothing to stop.
    known = {r.key: r for r in got}
    assert len(list(Recorded(backend, made, known, Budget(money=1)).sample(prompts, PARAMS))) == 420


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5)), max_size=6))
def test_slices_lose_nothing(tmp_path_factory, sizes):
    backend, made = Watched(), Ledger(tmp_path_factory.mktemp("ledger") / "x.jsonl")
    prompts = [Prompt(f"p{i}", "q", n=n, first=first) for i, (n, first) in enumerate(sizes)]
    got = [r.key for r in Recorded(backend, made, budget=Budget(rollouts=1e9)).sample(prompts, PARAMS)]
    assert got == backend.asked == [f"{p.id}#{i}" for p in prompts for i in range(p.first, p.first + p.n)]


def test_the_sums_file_is_for_others_to_read(tmp_path):
    made = opened(tmp_path / "x.jsonl", (1.0, 2.0))
    made.add([rollout(prompt_tokens=10**6, tokens=10**6)])
    assert json.loads((tmp_path / "x.spent.json").read_text()) == asdict(Spent(1, 0, 10**6, 10**6, 3.0))
    recorded = Recorded(ScriptedBackend(default=("a b",)), made)
    assert pickle.loads(pickle.dumps(recorded)).ledger.path == made.path  # noqa: S301


def test_what_a_failed_rollout_was_charged_is_not_forgotten(tmp_path):
    made = opened(tmp_path / "x.jsonl", (1e6, 2e6))
    made.add(
        [rollout(tokens=3), dataclasses.replace(rollout(index=1, tokens=2), finish=Finish.FAILED, prompt_tokens=5)]
    )
    made.close()
    before = spent_in(tmp_path)
    assert before.money == 3 * 2 + 5 + 2 * 2
    for _ in range(2):  # taken out to be tried again; opened once more, nothing is counted twice
        again = Ledger(tmp_path / "x.jsonl", (1e6, 2e6))
        assert [r.index for rs in again.open(everything).values() for r in rs] == [0]
        found = spent_in(tmp_path)
        assert (found.rollouts, found.failed) == (1, 0)
        assert (found.tokens, found.prompt_tokens, found.money) == (before.tokens, before.prompt_tokens, before.money)

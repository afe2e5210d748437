"""Ledgers: after any kill, every rollout that was paid for is stored once, and the totals are exact."""

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
    ledger = Ledger(path, price)
    ledger.open(everything)
    return ledger


def total(rollouts, price=(0.0, 0.0)):
    spent = Spent()
    for r in rollouts:
        spent = spent.and_of(r.finish, r.prompt_tokens, r.tokens, price)
    return spent


def in_child(work):
    """Runs `work` in a forked process, whose exit status is 0 if `work` returns."""
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
    """Whether two totals are equal; money may differ by the order in which it was added."""
    return dataclasses.replace(a, money=0) == dataclasses.replace(b, money=0) and a.money == pytest.approx(b.money)


@settings(max_examples=50)
@given(ROLLOUTS, st.integers(1, 4))
def test_what_was_added_is_there_and_summed_up(tmp_path_factory, rollouts, size):
    path = tmp_path_factory.mktemp("ledger") / "x.jsonl"
    price = (2.0, 8.0)
    ledger = opened(path, price)
    for start in range(0, len(rollouts), size):
        ledger.add(rollouts[start : start + size])
    assert same(ledger.spent, total(rollouts, price))
    ledger.close()
    assert same(spent_in(path.parent), total(rollouts, price))
    reopened = Ledger(path, price)
    by_prompt = reopened.open(lambda prompt: prompt != "a")
    kept = [r for r in rollouts if r.finish is not Finish.FAILED or r.prompt_id == "a"]
    assert sorted(r.key for rs in by_prompt.values() for r in rs) == sorted(r.key for r in kept if r.prompt_id != "a")
    assert [r.key for r in reopened.records] == [r.key for r in kept]  # failed rollouts of other prompts stay
    # The charges of the removed failed rollouts stay in the totals.
    removed = total([r for r in rollouts if r not in kept], price)
    assert same(reopened.spent, total(kept, price) + dataclasses.replace(removed, rollouts=0, failed=0))
    assert spent_in(path.parent) == reopened.spent


@settings(max_examples=50)
@given(st.data())
def test_a_torn_tail_costs_the_torn_line_alone(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "x.jsonl"
    rollouts = [rollout(index=i, text="é" * i) for i in range(4)]
    ledger = opened(path)
    ledger.add(rollouts)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    if data.draw(st.booleans()):  # an append repairs the file, and so does opening it
        ledger.add([rollout(index=9)])
        assert [r.index for r in ledger.records] == [*range(complete), 9]
    else:
        reopened = Ledger(path)
        assert [r.index for r in reopened.open(everything).get("p", [])] == list(range(complete))
        assert reopened.spent == total(rollouts[:complete])
        reopened.add([rollout(index=9)])
        assert [r.index for r in reopened.records] == [*range(complete), 9]


@pytest.mark.parametrize(
    "line", ["5", "[1]", '"a"', "null", "{}", "{", '{"key":"a#0"}', '{"key":"a#0","prompt_id":"a"}']
)
def test_a_line_that_is_no_rollout_is_named(tmp_path, line):
    ledger = opened(tmp_path / "x.jsonl")
    ledger.add([rollout()])
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not a rollout"):
        Ledger(ledger.path).open(everything)


def test_failed_rollouts_are_kept_until_they_are_asked_for_again(tmp_path):
    ledger = opened(tmp_path / "x.jsonl")
    failed = replace(rollout("b", 1, Finish.FAILED, 0), reason="the server was down")
    ledger.add([rollout("a"), failed, rollout("b")])
    assert ledger.spent == Spent(rollouts=3, failed=1, tokens=6)
    reopened = Ledger(ledger.path)
    assert list(reopened.open(lambda prompt: prompt == "a")) == ["a"]
    assert failed in list(reopened.records)
    assert {p: [r.index for r in rs] for p, rs in reopened.open(everything).items()} == {"a": [0], "b": [0]}
    assert reopened.spent == Spent(rollouts=2, tokens=6)
    reopened.add([rollout("b", 1)])
    assert [r.key for r in reopened.records] == ["a#0", "b#0", "b#1"]


def test_a_rollout_that_came_twice_is_paid_twice_and_counted_once(tmp_path):
    ledger = opened(tmp_path / "x.jsonl")
    ledger.add([rollout(), rollout(index=1)])
    ledger.add([rollout(), rollout("q", 0, Finish.FAILED), rollout("q")])
    by_prompt = ledger.open(everything)
    assert {p: [r.index for r in rs] for p, rs in by_prompt.items()} == {"p": [0, 1], "q": [0]}
    assert ledger.spent.rollouts == 4


def test_it_travels_as_its_path(tmp_path):
    ledger = opened(tmp_path / "x.jsonl", (1.0, 2.0))
    ledger.add([rollout()])
    copy = pickle.loads(pickle.dumps(ledger))  # noqa: S301
    copy.add([rollout(index=1)])
    ledger.add([rollout(index=2)])
    assert [r.index for r in ledger.records] == [0, 1, 2]
    copy.sum_up()
    ledger.sum_up()
    assert same(copy.spent, ledger.spent)
    assert same(ledger.spent, total(ledger.records, (1.0, 2.0)))
    ledger.add([rollout(index=3)])
    ledger.open(everything)  # rollouts that were not in the totals yet are counted from the lines
    assert same(ledger.spent, total(ledger.records, (1.0, 2.0)))


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
    ledger = Ledger(path, price)
    keys = [r.key for r in ledger.records]
    assert sorted(keys) == sorted(f"{name}#{i}" for name in range(4) for i in range(80))
    spent = ledger.spent
    ledger.open(everything)
    assert same(ledger.spent, spent)
    assert same(spent, total(ledger.records, price))


def test_kills_leave_whole_lines_and_exact_sums(tmp_path):
    path, rng, stored = tmp_path / "x.jsonl", random.Random(3), 0

    def work():
        own = Ledger(path)
        done = len(own.open(everything).get("p", []))
        for i in range(done, 10**6):
            own.add([rollout(index=i, text="x" * 500)])

    for _ in range(12):
        child = in_child(work)
        deadline = time.monotonic() + 30
        while len(Records(path, Rollout)) <= stored:
            assert time.monotonic() < deadline
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        stored = len(Records(path, Rollout))
        ledger = opened(path)
        assert [r.index for r in ledger.records] == list(range(stored))
        assert ledger.spent == Spent(stored, tokens=3 * stored)


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
    ledger, backend = opened(tmp_path / "x.jsonl"), kind()
    recorded = Recorded(backend, ledger, {r.key: r for r in (rollout("a", 1), rollout("a", 4), rollout("b", 0))})
    prompts = [Prompt("a", "q", n=6), Prompt("b", "q", n=1), Prompt("c", "q", n=2, first=5)]
    got = sorted(r.key for r in recorded.sample(prompts, PARAMS))
    assert got == ["a#0", "a#1", "a#2", "a#3", "a#4", "a#5", "b#0", "c#5", "c#6"]
    assert backend.asked == ["a#0", "a#2", "a#3", "a#5", "c#5", "c#6"]
    assert [r.key for r in ledger.records] == backend.asked
    assert sorted(r.key for r in recorded.sample(prompts, PARAMS)) == got  # all are known now
    assert len(backend.asked) == 6


def test_each_rollout_of_a_remote_backend_is_on_disk_before_it_is_seen(tmp_path):
    ledger = opened(tmp_path / "x.jsonl")
    for i, r in enumerate(Recorded(Remote(), ledger).sample([Prompt("a", "q", n=5)], PARAMS), 1):
        assert [x.key for x in ledger.records][-1] == r.key
        assert ledger.spent.rollouts == i


@pytest.mark.parametrize("kind", [Watched, Remote])
def test_a_backend_that_breaks_and_a_reader_that_stops_lose_nothing(tmp_path, kind):
    ledger, backend = opened(tmp_path / "x.jsonl"), kind(breaks="a#100")
    recorded = Recorded(backend, ledger)
    with pytest.raises(BackendError):
        list(recorded.sample([Prompt("a", "q", n=200)], PARAMS))
    assert [r.index for r in ledger.records] == list(range(100)) == [r.index for r in recorded.known.values()]
    rollouts = Recorded(backend, ledger).sample([Prompt("b", "q", n=90)], PARAMS)
    for _ in range(3):
        next(rollouts)
    rollouts.close()
    assert [r.key for r in ledger.records][100:] == backend.asked[100:]
    assert len(set(backend.asked)) == len(backend.asked)


def test_a_budget_ends_it_and_a_larger_one_goes_on(tmp_path):
    prompts = [Prompt(f"p{i}", "q", n=7) for i in range(60)]
    backend, path = Watched(), tmp_path / "x.jsonl"
    # Money is counted over all ledgers of the directory.
    opened(tmp_path / "other.jsonl", (0.0, 1e6)).add([rollout(tokens=50)])
    ledger = opened(path, backend.price)
    with pytest.raises(BudgetReached, match=r"money .* of 200.*larger --budget"):
        list(Recorded(backend, ledger, budget=Budget(money=200)).sample(prompts, PARAMS))
    assert 150 <= ledger.spent.money < 150 + ledgers.SLICE
    assert ledger.spent.money == len(backend.asked) == len(list(ledger.records))
    with pytest.raises(BudgetReached):  # with a budget that is already reached, nothing is sampled
        next(Recorded(backend, ledger, budget=Budget(money=1)).sample(prompts[-1:], PARAMS))
    known = {r.key: r for rs in ledger.open(everything).values() for r in rs}
    got = list(Recorded(backend, ledger, known, Budget(money=1000)).sample(prompts, PARAMS))
    assert sorted(r.key for r in got) == sorted(f"{p.id}#{i}" for p in prompts for i in range(7))
    assert len(backend.asked) == 420 == len(set(backend.asked))
    # All rollouts are known: nothing is paid for, so nothing is stopped.
    known = {r.key: r for r in got}
    assert len(list(Recorded(backend, ledger, known, Budget(money=1)).sample(prompts, PARAMS))) == 420


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5)), max_size=6))
def test_slices_lose_nothing(tmp_path_factory, sizes):
    backend, ledger = Watched(), Ledger(tmp_path_factory.mktemp("ledger") / "x.jsonl")
    prompts = [Prompt(f"p{i}", "q", n=n, first=first) for i, (n, first) in enumerate(sizes)]
    got = [r.key for r in Recorded(backend, ledger, budget=Budget(rollouts=1e9)).sample(prompts, PARAMS)]
    assert got == backend.asked == [f"{p.id}#{i}" for p in prompts for i in range(p.first, p.first + p.n)]


def test_the_sums_file_is_for_others_to_read(tmp_path):
    ledger = opened(tmp_path / "x.jsonl", (1.0, 2.0))
    ledger.add([rollout(prompt_tokens=10**6, tokens=10**6)])
    assert json.loads((tmp_path / "x.spent.json").read_text()) == asdict(Spent(1, 0, 10**6, 10**6, 3.0))
    recorded = Recorded(ScriptedBackend(default=("a b",)), ledger)
    assert pickle.loads(pickle.dumps(recorded)).ledger.path == ledger.path  # noqa: S301


def test_what_a_failed_rollout_was_charged_is_not_forgotten(tmp_path):
    ledger = opened(tmp_path / "x.jsonl", (1e6, 2e6))
    ledger.add(
        [rollout(tokens=3), dataclasses.replace(rollout(index=1, tokens=2), finish=Finish.FAILED, prompt_tokens=5)]
    )
    ledger.close()
    before = spent_in(tmp_path)
    assert before.money == 3 * 2 + 5 + 2 * 2
    for _ in range(2):  # opening removes the failed rollout; opening again counts nothing twice
        reopened = Ledger(tmp_path / "x.jsonl", (1e6, 2e6))
        assert [r.index for rs in reopened.open(everything).values() for r in rs] == [0]
        after = spent_in(tmp_path)
        assert (after.rollouts, after.failed) == (1, 0)
        assert (after.tokens, after.prompt_tokens, after.money) == (before.tokens, before.prompt_tokens, before.money)

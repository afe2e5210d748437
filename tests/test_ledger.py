"""Ledgers: whatever was paid for is there once, after any kill, and the sums say what it came to."""

import dataclasses
import json
import os
import pickle
import random
import resource
import signal
import time
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark import ledger as ledgers
from stepmark import plugins
from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import BackendError, BudgetReached, ConfigError, DataError, StageError
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.label import label
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.ledger import Budget, Ledger, Recorded, Spent, spent_in
from stepmark.outcomes import Limits
from stepmark.prompts import Template
from stepmark.protocols import Tools
from stepmark.sample import sample
from stepmark.steps import split
from stepmark.store import Records
from stepmark.types import Finish, LabelledSolution, Prompt, Rollout, SamplingParams, Solution
from stepmark.units import pair

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


@dataclass(frozen=True)
class Watched:
    """Says "INDEX", notes what it was asked for, and breaks or fails where it is told to."""

    asked: list = field(default_factory=list)
    fails: frozenset = frozenset()  # keys
    breaks: str = ""  # the key before which it breaks
    price: tuple = (0.0, 1e6)

    def sample(self, prompts, params):
        for prompt in prompts:
            for index in range(prompt.first, prompt.first + prompt.n):
                key = f"{prompt.id}#{index}"
                if key == self.breaks:
                    raise BackendError("broken")
                self.asked.append(key)
                if key in self.fails:
                    yield Rollout(prompt.id, index, "", Finish.FAILED, 0, reason="no")
                else:
                    yield Rollout(prompt.id, index, f"{index}", Finish.STOP, 1)


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


# ---- stages with ledgers ----


def sums(request, count):
    task = plugins.load("task", str(request.path.parent / "strangers" / "task.py"), size=count)
    return task.load("train").problems


def test_sampling_pays_once_and_tries_what_failed_again(tmp_path, request):
    problems = sums(request, 5)
    made = Ledger(tmp_path / "ledger" / "x.jsonl")

    def draw(backend, n, name="solutions", **more):
        out = Records(tmp_path / f"{name}.jsonl", Solution)
        with out:
            done = sample(
                problems,
                backend,
                out,
                n=n,
                context=Template(),
                params=PARAMS,
                steps="line",
                executor=SerialExecutor(),
                ledger=made,
                **more,
            )
        return done, sorted(s.id for s in out)

    wanted = sorted(f"{p.id}#{i}" for p in problems for i in range(4))
    flaky = Watched(fails=frozenset({"train-1#2", "train-3#0"}))
    done, there = draw(flaky, 4)
    assert (done.solutions, {f.item for f in done.failed}) == (18, flaky.fails)
    assert made.spent == Spent(20, failed=2, tokens=18)
    whole = Watched()
    done, there = draw(whole, 4)
    assert (there, done.failed, sorted(whole.asked)) == (wanted, (), sorted(flaky.fails))
    # The solutions are lost, what was paid for is not.
    done, there = draw(Watched(), 4, "again")
    assert there == wanted
    assert len(list(made.records)) == 20
    with pytest.raises(ConfigError, match="needs a ledger"):
        sample(
            problems,
            whole,
            Records(tmp_path / "x.jsonl", Solution),
            n=1,
            context=Template(),
            params=PARAMS,
            steps="line",
            executor=SerialExecutor(),
            budget=Budget(money=1),
        )


def test_too_many_failures_stop_sampling_with_what_came(tmp_path, request):
    out = Records(tmp_path / "solutions.jsonl", Solution)
    flaky = Watched(fails=frozenset(f"train-{i}#{j}" for i in range(40) for j in (0, 1)))
    with pytest.raises(StageError, match=r"\(40%\) were failed, more than the 20% allowed"):
        sample(
            sums(request, 40),
            flaky,
            out,
            n=5,
            context=Template(),
            params=PARAMS,
            steps="line",
            executor=SerialExecutor(),
            ledger=Ledger(tmp_path / "ledger" / "x.jsonl"),
            limits=Limits(after=50),
            rows=10,
        )
    assert len(out) == 30
    assert len(flaky.asked) == 50


def test_labelling_goes_on_after_a_budget_and_a_break(tmp_path, request):
    problems = sums(request, 12)
    solutions = [Solution(f"{p.id}#0", p.id, 0, p.reference, split(p.reference)) for p in problems]
    made = Ledger(tmp_path / "ledger" / "completer.jsonl", (0.0, 1e6))

    def run(backend, name="labels", budget=None):
        out = Records(tmp_path / f"{name}.jsonl", LabelledSolution)
        tools = Tools(Numeric(), Template(), PARAMS, backend)
        with out:
            how = {"ledgers": {"completer": made}, "budget": budget, "executor": SerialExecutor(), "steps": 9}
            label(pair(problems, solutions), MonteCarlo(rollouts=5), tools, out, **how)
        return {x.key: x for x in out}

    first, second, third = Watched(), Watched(breaks="train-9#0@1#3"), Watched()
    with pytest.raises(BudgetReached):
        run(first, budget=Budget(money=30))
    assert 30 <= len(first.asked) < 30 + ledgers.SLICE
    with pytest.raises(StageError, match="broken"):
        run(second)
    labels = run(third)
    asked = first.asked + second.asked + third.asked
    assert sorted(asked) == sorted(f"{s.id}@{i}#{j}" for s in solutions for i in (0, 1) for j in range(5))
    assert made.spent.money == len(asked) == 120
    assert len(labels) == 12
    assert run(Watched(), "anew") == labels  # made from the ledger alone


def test_a_labeller_that_trips_pays_nothing_again(tmp_path, request):
    """A unit that raises is done again item by item: what it had drawn is known by then."""
    problems = sums(request, 6)
    solutions = [Solution(f"{p.id}#0", p.id, 0, p.reference, split(p.reference)) for p in problems]
    backend, made = Watched(), Ledger(tmp_path / "ledger" / "completer.jsonl")

    @dataclass(frozen=True)
    class Trips:
        def grade(self, text, problem):
            if problem.id == "train-4":
                raise ValueError("can't")
            return Numeric().grade(text, problem)

    out = Records(tmp_path / "labels.jsonl", LabelledSolution)
    tools = Tools(Trips(), Template(), PARAMS, backend)
    how = {"ledgers": {"completer": made}, "executor": SerialExecutor()}
    done = label(pair(problems, solutions), MonteCarlo(rollouts=4), tools, out, **how)
    assert [f.item for f in done.failed] == ["train-4#0"]
    assert len(backend.asked) == len(set(backend.asked))
    assert sorted(r.key for r in made.records) == sorted(backend.asked)


def test_the_sums_file_is_for_others_to_read(tmp_path):
    made = opened(tmp_path / "x.jsonl", (1.0, 2.0))
    made.add([rollout(prompt_tokens=10**6, tokens=10**6)])
    assert json.loads((tmp_path / "x.spent.json").read_text()) == asdict(Spent(1, 0, 10**6, 10**6, 3.0))
    recorded = Recorded(ScriptedBackend(default=("a b",)), made)
    assert pickle.loads(pickle.dumps(recorded)).ledger.path == made.path  # noqa: S301


def test_a_labeller_that_names_its_prompts_otherwise_fails_for_its_own_reason(tmp_path, request):
    class Other:
        def label(self, units, tools):
            list(tools.completer.sample([Prompt(f"mine-{u.solution.id}", "") for u in units], tools.params))
            raise ValueError("a fault of its own")

    problems = sums(request, 2)
    solutions = [Solution(f"{p.id}#0", p.id, 0, p.reference, split(p.reference)) for p in problems]
    tools = Tools(Numeric(), Template(), PARAMS, ScriptedBackend(default=("text",)))
    made = {"completer": Ledger(tmp_path / "ledger" / "completer.jsonl")}
    out = Records(tmp_path / "labels.jsonl", LabelledSolution)
    with pytest.raises(StageError, match="a fault of its own"):
        label(pair(problems, solutions), Other(), tools, out, ledgers=made, executor=SerialExecutor())


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

"""Stages with ledgers: what was paid for is used, whatever ended the sitting that paid."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from stepmark.backends.scripted import ScriptedBackend
from stepmark.data import ledger as ledgers
from stepmark.data.ledger import Budget, Ledger, Spent
from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records
from stepmark.data.work_units import pair
from stepmark.errors import BudgetReached, ConfigError, StageError
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.stages.label import label
from stepmark.stages.sample import sample
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import LabelledSolution, Prompt, SamplingParams, Solution

STRANGERS = Path(__file__).parents[1] / "strangers"
Watched = registry.find("backend", str(STRANGERS / "watched.py"))
PARAMS = SamplingParams(seed=3)


def everything(_):
    return True


def opened(path, price=(0.0, 0.0)):
    made = Ledger(path, price)
    made.open(everything)
    return made


def sums(request, count):
    task = registry.load("task", str(request.path.parents[1] / "strangers" / "task.py"), size=count)
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

"""Stages with ledgers: rollouts that are paid for are used again, however the earlier call ended."""

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


def sums(request, count):
    task = registry.load("task", str(request.path.parents[1] / "strangers" / "task.py"), size=count)
    return task.load("train").problems


def test_sampling_pays_once_and_tries_what_failed_again(tmp_path, request):
    problems = sums(request, 5)
    ledger = Ledger(tmp_path / "ledger" / "x.jsonl")

    def draw(backend, n, name="solutions", **options):
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
                ledger=ledger,
                **options,
            )
        return done, sorted(s.id for s in out)

    expected_ids = sorted(f"{p.id}#{i}" for p in problems for i in range(4))
    flaky = Watched(fails=frozenset({"train-1#2", "train-3#0"}))
    done, solution_ids = draw(flaky, 4)
    assert (done.solutions, {f.item for f in done.failed}) == (18, flaky.fails)
    assert ledger.spent == Spent(20, failed=2, tokens=18)
    whole = Watched()
    done, solution_ids = draw(whole, 4)
    assert (solution_ids, done.failed, sorted(whole.asked)) == (expected_ids, (), sorted(flaky.fails))
    # Another solutions file: all rollouts come from the ledger.
    done, solution_ids = draw(Watched(), 4, "again")
    assert solution_ids == expected_ids
    assert len(list(ledger.records)) == 20
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
    ledger = Ledger(tmp_path / "ledger" / "completer.jsonl", (0.0, 1e6))

    def run(backend, name="labels", budget=None):
        out = Records(tmp_path / f"{name}.jsonl", LabelledSolution)
        tools = Tools(Numeric(), Template(), PARAMS, backend)
        with out:
            options = {"ledgers": {"completer": ledger}, "budget": budget, "executor": SerialExecutor(), "steps": 9}
            label(pair(problems, solutions), MonteCarlo(rollouts=5), tools, out, **options)
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
    assert ledger.spent.money == len(asked) == 120
    assert len(labels) == 12
    assert run(Watched(), "anew") == labels  # made from the ledger alone


def test_the_progress_of_labelling_has_the_rollouts_and_tokens_of_this_call(tmp_path, request):
    problems = sums(request, 4)
    solutions = [Solution(f"{p.id}#0", p.id, 0, p.reference, split(p.reference)) for p in problems]
    tools = Tools(Numeric(), Template(), PARAMS, Watched())
    by_role = {"completer": Ledger(tmp_path / "ledger" / "completer.jsonl")}
    notes = []
    for count in (3, 4):  # the second call finds the rollouts of the first
        seen = []
        out = Records(tmp_path / "labels.jsonl", LabelledSolution)
        options = {"ledgers": by_role, "executor": SerialExecutor(), "progress": seen.append}
        with out:
            label(pair(problems, solutions)[:count], MonteCarlo(rollouts=5), tools, out, **options)
        notes.append((seen[-1].done, seen[-1].note, seen[-1].tokens))
    assert notes == [(9, "30 rollouts", 30), (12, "10 rollouts", 10)]


def test_a_labeller_that_trips_pays_nothing_again(tmp_path, request):
    """A unit that raises is done again item by item, with the rollouts that it had drawn."""
    problems = sums(request, 6)
    solutions = [Solution(f"{p.id}#0", p.id, 0, p.reference, split(p.reference)) for p in problems]
    backend, ledger = Watched(), Ledger(tmp_path / "ledger" / "completer.jsonl")

    @dataclass(frozen=True)
    class Trips:
        def grade(self, text, problem):
            if problem.id == "train-4":
                raise ValueError("can't")
            return Numeric().grade(text, problem)

    out = Records(tmp_path / "labels.jsonl", LabelledSolution)
    tools = Tools(Trips(), Template(), PARAMS, backend)
    options = {"ledgers": {"completer": ledger}, "executor": SerialExecutor()}
    done = label(pair(problems, solutions), MonteCarlo(rollouts=4), tools, out, **options)
    assert [f.item for f in done.failed] == ["train-4#0"]
    assert len(backend.asked) == len(set(backend.asked))
    assert sorted(r.key for r in ledger.records) == sorted(backend.asked)


def test_a_labeller_that_names_its_prompts_otherwise_fails_for_its_own_reason(tmp_path, request):
    class Other:
        def label(self, units, tools):
            list(tools.completer.sample([Prompt(f"mine-{u.solution.id}", "") for u in units], tools.params))
            raise ValueError("a fault of its own")

    problems = sums(request, 2)
    solutions = [Solution(f"{p.id}#0", p.id, 0, p.reference, split(p.reference)) for p in problems]
    tools = Tools(Numeric(), Template(), PARAMS, ScriptedBackend(default=("text",)))
    by_role = {"completer": Ledger(tmp_path / "ledger" / "completer.jsonl")}
    out = Records(tmp_path / "labels.jsonl", LabelledSolution)
    with pytest.raises(StageError, match="a fault of its own"):
        label(pair(problems, solutions), Other(), tools, out, ledgers=by_role, executor=SerialExecutor())

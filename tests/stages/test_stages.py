"""The stages sample, grade, label and score, with real executors and stores, and the plug-ins in tests/strangers."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.backends.scripted import ScriptedBackend
from stepmark.data import work_units
from stepmark.data.store import Records
from stepmark.errors import ConfigError, StageError
from stepmark.executors.processes import ProcessesExecutor
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.stages.grade import grade
from stepmark.stages.label import distinct, label
from stepmark.stages.sample import sample
from stepmark.stages.score import score
from stepmark.text.prompts import Template
from stepmark.types import (
    Finish,
    GradedSolution,
    LabelledSolution,
    Problem,
    SamplingParams,
    Solution,
    Verdict,
    Verification,
)

STRANGERS = Path(__file__).parents[1] / "strangers"
SERIAL = SerialExecutor()


def backend(**options):
    return registry.load("backend", str(STRANGERS / "backend.py"), **options)


def sums(count=6, split="train"):
    return registry.load("task", str(STRANGERS / "task.py"), size=count).load(split).problems


def draw(problems, out, n, generator=None, executor=SERIAL, **options):
    return sample(
        problems,
        generator or backend(),
        out,
        n=n,
        context=Template(),
        params=SamplingParams(seed=3),
        steps="line",
        executor=executor,
        **options,
    )


def stored(records):
    return {r.key: r for r in records}


def test_samples_are_the_same_however_the_work_is_divided(tmp_path):
    problems = sums()
    a, b = (Records(tmp_path / f"{n}.jsonl", Solution) for n in "ab")
    draw(problems, a, 5, rows=1)
    done = draw(problems, b, 5, rows=7, executor=ProcessesExecutor(2))
    assert stored(a) == stored(b)
    assert set(stored(a)) == {f"{p.id}#{i}" for p in problems for i in range(5)}
    assert (done.problems, done.solutions, done.truncated, done.failed) == (6, 30, 0, ())
    for s in a:
        assert "".join(s.text[x:y] for x, y in s.spans) == s.text


@settings(max_examples=25)
@given(st.data())
def test_only_what_is_missing_is_drawn(tmp_path_factory, data):
    """Whichever samples are missing after a kill, a second call gives the result of an uninterrupted run."""
    problems = sums(3)
    directory = tmp_path_factory.mktemp("holes")
    undisturbed = Records(directory / "whole.jsonl", Solution)
    draw(problems, undisturbed, 6)
    kept = data.draw(st.lists(st.sampled_from(sorted(undisturbed.keys())), unique=True))
    resumed = Records(directory / "part.jsonl", Solution)
    resumed.append(stored(undisturbed)[key] for key in kept)
    done = draw(problems, resumed, 6, rows=data.draw(st.integers(1, 20)))
    assert stored(resumed) == stored(undisturbed)
    assert done.solutions == 18


def test_more_samples_later_keep_those_that_are_there(tmp_path):
    out = Records(tmp_path / "s.jsonl", Solution)
    draw(sums(), out, 2)
    first = stored(out)
    draw(sums(), out, 4)
    assert len(out) == 24
    assert first.items() <= stored(out).items()


def test_a_problem_that_fails_is_named_and_tried_again(tmp_path):
    out = Records(tmp_path / "s.jsonl", Solution)
    done = draw(sums(), out, 2, backend(fail_on="train-3"), rows=100)
    assert [(f.item, f.reason) for f in done.failed] == [("train-3", "ValueError: I don't like train-3")]
    assert len(out) == 10
    assert draw(sums(), out, 2).failed == ()
    assert len(out) == 12


def test_a_dead_worker_loses_no_finished_unit(tmp_path):
    out = Records(tmp_path / "s.jsonl", Solution)
    with pytest.raises(StageError, match="same command goes on"):
        draw(sums(), out, 2, backend(die_on="train-5"), ProcessesExecutor(1), rows=2)
    assert len(out) == 10
    draw(sums(), out, 2)
    assert len(out) == 12


def test_no_samples_asked_for_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        draw(sums(), Records(tmp_path / "s.jsonl", Solution), 0)


def test_a_truncated_solution_is_ungradable_even_when_the_right_number_stands_in_it(tmp_path):
    problem = Problem("p", "2 + 2?", "4", "t")
    solutions = [
        Solution("p#0", "p", 0, "It is 4", ((0, 7),), Finish.LENGTH),
        Solution("p#1", "p", 1, "The answer is 4.", ((0, 16),)),
        Solution("p#2", "p", 2, "The answer is 14.", ((0, 17),)),
        Solution("p#3", "p", 3, "I can't say.", ((0, 12),)),
    ]
    out = Records(tmp_path / "g.jsonl", GradedSolution)
    done = grade(solutions, [problem], Numeric(), out, executor=SERIAL)
    verdicts = {g.key: g.grade.verdict for g in out}
    assert verdicts["p#0"] is Verdict.UNGRADABLE
    assert verdicts["p#1"] is Verdict.CORRECT
    assert verdicts["p#2"] is Verdict.INCORRECT
    assert (done.solutions, done.correct) == (4, 1)
    assert sum(count for _, count in done.reasons) == done.ungradable
    again = grade(solutions, [problem], Numeric(), out, executor=SERIAL)
    assert again == done


def test_labels_resume_to_those_of_an_undisturbed_run(tmp_path):
    problems = sums()
    solutions = Records(tmp_path / "s.jsonl", Solution)
    draw(problems, solutions, 3, backend(truncated=0.2))
    pairs = work_units.pair(problems, solutions)

    def run(name, units, **options):
        out = Records(tmp_path / name, LabelledSolution)
        tools = Tools(Numeric(), Template(), SamplingParams(seed=3), backend(truncated=0.2))
        return out, label(units, MonteCarlo(rollouts=4), tools, out, executor=SERIAL, **options)

    undisturbed, done = run("whole.jsonl", pairs)
    run("part.jsonl", pairs[::2], steps=1)
    resumed, again = run("part.jsonl", pairs, steps=5)
    assert stored(resumed) == stored(undisturbed)
    assert again == done
    assert done.solutions == len(pairs)
    assert done.steps == sum(len(s.spans) for _, s in pairs)
    assert done.rollouts.truncated > 0


def test_distinct_keeps_the_first_of_each_text_of_a_problem():
    problem, other = (Problem(i, "q", "1", "t") for i in "ab")
    pairs = [(p, Solution(f"{p.id}#{i}", p.id, i, text, ())) for p in (problem, other) for i, text in enumerate("xyx")]
    assert [s.id for _, s in distinct(pairs)] == ["a#0", "a#1", "b#0", "b#1"]


def test_scores_come_for_every_solution_and_the_verifier_never_sees_the_answer(tmp_path):
    problems = sums(split="test")
    solutions = Records(tmp_path / "s.jsonl", Solution)
    draw(problems, solutions, 4)
    verifier = registry.load("verifier", str(STRANGERS / "verifier.py"))
    out = Records(tmp_path / "v.jsonl", Verification)
    done = score(verifier, problems, list(solutions)[:5], out, executor=SERIAL)
    assert done.solutions == 5
    done = score(verifier, problems, solutions, out, executor=SERIAL, rows=3)
    assert (done.solutions, done.scored) == (24, 24)
    assert all(len(v.scores) == len(stored(solutions)[v.key].spans) for v in out)


class Forgetful:
    def verify(self, question, solutions):
        return []


def test_a_verifier_that_drops_solutions_is_caught(tmp_path):
    solution = Solution("train-0#0", "train-0", 0, "x", ((0, 1),))
    with pytest.raises(StageError, match="one for each"):
        score(Forgetful(), sums(1), [solution], Records(tmp_path / "v.jsonl", Verification), executor=SERIAL)


def test_a_backend_that_can_do_nothing_ends_the_stage_with_what_to_do(tmp_path):
    with pytest.raises(StageError, match="no continuation"):
        draw(sums(), Records(tmp_path / "s.jsonl", Solution), 2, ScriptedBackend())

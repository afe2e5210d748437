"""Reasoning traces: the answer is read after the thought alone, and an open thought is a truncated text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from stepmark.backends.openai import replies
from stepmark.backends.scripted import ScriptedBackend
from stepmark.data.store import Records
from stepmark.executors.serial import SerialExecutor
from stepmark.integrations import rewards
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.stages.sample import sample
from stepmark.text import thoughts
from stepmark.text.grading import TRUNCATED, grade_solution
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import (
    Finish,
    Outcome,
    Problem,
    SamplingParams,
    Solution,
    Unlabelled,
    Verdict,
    Verification,
)

THOUGHT = "<think>\nIs it 8? Let me see.\n\n3 + 4 = 7, so 7. But 9?\n</think>\n\n"
OPEN = "<think>\nIs it 8? Let me see.\n\n3 + 4 = 7. The answer is 7."
PROBLEM = Problem("p", "3 + 4?", "7", "mine")
NUMERIC = registry.load("grader", "numeric")

TEXTS = [
    (THOUGHT + "The answer is 7.", "\n\nThe answer is 7."),
    ("I think 8.\n</think>\nThe answer is 7.", "\nThe answer is 7."),  # the template opened it
    (THOUGHT + THOUGHT + "7", "\n\n7"),
    ("<thinking>8</thinking>7", "7"),
    ("The answer is 7.", "The answer is 7."),
    ("The tag <think> opens a thought. The answer is 7.", "The tag <think> opens a thought. The answer is 7."),
    (THOUGHT, "\n\n"),
    ("", ""),
    (OPEN, None),
    ("  <think>7", None),
    (THOUGHT + "The answer is 7.\n<think>\nOr 8?", None),
]


@pytest.mark.parametrize(("text", "answer"), TEXTS)
def test_the_answer_comes_after_the_thought(text, answer):
    assert thoughts.answer_of(text) == answer


@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "7", "<thinking>", "</thinking>"])).map("".join))
def test_an_answer_is_an_end_of_the_text_without_a_closing_tag(text):
    answer = thoughts.answer_of(text)
    assert answer is None or (text.endswith(answer) and "</think" not in answer)
    assert thoughts.answer_of("<think>" + text + "</think>7") == "7"


@given(st.text(max_size=30), st.text(max_size=30), st.booleans())
def test_what_a_server_keeps_apart_is_one_text(thought, answer, cut):
    text = thoughts.joined(thought, answer, cut)
    if not thought:
        assert text == answer
    elif "think" not in thought + answer:
        assert thoughts.answer_of(text) == (None if cut and not answer else f"\n\n{answer.lstrip()}")


def solution(text, finish=Finish.STOP):
    return Solution("p#0", "p", 0, text, split(text, "thought:20"), finish)


def test_grades_read_the_answer_alone():
    assert grade_solution(solution(THOUGHT + "The answer is 7."), PROBLEM, NUMERIC).correct
    assert grade_solution(solution(THOUGHT + "I can't tell."), PROBLEM, NUMERIC).verdict is Verdict.INCORRECT
    assert grade_solution(solution(OPEN), PROBLEM, NUMERIC) == TRUNCATED
    assert stepmark.safe_grade(THOUGHT + "\\boxed{7}", 7) and not stepmark.safe_grade(THOUGHT, 9)
    assert stepmark.safe_grade(OPEN, 7).verdict is Verdict.UNGRADABLE


def test_an_open_thought_is_a_truncated_solution(tmp_path):
    backend = ScriptedBackend(default=[OPEN, THOUGHT + "The answer is 7."])
    with Records(tmp_path / "solutions.jsonl", Solution) as out:
        done = sample(
            [PROBLEM],
            backend,
            out,
            n=2,
            context=Template("{question}\n"),
            params=SamplingParams(),
            steps="thought",
            executor=SerialExecutor(),
        )
        assert done.truncated == 1 and [s.finish for s in out] == [Finish.LENGTH, Finish.STOP]


def test_rollouts_go_on_from_the_middle_of_a_thought():
    """The prefix stays inside the thought; a rollout counts by what it answers after it, if it comes to that."""
    asked = []

    def script(text):
        asked.append(text)
        return [
            "\nso 7.\n</think>\nThe answer is 7.",
            "\nso 7.\n</think>\nThe answer is 9.",
            "\nThe answer is 7.",  # never leaves the thought
            "\n</think>\nNo idea.",
        ]

    tools = Tools(NUMERIC, Template("{question}\n"), SamplingParams(), completer=ScriptedBackend(script))
    unit = Unlabelled(PROBLEM, solution(THOUGHT + "The answer is 7."))
    [labelled] = MonteCarlo(rollouts=4).label([unit], tools)
    inside = labelled.labels[0]
    assert (inside.correct, inside.gradable, inside.truncated) == (1, 3, 1)
    assert asked[0].startswith("3 + 4?\n<think>\nIs it 8?") and "</think>" not in asked[0]
    assert len(labelled.labels) == len(unit.solution.spans) >= 3


class Ones:
    """Scores what ended 1."""

    def verify(self, question, solutions):
        return [
            Verification(s.id, (), 0.0, "min", Outcome.TRUNCATED)
            if s.finish is Finish.LENGTH
            else Verification(s.id, (1.0,), 1.0, "min")
            for s in solutions
        ]


def test_verifiers_and_rewards_know_that_it_was_cut():
    found = stepmark.verify(Ones(), "3 + 4?", [OPEN, THOUGHT + "7"], steps="thought")
    assert [v.outcome for v in found] == [Outcome.TRUNCATED, Outcome.SCORED]
    rewarder = rewards.Rewarder(Ones(), steps="thought", grader="numeric", truncated=-0.5)
    cut, whole = rewarder([rewards.Completion("3 + 4?", OPEN, "7"), rewards.Completion("3 + 4?", THOUGHT + "7", "7")])
    assert (cut.total, whole.total) == (-0.5, 1.0)
    assert cut.grade == TRUNCATED and whole.grade.correct


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_servers_reasoning_is_part_of_the_text(field):
    def text(message, finish):
        choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
        return replies.parse(replies.json.dumps({"choices": [choice]}).encode()).choices[0].text

    assert text({field: "8? No.", "content": "7"}, "stop") == "<think>\n8? No.\n</think>\n\n7"
    assert thoughts.answer_of(text({field: "8? No", "content": None}, "length")) is None
    assert text({field: None, "content": "7"}, "stop") == "7" and text({field: "", "content": None}, "stop") is None

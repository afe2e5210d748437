"""Few-shot prompts: which worked examples they have, what they leave out, and where a text of the model stops."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError, DataError
from stepmark.plugins.loading import load_grader, load_task
from stepmark.text.few_shot import FewShot, few_shot
from stepmark.text.prompts import Template
from stepmark.types import Problem

ASKED = Problem("x", "How many?", "7", "t")


def task(tmp_path, rows, **options):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_task("jsonl", path=str(path), test_path=str(path), **options)


def of(task, count, template="{question}\n"):
    return few_shot(Template(template), count, task, load_grader(task.grader))


def test_examples_are_the_first_that_the_grader_reads_as_right(tmp_path):
    rows = [
        {"question": "no solution", "answer": 1},
        {"question": "a wrong solution", "answer": 2, "solution": "We get 3.\nThe answer is 3."},
        {"question": "2 + 2?", "answer": 4, "solution": "2 + 2 = 4.\nThe answer is 4."},
        {"question": "no answer at its end", "answer": 9, "solution": "Three times three."},
        {"question": "one more", "answer": 5, "solution": "The answer is 5."},
    ]
    prompt = of(task(tmp_path, rows), 2)
    assert prompt(ASKED) == (
        "2 + 2?\n2 + 2 = 4.\nThe answer is 4.\n\n"
        "no answer at its end\nThree times three.\nThe answer is 9.\n\n"
        "How many?\n"
    )
    assert prompt.stop == ("\n\n",)
    assert prompt.text.endswith("The answer is 9.\n\n{question}\n")


def test_none_is_the_plain_prompt(tmp_path):
    prompt = of(load_task("arithmetic"), 0, "Q: {question}\nA:")
    assert (prompt(ASKED), prompt.stop, prompt.text) == ("Q: How many?\nA:", (), "Q: {question}\nA:")
    assert prompt.left([ASKED]) == (ASKED,)


def test_a_text_ends_where_it_would_ask_another_question(tmp_path):
    rows = [{"question": "a", "answer": 1, "solution": "So.\n\nThe answer is 1."}]
    assert of(task(tmp_path, rows), 1, "Solve it.\nQuestion: {question}\nAnswer:\n").stop == ("\n\nSolve it.",)
    assert of(task(tmp_path, rows), 1, "Question: {question}\n").stop == ("\n\nQuestion:",)
    # Its own blank line does not end the example: it is told apart from what stands between examples.
    prompt = of(task(tmp_path, rows), 1)
    assert prompt(ASKED) == "a\nSo.\n\nThe answer is 1.\n\n\nHow many?\n"
    assert prompt.stop == ("\n\n\n",)


def test_too_few_worked_solutions_are_refused_with_the_way_on(tmp_path):
    rows = [{"question": f"q{i}", "answer": 1, "solution": "The answer is 1."} for i in range(3)]
    rows += [{"question": f"r{i}", "answer": 1} for i in range(4)]
    with pytest.raises(
        ConfigError, match=r"few_shot is 4, but of the 7 problems .* 'train' only 3 have a worked .* `solution`"
    ):
        of(task(tmp_path, rows), 4)
    with pytest.raises(ConfigError, match="math500 has no split 'train'"):
        of(load_task("math500", path=str(Path(__file__))), 1)


def test_examples_are_left_out_by_their_question(tmp_path):
    rows = [{"question": f"q{i}", "answer": 1, "solution": "The answer is 1."} for i in range(5)]
    prompt = of(task(tmp_path, rows), 2)
    problems = [Problem(f"test-{i}", f"q{i}", "1", "t") for i in range(5)]
    assert [p.question for p in prompt.left(problems)] == ["q2", "q3", "q4"]
    assert [p.question for p in prompt.left(problems, 2)] == ["q2", "q3"]
    with pytest.raises(DataError, match="few_shot is 2, and all 2 problems are its examples"):
        prompt.left(problems[:2])


lines = st.text("ab \n{}question", max_size=12)


@given(st.lists(st.tuples(lines, lines), max_size=4), lines, lines, lines)
def test_all_questions_have_the_same_beginning_and_end_as_without_examples(examples, head, tail, question):
    if (head + "{question}" + tail).count("{question}") != 1:
        return
    template = Template(head + "{question}" + tail)
    prompt = FewShot(template, tuple(examples))
    asked, other = Problem("p", question, "1", "t"), Problem("o", "another", "1", "t")
    before = prompt(asked).removesuffix(template(asked))
    assert prompt(asked) == before + template(asked)
    assert prompt(other) == before + template(other)
    assert prompt.text == before + template.text
    assert len(prompt.stop) == bool(examples)
    for place, (own, solution) in enumerate(examples):
        assert template.render(own) + solution in before, place

"""Prompt templates: `{question}` is replaced once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.text.prompts import Template
from stepmark.types import Problem


@given(st.text() | st.just("{question} {} {0} %s \\1 {question"))
def test_a_question_stays_what_it_is(question):
    template = Template("Q: {question} {curly}\nA:")
    assert template(Problem("p", question, "1", "t")) == template.render(question) == f"Q: {question} {{curly}}\nA:"


@given(st.text(), st.text(), st.text())
def test_a_question_is_read_back_out_of_its_prompt(before, question, after):
    template = Template(f"{before.replace('{', '')}{{question}}{after.replace('{', '')}")
    assert template.read(template.render(question)) == question


@pytest.mark.parametrize("text", ["", "Q: 1?", "A: 1?\nA:", "Q:\nA:", "Q: 1?\nA: "])
def test_what_is_no_prompt_of_a_template_has_no_question(text):
    assert Template("Q: {question}\nA:").read(text) is None


@pytest.mark.parametrize(("text", "places"), [("no place", 0), ("{question} and {question}", 2), ("{Question}", 0)])
def test_a_template_has_one_place(text, places):
    with pytest.raises(ConfigError, match=rf"contains '\{{question\}}' {places} times"):
        Template(text)


def test_other_words_have_another_hash():
    assert Template("{question}\n").hash == Template().hash
    assert Template("{question}").hash != Template().hash

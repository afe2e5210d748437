"""An agent's messages become steps without losing a word."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import DataError
from stepmark.text import trajectories
from stepmark.types import Solution

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
MESSAGES = [
    {"role": "system", "content": "Use the tool."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I must add."},
    {"role": "tool", "tool_call_id": "1", "content": "5"},
    {"role": "assistant", "content": [{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 5."}]},
]


def test_each_turn_is_a_step_with_what_it_led_to():
    found = trajectories.read(MESSAGES)
    assert found.question == "system: Use the tool.\nuser: What is 2 + 3?"
    solution = found.solution("p", "p#0")
    assert isinstance(solution, Solution) and found.turns == (2, 4)
    assert solution.steps == ('Call: add({"a": 2, "b": 3})\nResult: 5', "The answer is 5.")
    assert trajectories.read(MESSAGES, thoughts=True).text.startswith("I must add.\nCall: add(")
    assert trajectories.read(MESSAGES[1:]).question == "What is 2 + 3?"


def test_arguments_may_be_anything():
    calls = [{"name": "f", "arguments": {"x": [1]}}, {"function": {"name": "g", "arguments": "{broken"}}, {}]
    text = trajectories.read([{"role": "assistant", "content": "", "tool_calls": calls}]).text
    assert text.splitlines() == ['Call: f({"x": [1]})', "Call: g({broken)", "Call: None(null)"]


@pytest.mark.parametrize("messages", [[], MESSAGES[:2], ["hello"], [{"content": "x"}], [None]])
def test_what_is_no_trajectory_is_refused(messages):
    with pytest.raises(DataError, match=r"no message of the assistant|no object with a role"):
        trajectories.read(messages)


words = st.one_of(st.none(), st.text(max_size=20))
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "tool", "user"]), "content": words},
    optional={"tool_calls": st.just([CALL]), "name": st.just("add")},
)


@given(st.lists(message, max_size=8), words)
def test_the_spans_cover_the_text_and_no_step_is_blank(rest, first):
    messages = [{"role": "assistant", "content": first}, *rest]
    found = trajectories.read(json.loads(json.dumps(messages)))
    assert "".join(found.text[a:b] for a, b in found.spans) == found.text
    assert all(found.text[a:b].strip() for a, b in found.spans)
    assert len(found.turns) == len(found.spans) == sum(m["role"] == "assistant" for m in messages)
    for m in messages:
        assert (m["content"] or "").strip() in found.text

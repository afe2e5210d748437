"""The public fake says what it was told to."""

import pickle

import pytest

from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import BackendError
from stepmark.types import Finish, Prompt, SamplingParams


def by_length(text: str) -> list[str]:
    return [f"{len(text)}\n"]


def test_continuations_go_round_by_index():
    backend = ScriptedBackend({"q\nstep\n": ["a b", ("c", Finish.LENGTH)]})
    got = list(backend.sample([Prompt("p", "q\n", "step\n", n=4, first=1)], SamplingParams()))
    assert [(r.index, r.text, r.finish, r.tokens) for r in got] == [
        (1, "c", Finish.LENGTH, 1),
        (2, "a b", Finish.STOP, 2),
        (3, "c", Finish.LENGTH, 1),
        (4, "a b", Finish.STOP, 2),
    ]


def test_a_function_can_be_the_script_and_travels():
    backend = pickle.loads(pickle.dumps(ScriptedBackend(by_length)))  # noqa: S301
    assert [r.text for r in backend.sample([Prompt("p", "four")], SamplingParams())] == ["4\n"]


def test_default_and_a_text_without_continuation():
    prompts = [Prompt("p", "unknown")]
    assert [r.text for r in ScriptedBackend({}, default=("x",)).sample(prompts, SamplingParams())] == ["x"]
    with pytest.raises(BackendError, match="unknown"):
        list(ScriptedBackend({"known": ["x"]}).sample(prompts, SamplingParams()))


@pytest.mark.parametrize(
    ("budget", "stop", "text", "finish", "tokens"),
    [
        (3, (), " one two\nthree\n", Finish.STOP, 3),
        (2, (), " one two", Finish.LENGTH, 2),
        (9, ("two",), " one ", Finish.STOP, 1),
        (1, ("one",), " ", Finish.STOP, 0),
    ],
)
def test_it_is_cut_as_a_model_is(budget, stop, text, finish, tokens):
    backend = ScriptedBackend(default=(" one two\nthree\n",))
    got = next(backend.sample([Prompt("p", "q")], SamplingParams(max_tokens=budget, stop=stop)))
    assert (got.text, got.finish, got.tokens) == (text, finish, tokens)

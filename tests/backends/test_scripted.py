"""The scripted backend returns its texts."""

import pickle

import pytest

from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import BackendError
from stepmark.types import Finish, Prompt, SamplingParams


def by_length(text: str) -> list[str]:
    return [f"{len(text)}\n"]


def test_continuations_repeat_by_index():
    backend = ScriptedBackend({"q\nstep\n": ["a b", ("c", Finish.LENGTH)]})
    rollouts = list(backend.sample([Prompt("p", "q\n", "step\n", n=4, first=1)], SamplingParams()))
    assert [(r.index, r.text, r.finish, r.tokens) for r in rollouts] == [
        (1, "c", Finish.LENGTH, 1),
        (2, "a b", Finish.STOP, 2),
        (3, "c", Finish.LENGTH, 1),
        (4, "a b", Finish.STOP, 2),
    ]


def test_a_function_can_be_the_script_and_is_picklable():
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
    rollout = next(backend.sample([Prompt("p", "q")], SamplingParams(max_tokens=budget, stop=stop)))
    assert (rollout.text, rollout.finish, rollout.tokens) == (text, finish, tokens)


def likely(text: str) -> dict[str, float]:
    return {" Yes": 3.0, " No": 1.0} if text.endswith("?") else {" No": 2.0}


def test_choices_have_the_shares_of_their_weights():
    backend = ScriptedBackend(chances=likely)
    assert backend.choice_probs(["q?", "q."], (" Yes", " No")) == [(0.75, 0.25), (0.0, 1.0)]
    assert backend.choice_probs(["q?"], (" No",)) == [(1.0,)]
    mapped = ScriptedBackend(chances={"q?": {" Yes": 1.0, " No": 1.0}}, usual={" Yes": 1.0})
    assert mapped.choice_probs(["q?", "r?"], (" Yes", " No")) == [(0.5, 0.5), (1.0, 0.0)]
    assert pickle.loads(pickle.dumps(backend)) == backend  # noqa: S301


def test_choices_without_weights_are_an_error():
    with pytest.raises(BackendError, match=r"' Maybe'.*usual"):
        ScriptedBackend(chances=likely).choice_probs(["q?"], (" Maybe",))
    with pytest.raises(BackendError, match="chances"):
        ScriptedBackend().choice_probs(["q?"], (" Yes", " No"))


def test_a_rollout_that_a_stop_string_ended_has_choices():
    texts = ["it is so. Right? Yes", "it is so.", "one two three four five Right? No"]
    params = SamplingParams(max_tokens=4, stop=("ght?", "Right?"), choices=(" Yes", " No"))
    stopped, plain, long = ScriptedBackend({"q\n": texts}, chances=likely).sample([Prompt("p", "q\n", n=3)], params)
    assert (stopped.text, stopped.choices) == ("it is so. ", (0.75, 0.25))
    assert (plain.text, plain.choices) == ("it is so.", ())
    assert (long.finish, long.choices) == (Finish.LENGTH, ())
    [unknown] = ScriptedBackend({"q\n": texts}).sample([Prompt("p", "q\n")], params)
    assert (unknown.text, unknown.choices) == (stopped.text, ())

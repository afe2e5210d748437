"""The contract of every backend in the folder, discovered by file name."""

import dataclasses
import importlib.util
import pickle

import pytest

from stepmark.plugins import registry
from stepmark.protocols import Backend
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

PARAMS = SamplingParams(max_tokens=6, seed=1)
# vLLM has its own environment, in which test_vllm.py runs this file.
NAMES = [name for name in registry.names("backend") if name != "vllm" or importlib.util.find_spec("vllm")]


@pytest.fixture(params=NAMES)
def backend(request, model_of) -> Backend:
    """A backend, loaded in the same way as by the command line. A new file in the folder needs its settings here."""
    settings = {
        "openai": lambda: {"model": "tiny", "url": request.getfixturevalue("server_of_llama").url, "seeds": True},
        "vllm": lambda: {"path": model_of("llama_wide"), "dtype": "float32", "eager": True},
        "local": lambda: {"path": model_of("llama"), "device": "cpu"},
        "scripted": lambda: {"default": ("one two\n", ("three", Finish.LENGTH), "four")},
    }
    return registry.load("backend", request.param, **settings[request.param]())


def test_it_is_a_backend_made_without_loading_anything(backend):
    assert isinstance(backend, Backend)
    assert dataclasses.is_dataclass(backend)
    copied = pickle.loads(pickle.dumps(backend))  # noqa: S301
    assert copied == backend
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(backend, dataclasses.fields(backend)[0].name, None)


def test_it_gives_the_rollouts_that_were_asked_for(backend):
    prompts = [Prompt("a", "Ann has ", "4\n", n=3), Prompt("b", "Ann has ", n=2, first=5), Prompt("c", "x", n=0)]
    rollouts = list(backend.sample(prompts, PARAMS))
    assert sorted(r.key for r in rollouts) == ["a#0", "a#1", "a#2", "b#5", "b#6"]
    for r in rollouts:
        assert isinstance(r, Rollout)
        assert isinstance(r.finish, Finish)
        assert r.logprob <= 0
        assert 0 <= r.tokens <= PARAMS.max_tokens
    assert list(backend.sample([], PARAMS)) == []


def test_a_rollout_depends_on_seed_prompt_and_index_alone(backend):
    def texts(prompts: list[Prompt]) -> dict[str, tuple[str, Finish]]:
        return {r.key: (r.text, r.finish) for r in backend.sample(prompts, PARAMS)}

    whole = texts([Prompt("a", "Ann has ", n=4), Prompt("b", "Ben has ", n=2)])
    assert whole == texts([Prompt("b", "Ben has ", n=2), Prompt("a", "Ann has ", n=1)]) | texts(
        [Prompt("a", "Ann has ", n=3, first=1)]
    )


def test_stop_strings_and_end_tokens_are_not_part_of_the_text(backend):
    free = next(iter(backend.sample([Prompt("a", "Ann has ")], PARAMS))).text
    stop = free[1:3]
    assert stop
    cut = next(iter(backend.sample([Prompt("a", "Ann has ")], dataclasses.replace(PARAMS, stop=(stop,)))))
    assert cut.text == free[: free.index(stop)]
    assert cut.finish is Finish.STOP

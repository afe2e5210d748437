"""Tests of the backend `vllm` with vLLM. test_vllm.py runs them in the environment with vLLM, on a CPU."""

import itertools
import shutil
from collections import Counter

import pytest
import torch
from vllm.exceptions import VLLMValidationError

from stepmark.errors import BackendError, ConfigError
from stepmark.models.checkpoints import load_model, load_tokenizer
from stepmark.models.encoding import token_ids
from stepmark.plugins import registry
from stepmark.types import Finish, Prompt, SamplingParams

CONTEXTS = ("Ann has 4 apples. Ben has 3 more.\n", "Cat has 7 apples.\n", "How many?\n", "say <eos> \u20ac", "")
LINE = "Ben has 4 + 3 = 7.\n"
POSITIONS = 160


@pytest.fixture(scope="module")
def path(model_of):
    return model_of("llama_wide")


@pytest.fixture(scope="module")
def backend(path):
    return registry.load("backend", "vllm", path=path, dtype="float32", eager=True)


@pytest.fixture(scope="module")
def local(path):
    return registry.load("backend", "local", path=path, device="cpu")


def rollouts(backend, prompts, params):
    return {r.key: r for r in backend.sample(prompts, params)}


def test_greedy_agrees_with_the_local_engine(backend, local):
    prompts = [Prompt(f"{i}{j}", c, p) for i, c in enumerate(CONTEXTS) for j, p in enumerate(("", LINE, LINE * 2))]
    params = SamplingParams(max_tokens=24, temperature=0)
    from_vllm, from_local = rollouts(backend, prompts, params), rollouts(local, prompts, params)
    assert set(from_vllm) == set(from_local)
    for key, r in from_vllm.items():
        assert (r.finish, r.tokens) == (from_local[key].finish, from_local[key].tokens)
        assert r.text.rstrip("\ufffd") == from_local[key].text.rstrip("\ufffd")  # half a character at the end
        assert r.logprob == pytest.approx(from_local[key].logprob, abs=1e-3)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 0.8)])
def test_tokens_follow_the_model_and_their_log_probabilities_are_its_own(backend, path, temperature, top_p):
    model, tokenizer = load_model(path, device="cpu"), load_tokenizer(path)
    ids = token_ids(tokenizer, CONTEXTS[0])[0]
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    p, order = (logprobs / temperature).softmax(-1).sort(descending=True)
    kept = int((p.cumsum(-1) - p < top_p).sum())
    p = p[:kept] / p[:kept].sum()
    n = 600
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p)
    drawn = rollouts(backend, [Prompt("p", CONTEXTS[0], n=n)], params).values()
    means, known = {}, {}
    for i, share in zip(order[:kept].tolist(), p.tolist(), strict=True):
        text = tokenizer.decode([i], skip_special_tokens=True).rstrip("\ufffd")  # half a character is left out
        means[text] = means.get(text, 0.0) + n * share
        known.setdefault(text, []).append(float(logprobs[i]))
    seen = Counter(r.text for r in drawn)
    assert top_p == 1 or set(seen) <= set(means)
    for r in drawn:
        assert min(abs(r.logprob - x) for x in known[r.text]) < 1e-4
    assert sum(mean >= 5 for mean in means.values()) >= 3
    for text, mean in means.items():  # the seeds are fixed, so the draws are always the same
        assert abs(seen[text] - mean) < 5 * max(1.0, mean * (1 - mean / n)) ** 0.5


def test_a_text_ends_before_the_first_of_its_stop_strings(backend):
    free = rollouts(backend, [Prompt("p", CONTEXTS[0], n=20)], SamplingParams(max_tokens=24))
    text = max((r.text for r in free.values()), key=len)
    for late, early in itertools.product((9, 8, 7), (5, 4, 3)):
        stop = (text[late : late + 2], "", text[early : early + 2])
        stopped = rollouts(backend, [Prompt("p", CONTEXTS[0], n=20)], SamplingParams(max_tokens=24, stop=stop))
        for key, r in free.items():
            cuts = [r.text.index(s) for s in stop if s and s in r.text]
            expected = (r.text[: min(cuts)], Finish.STOP) if cuts else (r.text, r.finish)
            assert (stopped[key].text, stopped[key].finish) == expected


def test_budget_and_positions(backend, path):
    tokenizer = load_tokenizer(path)
    question = "How"
    while len(token_ids(tokenizer, question)[0]) < POSITIONS - 3:
        question = "a" + question
    prompts = [Prompt("near", question), Prompt("over", "Ann has 4. " * 100, n=2), Prompt("short", "Ann")]
    by_key = rollouts(backend, prompts, SamplingParams(max_tokens=5, temperature=0))
    assert by_key["near#0"].tokens <= 3
    assert [(by_key[k].text, by_key[k].finish, by_key[k].tokens) for k in ("over#0", "over#1")] == [
        ("", Finish.LENGTH, 0)
    ] * 2
    assert by_key["short#0"].finish is Finish.STOP or by_key["short#0"].tokens == 5


def test_seeds_make_rollouts_repeatable_beside_other_requests(backend, path):
    params = SamplingParams(max_tokens=12, seed=5)
    alone = [next(backend.sample([Prompt("p", "Ann", first=i)], params)).text for i in range(20)]
    crowd = [Prompt(f"q{i}", CONTEXTS[i % 3], n=5) for i in range(40)]
    among = rollouts(backend, [*crowd, Prompt("p", "Ann", n=20)], params)
    assert alone == [among[f"p#{i}"].text for i in range(20)]
    assert len(set(alone)) > 15
    free = registry.load("backend", "vllm", path=path, dtype="float32", eager=True, seeds=False)
    assert {r.text for r in free.sample([Prompt("p", "Ann", n=20)], params)} != set(alone)


def test_unfinished_and_interleaved_calls_do_not_disturb_others(backend):
    params = SamplingParams(max_tokens=12)
    whole = rollouts(backend, [Prompt("a", "Ann", n=6), Prompt("b", "Ben", n=6)], params)
    left = backend.sample([Prompt("x", "Cat", n=50)], params)
    next(left)
    left.close()
    mixed = itertools.zip_longest(
        backend.sample([Prompt("a", "Ann", n=6)], params), backend.sample([Prompt("b", "Ben", n=6)], params)
    )
    assert {r.key: r for pair in mixed for r in pair} == whole


def test_a_request_that_vllm_refuses_is_a_failed_rollout_and_the_others_go_on(backend, path, monkeypatch):
    bad = token_ids(load_tokenizer(path), "bad")[0]
    engine = backend._load().engine
    add = engine.add_request

    def refusing(name, prompt, request):
        if prompt["prompt_token_ids"] == bad:
            raise VLLMValidationError("not this one")
        add(name, prompt, request)

    monkeypatch.setattr(engine, "add_request", refusing)
    by_key = rollouts(backend, [Prompt("bad", "bad", n=2), Prompt("good", "good")], SamplingParams(max_tokens=3))
    assert [by_key[k].finish for k in ("bad#0", "bad#1")] == [Finish.FAILED] * 2
    assert "not this one" in by_key["bad#0"].reason
    assert by_key["good#0"].finish is not Finish.FAILED


def test_an_engine_that_breaks_is_an_error_and_not_an_answer(backend, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(backend._load().engine, "step", broken)
    with pytest.raises(BackendError, match="out of memory"):
        list(backend.sample([Prompt("p", "Ann")], SamplingParams()))


def test_errors_of_vllm_become_errors_of_ours(backend, path, tmp_path):
    with pytest.raises(ConfigError, match="top_p"):
        list(backend.sample([Prompt("p", "Ann")], SamplingParams(top_p=0.0)))
    with pytest.raises(ConfigError, match="max_tokens"):
        list(backend.sample([Prompt("p", "Ann")], SamplingParams(max_tokens=0)))
    shutil.copytree(path, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(BackendError, match="can't load"):
        list(
            registry.load("backend", "vllm", path=str(tmp_path / "model")).sample(
                [Prompt("p", "Ann")], SamplingParams()
            )
        )


@pytest.mark.parametrize("choices", [(" 4", " 7"), ("n", " Ben has", "."), (" Yes", " No", " Maybe so")])
def test_choices_have_the_probabilities_of_the_local_engine(backend, local, choices):
    # Both engines calculate in float32, in different orders, so logits of size 100 differ by about 1e-5.
    texts = [*CONTEXTS, *CONTEXTS[:2], "Ben has 4 + 3 = 7. So"]
    from_vllm, from_local = backend.choice_probs(texts, choices), local.choice_probs(texts, choices)
    for a, b in zip(from_vllm, from_local, strict=True):
        assert sum(a) == pytest.approx(1)
        assert a == pytest.approx(b, abs=1e-4)
    assert max(abs(x - 1 / len(choices)) for row in from_local for x in row) > 0.1
    assert backend.choice_probs([], choices) == []


def test_choice_probabilities_during_a_sampling_do_not_disturb_it(backend, local):
    params = SamplingParams(max_tokens=12)
    whole = rollouts(backend, [Prompt("a", "Ann", n=6)], params)
    running = backend.sample([Prompt("a", "Ann", n=6)], params)
    first = next(running)
    [probabilities] = backend.choice_probs([CONTEXTS[0]], (" 4", " 7"))
    assert probabilities == pytest.approx(local.choice_probs([CONTEXTS[0]], (" 4", " 7"))[0], abs=1e-4)
    assert {r.key: r for r in (first, *running)} == whole


def test_a_text_without_room_for_a_choice_is_an_error(backend):
    with pytest.raises(BackendError, match="positions"):
        backend.choice_probs(["Ann has 4. " * 100], (" 4", " 7"))
    with pytest.raises(ConfigError, match="choices"):
        backend.choice_probs(["Ann"], ())

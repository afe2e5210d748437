"""The backend `openai`, and labelling with it, against vLLM: a real server and the local engine must give the same
results for the same weights.

Rollouts are drawn without seeds, so the tests compare distributions. A test fails by chance once in a million runs.
"""

import json
from collections import Counter

import httpx
import numpy as np
import pytest
import torch
from scipy import stats

from stepmark.data.ledger import Budget, Ledger, Recorded
from stepmark.data.store import Records
from stepmark.errors import BackendError, BudgetReached
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.models import checkpoints
from stepmark.models.encoding import token_ids
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.stages.label import label
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, LabelledSolution, Problem, Prompt, SamplingParams, Solution

PROBLEM = Problem("p", "Ann has 2. Ben has 3 more. How many in all?", "7", "made")
CONTEXT = Template()(PROBLEM)
PREFIXES = ("", "Ben has 2 + 3 = 5.\n", "Ben has 2 + 3 = 6.\n", "Ben has 2 + 3 = 5.\nIn all 2 + 5 =", "So")
PARAMS = SamplingParams(max_tokens=60)
GREEDY = SamplingParams(max_tokens=60, temperature=0)
CHANCE = 1e-6


@pytest.fixture(scope="module")
def remote(server):
    return registry.load("backend", "openai", model=server.model, url=server.url)


@pytest.fixture(scope="module")
def local(server):
    return registry.load("backend", "local", path=server.path, device="cpu")


@pytest.fixture(scope="module")
def model(server):
    """(ids -> log-probabilities of the next token after each of them, [T, V]; the tokenizer), by plain transformers."""
    loaded, tokenizer = checkpoints.load_model(server.path, device="cpu"), checkpoints.load_tokenizer(server.path)

    def after(ids):
        with torch.inference_mode():
            return loaded(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()

    return after, tokenizer


def rollouts(backend, prompts, params=PARAMS):
    return {r.key: r for r in backend.sample(prompts, params)}


def prompts(n=1):
    return [Prompt(str(i), CONTEXT, prefix, n) for i, prefix in enumerate(PREFIXES)]


def test_one_request_brings_n_independent_continuations(server, remote):
    body = {"model": server.model, "prompt": CONTEXT, "n": 8, "max_tokens": 60}
    reply = httpx.post(f"{server.url}/completions", json=body, timeout=60, trust_env=False).json()
    assert [choice["index"] for choice in reply["choices"]] == list(range(8))
    drawn = rollouts(
        remote, [Prompt("a", CONTEXT, n=20), Prompt("b", CONTEXT, "Ben", n=3, first=7), Prompt("c", "x", n=0)]
    )
    assert sorted(drawn) == sorted([f"a#{i}" for i in range(20)] + ["b#7", "b#8", "b#9"])
    assert all(r.finish in (Finish.STOP, Finish.LENGTH) for r in drawn.values())
    assert len({r.text for r in drawn.values()}) > 3


def test_greedy_texts_tokens_and_log_probabilities_are_those_of_the_local_engine(remote, local):
    computed, served = rollouts(local, prompts(), GREEDY), rollouts(remote, prompts(), GREEDY)
    assert set(computed) == set(served)
    for key, r in served.items():
        own = computed[key]
        assert (r.text, r.finish, r.tokens) == (own.text, own.finish, own.tokens)
        assert r.logprob == pytest.approx(own.logprob, abs=1e-3)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.9)])
def test_log_probabilities_are_the_model_s_own_and_tokens_those_of_our_tokenizer(remote, model, temperature, top_p):
    after, tokenizer = model
    params = SamplingParams(max_tokens=60, temperature=temperature, top_p=top_p)
    compared = 0
    for r in remote.sample([Prompt("p", CONTEXT, PREFIXES[1], n=40)], params):
        start = len(token_ids(tokenizer, CONTEXT + PREFIXES[1])[0])
        ids = token_ids(tokenizer, CONTEXT + PREFIXES[1] + r.text)[0]
        if r.finish is Finish.STOP:
            ids = [*ids, tokenizer.eos_token_id]
        if len(ids) - start != r.tokens:  # our tokenizer splits this text differently from the sampled tokens
            continue
        compared += 1
        own = sum(row[i] for row, i in zip(after(ids)[start - 1 :], ids[start:], strict=False))
        assert r.logprob == pytest.approx(own, abs=1e-3)
    assert compared >= 30


def test_prompt_tokens_are_charged_once_for_each_request(server, model):
    backend = registry.load("backend", "openai", model=server.model, url=server.url, n_per_request=4)
    charged = [r.prompt_tokens for r in backend.sample([Prompt("p", CONTEXT, n=12)], PARAMS)]
    length = len(token_ids(model[1], CONTEXT)[0])
    assert sorted(charged) == [0] * 9 + [length] * 3


@pytest.mark.parametrize(("temperature", "top_p", "least"), [(1.0, 1.0, 2), (0.6, 0.9, 2), (1.0, 0.5, 1)])
def test_tokens_are_drawn_from_the_distribution_that_was_asked_for(server, model, temperature, top_p, least):
    after, tokenizer = model
    prefix, n = "Ben has 2 + 3 =", 1200  # " 5" or " 6": the model learned both
    logits = after(token_ids(tokenizer, CONTEXT + prefix)[0])[-1] / temperature
    p = np.exp(logits - logits.max())
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]) / p.sum(), top_p)) + 1]
    expected = Counter()
    for i in kept:
        expected[tokenizer.decode([i], skip_special_tokens=True)] += p[i] / p[kept].sum()
    remote = registry.load("backend", "openai", model=server.model, url=server.url, n_per_request=100)
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p)
    drawn = Counter(r.text for r in remote.sample([Prompt("p", CONTEXT, prefix, n)], params))
    assert top_p == 1 or set(drawn) <= set(expected)
    common = [text for text in expected if n * expected[text] >= 5]
    assert len(common) >= least
    seen = [drawn[text] for text in common]
    means = [n * expected[text] for text in common]
    if n - sum(means) > 1e-6:
        seen, means = [*seen, n - sum(seen)], [*means, n - sum(means)]
    assert len(seen) == 1 or stats.chisquare(seen, means).pvalue > CHANCE


def test_whole_solutions_come_as_often_as_from_the_local_engine(remote, local):
    counts = [
        Counter(r.text for r in backend.sample([Prompt("p", CONTEXT, n=300)], PARAMS)) for backend in (remote, local)
    ]
    common = [text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= 20]
    table = [[c[text] for text in common] + [300 - sum(c[text] for text in common)] for c in counts]
    assert len(common) >= 3
    assert stats.chi2_contingency(table).pvalue > CHANCE


def test_a_text_ends_before_the_first_stop_string(remote, local):
    params = SamplingParams(max_tokens=60, temperature=0, stop=("all", "\n", "answer"))
    computed, served = rollouts(local, prompts(), params), rollouts(remote, prompts(), params)
    assert {k: (r.text, r.finish) for k, r in served.items()} == {k: (r.text, r.finish) for k, r in computed.items()}
    assert served["0#0"].text == "Ben has 2 + 3 = 5."
    assert served["1#0"].text == "In "


def test_a_text_that_runs_out_of_tokens_says_so(remote):
    for r in remote.sample([Prompt("p", CONTEXT, n=4)], SamplingParams(max_tokens=3)):
        assert (r.finish, r.tokens) == (Finish.LENGTH, 3)


def test_a_prompt_that_fills_the_context_leaves_no_room_and_one_that_nearly_does_gets_what_there_is(
    server, remote, local, model
):
    room = 5
    question = CONTEXT
    while len(token_ids(model[1], question)[0]) < server.max_length - room:
        question = "a " + question
    requests = [Prompt("near", question), Prompt("over", "a " * 200 + CONTEXT, n=2)]
    served, computed = rollouts(remote, requests, GREEDY), rollouts(local, requests, GREEDY)
    assert served["near#0"].finish is Finish.LENGTH
    assert (served["near#0"].text, served["near#0"].finish) == (computed["near#0"].text, computed["near#0"].finish)
    assert [(served[k].text, served[k].finish, served[k].tokens) for k in ("over#0", "over#1")] == [
        ("", Finish.LENGTH, 0)
    ] * 2


def test_a_model_that_the_server_does_not_have_is_an_error_that_names_what_it_has(server):
    backend = registry.load("backend", "openai", model="another", url=server.url)
    with pytest.raises(BackendError, match=server.model):
        list(backend.sample([Prompt("p", CONTEXT)], PARAMS))


# ---- labels ----

TEXTS = (
    "Ben has 2 + 3 = 5.\nIn all 2 + 5 = 7.\nThe answer is 7.",
    "Ben has 2 + 3 = 6.\nIn all 2 + 6 = 8.\nThe answer is 8.",
)
COPIES = 40


def solutions():
    """The same two texts many times: their labels are independent draws of the same two steps."""
    copies = [Solution(f"p#{i}", "p", i, text, split(text)) for i, text in enumerate(TEXTS * COPIES)]
    return [(PROBLEM, s) for s in copies]


def labelled(completer, place, **options):
    tools = Tools(Numeric(), Template(), PARAMS, completer)
    out = Records(place / "labels.jsonl", LabelledSolution)
    done = label(
        solutions(),
        MonteCarlo(rollouts=2),
        tools,
        out,
        ledgers={"completer": Ledger.of(place / "rollouts" / "labels.jsonl", completer)},
        executor=SerialExecutor(),
        **options,
    )
    assert not done.failed
    return {x.key: x for x in out}


def test_hard_labels_come_as_often_as_from_the_local_engine_and_are_paid_once(server, remote, local, tmp_path):
    served, computed = labelled(remote, tmp_path / "remote"), labelled(local, tmp_path / "local")
    ones = np.zeros((2, 2, 2), dtype=int)  # completer, text, step
    for completer, labels in enumerate((served, computed)):
        assert len(labels) == 2 * COPIES
        for i, x in enumerate(labels[f"p#{i}"] for i in range(2 * COPIES)):
            assert [label.source for label in x.labels] == ["monte_carlo", "monte_carlo", "outcome"]
            ones[completer, i % 2] += [int(label.hard) if label.known else 0 for label in x.labels[:2]]
    for text in range(2):
        for step in range(2):
            a, b = ones[:, text, step]
            assert stats.fisher_exact([[a, COPIES - a], [b, COPIES - b]]).pvalue > CHANCE
    assert ones[0, 0, 1] > ones[0, 1, 1] + 5  # "In all 2 + 5 = 7." leads to 7, "In all 2 + 6 = 8." seldom does

    ledger = Ledger(tmp_path / "remote" / "rollouts" / "labels.jsonl")
    kept = list(ledger.records)
    assert len({r.key for r in kept}) == len(kept) == 2 * COPIES * 2 * 2
    assert ledger.spent.tokens == sum(r.tokens for r in kept) > 0
    assert ledger.spent.prompt_tokens > 0
    # Without the labels but with the rollouts, the same labels come without a request, so without a server.
    (tmp_path / "remote" / "labels.jsonl").unlink()
    nowhere = registry.load("backend", "openai", model=server.model, url="http://127.0.0.1:9/v1", retries=0)
    again = labelled(nowhere, tmp_path / "remote")
    assert {k: x.labels for k, x in again.items()} == {k: x.labels for k, x in served.items()}


def test_a_budget_stops_the_spending_and_more_of_it_goes_on(server, tmp_path):
    priced = registry.load(
        "backend", "openai", model=server.model, url=server.url, price_input=1.0, price_output=2.0, n_per_request=2
    )
    ledger = Ledger.of(tmp_path / "rollouts" / "train.jsonl", priced)
    requests = [Prompt(f"p{i}", CONTEXT, n=2) for i in range(100)]
    with pytest.raises(BudgetReached):
        list(Recorded(priced, ledger, budget=Budget(rollouts=100)).sample(requests, PARAMS))
    first = list(ledger.records)
    assert 100 <= len(first) < 200
    assert ledger.spent.money == pytest.approx(sum(r.prompt_tokens + 2 * r.tokens for r in first) / 1e6, rel=1e-6)
    known = {r.key: r for r in first}
    done = list(Recorded(priced, ledger, known, Budget(rollouts=300)).sample(requests, PARAMS))
    assert len({r.key for r in done}) == 200
    lines = (tmp_path / "rollouts" / "train.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 200

"""The backend against a real server on loopback: what it sends, what it makes of each fault, what it leaves behind."""

import gc
import json
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from stepmark.backends.openai import OpenAIBackend, probe, seed_of
from stepmark.errors import BackendError, ConfigError
from stepmark.plugins import registry
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

PARAMS = SamplingParams(max_tokens=50)
FAST = {"backoff": 0.001, "retries": 8, "timeout": 5.0, "deadline": 20.0}


@pytest.fixture(autouse=True)
def anew():
    """Ports come again; what was found out about an earlier server must not."""
    probe.forget()


@pytest.fixture
def serve(fault_server):
    """Settings -> a server that answers "TEXT 0", "TEXT 1", ..., until the test ends."""
    servers = []

    def make(say=None, **settings):
        def echo(body, text, n):
            return [fault_server.Said(f"{text.strip()} {i}") for i in range(n)]

        servers.append(fault_server.Server(say or echo, **settings).__enter__())
        return servers[-1]

    yield make
    for server in servers:
        server.__exit__()


@pytest.fixture
def said(fault_server):
    return fault_server.Said


def backend(server, **settings):
    return OpenAIBackend("tiny", server.url, **FAST | settings)


def sample(server, *prompts, params=PARAMS, **settings):
    return list(backend(server, **settings).sample(prompts or [Prompt("p", "q")], params))


def asked(server):
    """The bodies of the requests after the probe's."""
    return [b for b in server.bodies if b.get("prompt") != "Hello" and "Hello" not in str(b.get("messages"))]


def threads():
    return [t for t in threading.enumerate() if t.name == "stepmark-requests"]


# ---- settings ----


def test_all_faults_in_the_settings_are_told_at_once():
    with pytest.raises(ConfigError) as e:
        OpenAIBackend("", "localhost:8000", concurrency=0, timeout=0, retries=-1, price_output=float("nan"))
    assert [f.split()[0] for f in e.value.faults] == [
        "model",
        "url",
        "concurrency",
        "retries",
        "price_output",
        "timeout",
    ]
    with pytest.raises(ConfigError) as e:
        list(OpenAIBackend("m").sample([Prompt("p", "q")], SamplingParams(0, -1.0, 0.0)))
    assert len(e.value.faults) == 3


def test_httpx_is_loaded_when_used_and_named_when_missing(monkeypatch):
    code = "import sys, stepmark.backends.openai as b; b.OpenAIBackend('m'); sys.exit('httpx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match=r"stepmark\[api\]"):
        list(OpenAIBackend("m").sample([Prompt("p", "q")], PARAMS))


def test_price_and_remote_are_for_the_ledger():
    made = registry.load("backend", "openai", model="m", price_input=0.5, price_output=2)
    assert (made.price, made.remote) == ((0.5, 2), True)
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301


# ---- what is sent, and what comes of it ----


def test_a_request_says_all_that_matters(serve):
    server = serve()
    params = SamplingParams(7, 0.7, 0.9, ("a", "", "b", "c", "d", "e"), seed=3)
    got = sample(server, Prompt("p", "q ", "s", n=3, first=2), params=params)
    assert asked(server) == [
        {
            "model": "tiny",
            "prompt": "q s",
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 7,
            "stop": ["a", "b", "c", "d"],
            "n": 3,
            "logprobs": 1,
            **probe.NEUTRAL,
        }
    ]
    assert got == [
        Rollout("p", 2, "q s 0", Finish.STOP, 3, -1.5, prompt_tokens=2),
        Rollout("p", 3, "q s 1", Finish.STOP, 3, -1.5),
        Rollout("p", 4, "q s 2", Finish.STOP, 3, -1.5),
    ]


def test_the_key_goes_to_the_server_and_nowhere_else(serve, monkeypatch):
    server = serve(key="sk-secret")
    with pytest.raises(BackendError, match=r"401.*no key was sent.*key_env"):
        sample(server, key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sk-wrong")
    with pytest.raises(BackendError, match=r"Incorrect API key: Bearer \*\*\*.*\$SOME_KEY holds a key"):
        sample(server, key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sk-secret\n")
    assert len(sample(server, key_env="SOME_KEY")) == 1
    assert "secret" not in repr(backend(server, key_env="SOME_KEY"))


def test_rollouts_of_a_prompt_share_requests_up_to_a_limit(serve):
    server = serve()
    got = sample(server, Prompt("a", "q", n=5), Prompt("b", "r", n=2), n_per_request=2)
    assert sorted(r.key for r in got) == ["a#0", "a#1", "a#2", "a#3", "a#4", "b#0", "b#1"]
    assert sorted((b["prompt"], b.get("n", 1)) for b in asked(server)) == [("q", 1), ("q", 2), ("q", 2), ("r", 2)]
    assert sum(r.prompt_tokens for r in got) == 4  # one word, charged once for each request
    server.bodies.clear()
    sample(server, Prompt("a", "q", n=3), params=replace(PARAMS, temperature=0.0))
    assert [b.get("n") for b in asked(server)] == [None] * 3  # several greedy choices are refused by many servers


def test_seeds_are_of_the_rollout(serve):
    server = serve()
    sample(server, Prompt("a", "q", n=3, first=1), params=replace(PARAMS, seed=5), seeds=True)
    assert sorted(b["seed"] for b in asked(server)) == sorted(seed_of(5, "a", i) for i in (1, 2, 3))
    assert len({seed_of(s, p, i) for s in (0, 1) for p in "ab" for i in range(50)}) == 200
    assert all(0 <= seed_of(0, "a", i) < 2**31 for i in range(50))


def test_no_text_has_a_stop_string_or_what_follows_it(serve, said):
    stop = ("1", "2", "3", "4", "END", "")
    server = serve(lambda body, text, n: [said("a b END c", "length"), said("a b", "length")][:n])
    got = sample(server, Prompt("p", "q", n=2), params=replace(PARAMS, stop=stop))
    assert [(r.text, r.finish) for r in got] == [("a b ", Finish.STOP), ("a b", Finish.LENGTH)]


@pytest.mark.parametrize(
    ("logprobs", "usage", "tokens"),
    [(True, True, [1, 2, 3, 4]), (False, True, [3, 3, 2, 2]), (True, False, [1, 2, 3, 4]), (False, False, [0] * 4)],
)
def test_tokens_are_counted_or_shared_out(serve, said, logprobs, usage, tokens):
    server = serve(lambda body, text, n: [said("w " * (i + 1)) for i in range(n)], logprobs=logprobs, usage=usage)
    got = sample(server, Prompt("p", "q", n=4))
    assert [r.tokens for r in got] == tokens
    assert [r.logprob for r in got] == [-0.5 * t if logprobs else 0.0 for t in tokens]
    if not (logprobs or usage):
        with pytest.raises(BackendError, match="no price"):
            sample(server, price_input=1.0)


# ---- what a server can't do ----


def test_a_server_that_ignores_n_gets_one_request_for_each_rollout(serve):
    server = serve(honours_n=False)
    got = sample(server, Prompt("p", "q", n=3))
    assert sorted(r.index for r in got) == [0, 1, 2]
    assert [b.get("n") for b in asked(server)] == [None] * 3
    assert sum(b.get("n") == 2 for b in server.bodies) == 2  # asked twice: once may be a mishap


def test_refused_parameters_are_left_out_from_then_on(serve):
    server = serve(refuses=("n", "top_k", "logprobs", "repeat_penalty"))
    assert len(sample(server, Prompt("p", "q", n=2))) == 2
    for body in asked(server):
        assert set(probe.NEUTRAL) - set(body) == {"top_k", "repeat_penalty"}
        assert not {"n", "logprobs"} & set(body)
    # Found out once in a process.
    count = len(server.bodies)
    sample(server)
    assert len(server.bodies) == count + 1


def test_a_server_like_llama_cpps_python_one(serve):
    """It ignores n, has a top_k of 40 that only 0 switches off, and calls its lack of log-probabilities a 500."""
    server = serve(honours_n=False, refuses=(("top_k", -1),), refusal=(422, "body.top_k: must be 0 or more, not {}"))
    sample(server, Prompt("p", "q", n=2))
    assert [(b["top_k"], b.get("n")) for b in asked(server)] == [(0, None)] * 2
    server = serve(refuses=("logprobs",), refusal=(500, "{} is not supported for models created with logits_all=False"))
    [r] = sample(server)
    assert (r.tokens, r.logprob, r.finish) == (2, 0.0, Finish.STOP)


def test_one_mishap_at_the_probe_concludes_nothing(serve):
    for fault in ("fewer", "500", "truncated"):
        probe.forget()
        server = serve(faults=[fault])
        sample(server, Prompt("p", "q", n=3))
        assert [b["n"] for b in asked(server)] == [3]


def test_a_model_that_is_not_there(serve):
    with pytest.raises(BackendError, match=r"no model named 'tiny'. Did you mean 'tinyy'"):
        sample(serve(models=("tinyy",)))
    with pytest.raises(BackendError, match=r"404.*does not exist.*Did you mean 'tine'.*other, tine"):
        sample(serve(models=("other", "tine")))
    assert len(sample(serve(models=None))) == 1  # no list, no verdict


def test_nobody_there_and_wrong_places(serve):
    server = serve()
    with pytest.raises(BackendError, match=r"404.*ends in /v1"):
        list(replace(backend(server), url=server.url + "/v2").sample([Prompt("p", "q")], PARAMS))
    gone = OpenAIBackend("tiny", "http://127.0.0.1:9/v1", **FAST | {"retries": 1})
    with pytest.raises(BackendError, match=r"ConnectError.*tried 2 times.*Is the server up"):
        list(gone.sample([Prompt("p", "q")], PARAMS))
    moved = serve(status=(308, "", {"Location": "http://there/v1"}))
    with pytest.raises(BackendError, match="http://there/v1"):
        sample(moved)
    broke = serve(status=(429, '{"error": {"code": "insufficient_quota", "message": "You are broke"}}', {}))
    with pytest.raises(BackendError, match="You are broke"):
        sample(broke)
    odd = serve(status=(400, '{"error": {"message": "This is not for you"}}', {}))
    with pytest.raises(BackendError, match="This is not for you"):
        sample(odd)


def test_a_setup_that_breaks_later_ends_it_with_what_came_before(serve):
    server = serve()
    made, prompts = backend(server, concurrency=1), [Prompt(f"p{i}", "q") for i in range(5)]
    rollouts = made.sample(prompts, PARAMS)
    got = [next(rollouts)]
    server.status = (403, '{"error": "key revoked"}', {})
    with pytest.raises(BackendError, match="key revoked"):
        got += list(rollouts)
    assert {r.finish for r in got} == {Finish.STOP}
    assert not threads()


# ---- chats ----


def test_a_chat_opens_the_assistants_turn(serve):
    server = serve()
    got = sample(server, Prompt("a", "question", "step "), Prompt("b", "question"), chat=True)
    assert {r.key: r.text for r in got} == {"a#0": "questionstep 0", "b#0": "question 0"}
    bodies = {len(b["messages"]): b for b in server.bodies if b["messages"][0]["content"] == "question"}
    assert bodies[2]["messages"] == [{"role": "user", "content": "question"}, {"role": "assistant", "content": "step "}]
    assert (bodies[2]["continue_final_message"], bodies[2]["add_generation_prompt"]) == (True, False)
    assert not {"continue_final_message", "add_generation_prompt"} & set(bodies[1])
    assert bodies[1]["logprobs"] is True
    assert [r.tokens for r in got] == [2, 2]
    assert sample(server, chat=True) and not sample(server, Prompt("a", "q", "p", n=0), chat=True)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"continues": False}, "begins another turn"),
        ({"usage": False}, "does not say how many tokens"),
        ({"refuses": ("continue_final_message",)}, "Unrecognized request argument"),
    ],
)
def test_a_chat_that_cant_be_continued_is_an_error_only_where_it_matters(serve, settings, why):
    server = serve(**settings)
    assert len(sample(server, chat=True)) == 1
    with pytest.raises(BackendError, match=rf"can't go on with a solution that was begun.*{why}"):
        sample(server, Prompt("p", "q", "step "), chat=True)
    assert len(sample(server, Prompt("p", "q", "step "))) == 1  # completions can


def test_newer_chats_have_another_name_for_the_budget(serve):
    server = serve(refuses=("max_tokens",))
    assert len(sample(server, chat=True)) == 1
    assert server.bodies[-1]["max_completion_tokens"] == PARAMS.max_tokens
    assert "max_tokens" not in server.bodies[-1]


# ---- faults ----


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "slow", "reset", "hangup", "truncated", "html", "shape", "empty"]
)
def test_a_fault_that_passes_costs_a_try(serve, fault):
    server = serve(faults=["", fault, fault])
    got = sample(server, Prompt("p", "q", n=2), timeout=0.5 if fault == "slow" else 5.0)
    assert [(r.key, r.text, r.finish) for r in got] == [("p#0", "q 0", Finish.STOP), ("p#1", "q 1", Finish.STOP)]
    assert server.counts == {"served": 2, fault: 2}
    assert len(asked(server)) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "429: try later; tried 3 times"),
        ("500", "500: try later"),
        ("slow", "no answer within 0.3 s"),
        ("reset", "the connection failed"),
        ("hangup", "the connection failed"),
        ("truncated", "the answer can't be read: no JSON"),
        ("html", "Bad gateway"),
        ("shape", "a choice without a text"),
        ("empty", "no choices"),
    ],
)
def test_a_fault_that_stays_is_a_failed_rollout_with_the_reason(serve, fault, reason):
    server = serve(faults=["", *[fault] * 3])
    got = sample(server, Prompt("p", "q", n=2), retries=2, timeout=0.3 if fault == "slow" else 5.0)
    for r in got:
        assert (r.text, r.finish, r.tokens, r.prompt_tokens) == ("", Finish.FAILED, 0, 0)
        assert reason in r.reason
    assert [r.index for r in got] == [0, 1]
    assert server.counts == {"served": 1, fault: 3}


@pytest.mark.parametrize("finish", [None, "content_filter", "abort", "error", "tool_calls", ""])
def test_an_end_that_is_none_is_a_failed_rollout_and_charged(serve, said, finish):
    server = serve(lambda body, text, n: [said("half a tex", finish), said("whole")][:n])
    first, second = sample(server, Prompt("p", "q", n=2))
    assert (first.text, first.finish, first.tokens) == ("", Finish.FAILED, 3)
    assert repr(finish) in first.reason
    assert (second.text, second.finish) == ("whole", Finish.STOP)


def test_no_text_at_all_is_a_failed_rollout_but_an_empty_one_is_a_text(serve, said):
    server = serve(lambda body, text, n: [said(""), said("", "length")][:n])
    assert [r.finish for r in sample(server, Prompt("p", "q", n=2))] == [Finish.STOP, Finish.LENGTH]
    silent = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}] * 2}
    [r] = sample(serve(status=(200, json.dumps(silent), {})), chat=True)
    assert (r.finish, r.text) == (Finish.FAILED, "")
    assert "no text" in r.reason


def test_missing_choices_are_asked_for_and_extra_ones_dropped_and_paid(serve):
    server = serve(faults=["", "fewer"])
    got = sample(server, Prompt("p", "q", n=3))
    assert [(r.key, r.text) for r in got] == [("p#0", "q 0"), ("p#1", "q 1"), ("p#2", "q 0")]
    assert [b.get("n", 1) for b in asked(server)] == [3, 1]
    assert [r.prompt_tokens for r in got] == [1, 0, 1]
    more = serve(faults=["", "more"])
    got = sample(more, Prompt("p", "q", n=3))
    assert [(r.key, r.tokens) for r in got] == [("p#0", 4), ("p#1", 2), ("p#2", 2)]


def test_a_prompt_is_cut_off_at_the_context_like_a_local_models(serve):
    prompts = [Prompt("full", "w " * 60, n=2), Prompt("near", "w " * 50, n=2), Prompt("short", "w", n=2)]
    server = serve(context=60)
    got = {r.key: r for r in sample(server, *prompts)}
    assert all(got[f"full#{i}"] == Rollout("full", i, "", Finish.LENGTH, 0) for i in (0, 1))
    assert [got[f"near#{i}"].finish for i in (0, 1)] == [Finish.STOP] * 2
    assert [b["max_tokens"] for b in asked(server) if b["prompt"] == prompts[1].text] == [50, 1, 10]
    assert got["near#0"].prompt_tokens == 100  # the request of one token is charged too
    assert got["short#0"].finish is Finish.STOP


def test_a_prompt_that_is_refused_fails_alone(serve):
    server = serve()
    original = server._reply

    def reply(body, text, chat, fault):
        if "bad" in text:
            return (422, {}), '{"detail": [{"msg": "prompt has a bad word"}]}'
        return original(body, text, chat, fault)

    server._reply = reply
    got = {r.key: r for r in sample(server, Prompt("a", "bad", n=2), Prompt("b", "good"))}
    assert got["b#0"].finish is Finish.STOP
    assert [got[k].finish for k in ("a#0", "a#1")] == [Finish.FAILED] * 2
    assert "422" in got["a#0"].reason and "bad word" in got["a#0"].reason
    assert len(asked(server)) == 1 or server.counts["422"] == 1  # never tried again


def test_retry_after_is_waited_for_but_not_beyond_the_deadline(serve):
    server = serve(faults=["", "429"], headers_429={"Retry-After": "0.4"})
    sample(server)
    before, after = (e.at for e in server.log[1:3])
    assert after - before >= 0.4
    server.headers_429 = {"Retry-After": "3600"}
    server.faults = ["429"]
    [r] = sample(server)
    assert r.finish is Finish.FAILED
    assert "deadline of 20 s allows no more" in r.reason


def test_the_deadline_is_for_all_tries_together(serve):
    server = serve(faults=["", *["slow"] * 50])
    [r] = sample(server, timeout=0.3, deadline=1.0, retries=50)
    assert (r.finish, r.text) == (Finish.FAILED, "")
    assert server.counts["slow"] <= 4


# ---- what is left behind ----


def test_no_more_requests_at_once_than_allowed_and_none_ahead_of_the_reader(serve):
    server = serve(delay=0.02)
    rollouts = backend(server, concurrency=3, n_per_request=2).sample([Prompt("p", "q", n=40)], PARAMS)
    next(rollouts)
    time.sleep(0.2)  # what would come by itself has come
    assert server.served <= 2 * 3
    assert len(list(rollouts)) == 39
    assert server.peak == 3


@pytest.mark.parametrize("how", ["close", "forget", "raise", "exhaust"])
def test_an_early_end_cancels_what_is_under_way(serve, how):
    server = serve(delay=0.05)
    prompts = [Prompt(f"p{i}", "q") for i in range(8)]
    made = backend(server, concurrency=4, timeout=60)
    rollouts = made.sample(prompts, PARAMS)
    next(rollouts)
    assert threads()
    server.delay = 30.0 if how != "exhaust" else 0.0
    if how == "close":
        rollouts.close()
    elif how == "forget":
        del rollouts
        gc.collect()
    elif how == "raise":
        with pytest.raises(KeyboardInterrupt):
            rollouts.throw(KeyboardInterrupt)
    else:
        assert len(list(rollouts)) == 7
    assert not threads()
    deadline = time.monotonic() + 10
    while server.open:
        assert time.monotonic() < deadline  # the server sees the connections close
        time.sleep(0.01)


def test_it_works_inside_another_event_loop(serve):
    import asyncio

    server = serve()

    async def notebook():
        return sample(server)

    assert len(asyncio.run(notebook())) == 1

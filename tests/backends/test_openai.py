"""The backend against a server on loopback: its requests, its reaction to each fault, and its cleanup."""

import gc
import json
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from stepmark.backends.openai import OpenAIBackend, probe, seed_of
from stepmark.cli import app
from stepmark.errors import BackendError, ConfigError
from stepmark.plugins import registry
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

PARAMS = SamplingParams(max_tokens=50)
FAST = {"backoff": 0.001, "retries": 8, "timeout": 5.0, "deadline": 20.0}


@pytest.fixture(autouse=True)
def anew():
    """Drops what is known of earlier servers, since ports are reused."""
    probe.forget()


@pytest.fixture
def serve(fault_server):
    """Settings -> a server that answers "TEXT 0", "TEXT 1", ..., until the test ends."""
    servers = []

    def start(say=None, **settings):
        def echo(body, text, n):
            return [fault_server.Said(f"{text.strip()} {i}") for i in range(n)]

        servers.append(fault_server.Server(say or echo, **settings).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture
def said(fault_server):
    return fault_server.Said


def backend(server, **settings):
    return OpenAIBackend("tiny", server.url, **FAST | settings)


def sample(server, *prompts, params=PARAMS, **settings):
    return list(backend(server, **settings).sample(prompts or [Prompt("p", "q")], params))


def sent_bodies(server):
    """The bodies of the requests after those of the probe."""
    return [b for b in server.bodies if b.get("prompt") != "Hello" and "Hello" not in str(b.get("messages"))]


def threads():
    return [t for t in threading.enumerate() if t.name == "stepmark-requests"]


def test_all_invalid_settings_are_reported_at_once():
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
    openai = registry.load("backend", "openai", model="m", price_input=0.5, price_output=2)
    assert (openai.price, openai.remote) == ((0.5, 2), True)
    assert pickle.loads(pickle.dumps(openai)) == openai  # noqa: S301


# ---- requests and rollouts ----


def test_a_request_has_all_settings(serve):
    server = serve()
    params = SamplingParams(7, 0.7, 0.9, ("a", "", "b", "c", "d", "e"), seed=3)
    rollouts = sample(server, Prompt("p", "q ", "s", n=3, first=2), params=params)
    assert sent_bodies(server) == [
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
    assert rollouts == [
        Rollout("p", 2, "q s 0", Finish.STOP, 3, -1.5, prompt_tokens=2),
        Rollout("p", 3, "q s 1", Finish.STOP, 3, -1.5),
        Rollout("p", 4, "q s 2", Finish.STOP, 3, -1.5),
    ]


def test_the_key_is_sent_to_the_server_only(serve, monkeypatch):
    server = serve(key="sk-secret")
    with pytest.raises(BackendError, match=r"401.*no key was sent.*key_env"):
        sample(server, key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sk-wrong")
    with pytest.raises(BackendError, match=r"Incorrect API key: Bearer \*\*\*.*\$SOME_KEY holds a key"):
        sample(server, key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sk-secret\n")
    assert len(sample(server, key_env="SOME_KEY")) == 1
    assert "secret" not in repr(backend(server, key_env="SOME_KEY"))


def test_the_server_is_url_or_base_url_then_the_environments(serve, monkeypatch):
    server, other = serve(key="sk-mine"), serve()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("OPENAI_BASE_URL", f" {server.url}/ ")
    nowhere = "http://127.0.0.1:9/v1"
    for settings in ({}, {"url": server.url}, {"base_url": server.url}, {"url": server.url, "base_url": server.url}):
        monkeypatch.setenv("OPENAI_BASE_URL", nowhere if settings else f" {server.url}/ ")
        server.log.clear()
        [rollout] = OpenAIBackend("tiny", **FAST, **settings).sample([Prompt("p", "q")], PARAMS)
        assert (rollout.text, server.served) == ("q 0", 1)
    assert other.log == []
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000/v1")
    with pytest.raises(ConfigError, match=r"OPENAI_BASE_URL must begin with http.*localhost:8000"):
        list(OpenAIBackend("tiny").sample([Prompt("p", "q")], PARAMS))
    with pytest.raises(ConfigError, match="one setting"):
        OpenAIBackend("tiny", server.url, base_url=other.url)
    with pytest.raises(ConfigError, match="base_url must begin with http"):
        OpenAIBackend("tiny", base_url="localhost")


def test_the_command_line_takes_the_model_and_the_server_as_users_try_them(serve, monkeypatch, tmp_path):
    server = serve(models=("q", "other"))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    command = ["sample", "--task", "arithmetic", "--problems", "1", "--n", "1", "--backend", "openai"]

    def models_asked(*arguments, code=0):
        server.bodies.clear()
        out = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl")
        done = CliRunner().invoke(app, [*command, *arguments, "--out", out])
        assert done.exit_code == code, done.output
        return {b["model"] for b in server.bodies} or done.stderr

    url = ["--backend-option", f"url={server.url}"]
    assert models_asked("--model", "q", "--backend-option", f"base_url={server.url}") == {"q"}
    assert models_asked(*url, "--backend-option", "model=q") == {"q"}
    assert models_asked(*url, "--backend-option", "model=q", "--model", "other") == {"q"}
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert models_asked("--model", "q") == {"q"}
    assert "the backend openai needs --model" in models_asked(code=2)


def test_rollouts_of_a_prompt_share_requests_up_to_a_limit(serve):
    server = serve()
    rollouts = sample(server, Prompt("a", "q", n=5), Prompt("b", "r", n=2), n_per_request=2)
    assert sorted(r.key for r in rollouts) == ["a#0", "a#1", "a#2", "a#3", "a#4", "b#0", "b#1"]
    assert sorted((b["prompt"], b.get("n", 1)) for b in sent_bodies(server)) == [("q", 1), ("q", 2), ("q", 2), ("r", 2)]
    assert sum(r.prompt_tokens for r in rollouts) == 4  # one word, charged once for each request
    server.bodies.clear()
    sample(server, Prompt("a", "q", n=3), params=replace(PARAMS, temperature=0.0))
    assert [b.get("n") for b in sent_bodies(server)] == [None] * 3  # many servers refuse several greedy choices


def test_each_rollout_has_its_own_seed(serve):
    server = serve()
    sample(server, Prompt("a", "q", n=3, first=1), params=replace(PARAMS, seed=5), seeds=True)
    assert sorted(b["seed"] for b in sent_bodies(server)) == sorted(seed_of(5, "a", i) for i in (1, 2, 3))
    assert len({seed_of(s, p, i) for s in (0, 1) for p in "ab" for i in range(50)}) == 200
    assert all(0 <= seed_of(0, "a", i) < 2**31 for i in range(50))


def test_a_text_ends_before_its_first_stop_string(serve, said):
    stop = ("1", "2", "3", "4", "END", "")
    server = serve(lambda body, text, n: [said("a b END c", "length"), said("a b", "length")][:n])
    rollouts = sample(server, Prompt("p", "q", n=2), params=replace(PARAMS, stop=stop))
    assert [(r.text, r.finish) for r in rollouts] == [("a b ", Finish.STOP), ("a b", Finish.LENGTH)]


@pytest.mark.parametrize(
    ("logprobs", "usage", "tokens"),
    [(True, True, [1, 2, 3, 4]), (False, True, [3, 3, 2, 2]), (True, False, [1, 2, 3, 4]), (False, False, [0] * 4)],
)
def test_tokens_are_counted_or_shared_out(serve, said, logprobs, usage, tokens):
    server = serve(lambda body, text, n: [said("w " * (i + 1)) for i in range(n)], logprobs=logprobs, usage=usage)
    rollouts = sample(server, Prompt("p", "q", n=4))
    assert [r.tokens for r in rollouts] == tokens
    assert [r.logprob for r in rollouts] == [-0.5 * t if logprobs else 0.0 for t in tokens]
    if not (logprobs or usage):
        with pytest.raises(BackendError, match="no price"):
            sample(server, price_input=1.0)


# ---- limited servers ----


def test_a_server_that_ignores_n_gets_one_request_for_each_rollout(serve):
    server = serve(honours_n=False)
    rollouts = sample(server, Prompt("p", "q", n=3))
    assert sorted(r.index for r in rollouts) == [0, 1, 2]
    assert [b.get("n") for b in sent_bodies(server)] == [None] * 3
    assert sum(b.get("n") == 2 for b in server.bodies) == 2  # tried twice, since the first time may be an accident


def test_refused_parameters_are_left_out_from_then_on(serve):
    server = serve(refuses=("n", "top_k", "logprobs", "repeat_penalty"))
    assert len(sample(server, Prompt("p", "q", n=2))) == 2
    for body in sent_bodies(server):
        assert set(probe.NEUTRAL) - set(body) == {"top_k", "repeat_penalty"}
        assert not {"n", "logprobs"} & set(body)
    # Tested once per process.
    count = len(server.bodies)
    sample(server)
    assert len(server.bodies) == count + 1


def test_a_server_like_llama_cpps_python_one(serve):
    """It ignores n, its top_k of 40 is switched off by 0 only, and without log-probabilities it answers 500."""
    server = serve(honours_n=False, refuses=(("top_k", -1),), refusal=(422, "body.top_k: must be 0 or more, not {}"))
    sample(server, Prompt("p", "q", n=2))
    assert [(b["top_k"], b.get("n")) for b in sent_bodies(server)] == [(0, None)] * 2
    server = serve(refuses=("logprobs",), refusal=(500, "{} is not supported for models created with logits_all=False"))
    [r] = sample(server)
    assert (r.tokens, r.logprob, r.finish) == (2, 0.0, Finish.STOP)


def test_one_error_in_the_probe_changes_nothing(serve):
    for fault in ("fewer", "500", "truncated"):
        probe.forget()
        server = serve(faults=[fault])
        sample(server, Prompt("p", "q", n=3))
        assert [b["n"] for b in sent_bodies(server)] == [3]


def test_a_model_that_is_not_there(serve):
    with pytest.raises(BackendError, match=r"no model named 'tiny'. Did you mean 'tinyy'"):
        sample(serve(models=("tinyy",)))
    with pytest.raises(BackendError, match=r"404.*does not exist.*Did you mean 'tine'.*other, tine"):
        sample(serve(models=("other", "tine")))
    assert len(sample(serve(models=None))) == 1  # without a list of models there is no check


def test_missing_servers_and_wrong_addresses(serve):
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
    openai, prompts = backend(server, concurrency=1), [Prompt(f"p{i}", "q") for i in range(5)]
    rollouts = openai.sample(prompts, PARAMS)
    received = [next(rollouts)]
    server.status = (403, '{"error": "key revoked"}', {})
    with pytest.raises(BackendError, match="key revoked"):
        received += list(rollouts)
    assert {r.finish for r in received} == {Finish.STOP}
    assert not threads()


# ---- chats ----


def test_a_chat_opens_the_assistants_turn(serve):
    server = serve()
    rollouts = sample(server, Prompt("a", "question", "step "), Prompt("b", "question"), chat=True)
    assert {r.key: r.text for r in rollouts} == {"a#0": "questionstep 0", "b#0": "question 0"}
    bodies = {len(b["messages"]): b for b in server.bodies if b["messages"][0]["content"] == "question"}
    assert bodies[2]["messages"] == [{"role": "user", "content": "question"}, {"role": "assistant", "content": "step "}]
    assert (bodies[2]["continue_final_message"], bodies[2]["add_generation_prompt"]) == (True, False)
    assert not {"continue_final_message", "add_generation_prompt"} & set(bodies[1])
    assert bodies[1]["logprobs"] is True
    assert [r.tokens for r in rollouts] == [2, 2]
    assert sample(server, chat=True) and not sample(server, Prompt("a", "q", "p", n=0), chat=True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"continues": False}, "begins another turn"),
        ({"usage": False}, "does not report the number of prompt tokens"),
        ({"refuses": ("continue_final_message",)}, "Unrecognized request argument"),
    ],
)
def test_a_chat_that_cant_be_continued_is_an_error_only_for_prefixes(serve, settings, reason):
    server = serve(**settings)
    assert len(sample(server, chat=True)) == 1
    with pytest.raises(BackendError, match=rf"can't continue an assistant's turn.*{reason}"):
        sample(server, Prompt("p", "q", "step "), chat=True)
    assert len(sample(server, Prompt("p", "q", "step "))) == 1  # completions can be continued


def test_newer_chats_have_another_name_for_the_budget(serve):
    server = serve(refuses=("max_tokens",))
    assert len(sample(server, chat=True)) == 1
    assert server.bodies[-1]["max_completion_tokens"] == PARAMS.max_tokens
    assert "max_tokens" not in server.bodies[-1]


# ---- faults ----


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "slow", "reset", "hangup", "truncated", "html", "shape", "empty"]
)
def test_a_temporary_fault_costs_a_retry(serve, fault):
    server = serve(faults=["", fault, fault])
    rollouts = sample(server, Prompt("p", "q", n=2), timeout=0.5 if fault == "slow" else 5.0)
    assert [(r.key, r.text, r.finish) for r in rollouts] == [("p#0", "q 0", Finish.STOP), ("p#1", "q 1", Finish.STOP)]
    assert server.counts == {"served": 2, fault: 2}
    assert len(sent_bodies(server)) == 3


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
def test_a_lasting_fault_is_a_failed_rollout_with_the_reason(serve, fault, reason):
    server = serve(faults=["", *[fault] * 3])
    rollouts = sample(server, Prompt("p", "q", n=2), retries=2, timeout=0.3 if fault == "slow" else 5.0)
    for r in rollouts:
        assert (r.text, r.finish, r.tokens, r.prompt_tokens) == ("", Finish.FAILED, 0, 0)
        assert reason in r.reason
    assert [r.index for r in rollouts] == [0, 1]
    assert server.counts == {"served": 1, fault: 3}


@pytest.mark.parametrize("finish", [None, "content_filter", "abort", "error", "tool_calls", ""])
def test_an_invalid_finish_reason_is_a_failed_rollout_and_charged(serve, said, finish):
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
    rollouts = sample(server, Prompt("p", "q", n=3))
    assert [(r.key, r.text) for r in rollouts] == [("p#0", "q 0"), ("p#1", "q 1"), ("p#2", "q 0")]
    assert [b.get("n", 1) for b in sent_bodies(server)] == [3, 1]
    assert [r.prompt_tokens for r in rollouts] == [1, 0, 1]
    generous = serve(faults=["", "more"])
    rollouts = sample(generous, Prompt("p", "q", n=3))
    assert [(r.key, r.tokens) for r in rollouts] == [("p#0", 4), ("p#1", 2), ("p#2", 2)]


def test_a_prompt_is_cut_off_at_the_context_like_a_local_models(serve):
    prompts = [Prompt("full", "w " * 60, n=2), Prompt("near", "w " * 50, n=2), Prompt("short", "w", n=2)]
    server = serve(context=60)
    rollouts = {r.key: r for r in sample(server, *prompts)}
    assert all(rollouts[f"full#{i}"] == Rollout("full", i, "", Finish.LENGTH, 0) for i in (0, 1))
    assert [rollouts[f"near#{i}"].finish for i in (0, 1)] == [Finish.STOP] * 2
    assert [b["max_tokens"] for b in sent_bodies(server) if b["prompt"] == prompts[1].text] == [50, 1, 10]
    assert rollouts["near#0"].prompt_tokens == 100  # the request of one token is charged too
    assert rollouts["short#0"].finish is Finish.STOP


def test_a_prompt_that_is_refused_fails_alone(serve):
    server = serve()
    original = server._reply

    def reply(body, text, chat, fault):
        if "bad" in text:
            return (422, {}), '{"detail": [{"msg": "prompt has a bad word"}]}'
        return original(body, text, chat, fault)

    server._reply = reply
    rollouts = {r.key: r for r in sample(server, Prompt("a", "bad", n=2), Prompt("b", "good"))}
    assert rollouts["b#0"].finish is Finish.STOP
    assert [rollouts[k].finish for k in ("a#0", "a#1")] == [Finish.FAILED] * 2
    assert "422" in rollouts["a#0"].reason and "bad word" in rollouts["a#0"].reason
    assert len(sent_bodies(server)) == 1 or server.counts["422"] == 1  # no retry


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


def test_the_deadline_is_for_all_attempts_together(serve):
    server = serve(faults=["", *["slow"] * 50])
    [r] = sample(server, timeout=0.3, deadline=1.0, retries=50)
    assert (r.finish, r.text) == (Finish.FAILED, "")
    assert server.counts["slow"] <= 4


# ---- cleanup ----


def test_no_more_requests_at_once_than_allowed_and_none_ahead_of_the_reader(serve):
    server = serve(delay=0.02)
    rollouts = backend(server, concurrency=3, n_per_request=2).sample([Prompt("p", "q", n=40)], PARAMS)
    next(rollouts)
    time.sleep(0.2)  # time for requests that run ahead of the reader
    assert server.served <= 2 * 3
    assert len(list(rollouts)) == 39
    assert server.peak == 3


@pytest.mark.parametrize("ending", ["close", "forget", "raise", "exhaust"])
def test_an_early_end_cancels_what_is_under_way(serve, ending):
    server = serve(delay=0.05)
    prompts = [Prompt(f"p{i}", "q") for i in range(8)]
    openai = backend(server, concurrency=4, timeout=60)
    rollouts = openai.sample(prompts, PARAMS)
    next(rollouts)
    assert threads()
    server.delay = 30.0 if ending != "exhaust" else 0.0
    if ending == "close":
        rollouts.close()
    elif ending == "forget":
        del rollouts
        gc.collect()
    elif ending == "raise":
        with pytest.raises(KeyboardInterrupt):
            rollouts.throw(KeyboardInterrupt)
    else:
        assert len(list(rollouts)) == 7
    assert not threads()
    deadline = time.monotonic() + 10
    while server.open:  # until the server sees the connections close
        time.sleep(0.01)
        assert time.monotonic() < deadline


def test_it_works_inside_another_event_loop(serve):
    import asyncio

    server = serve()

    async def notebook():
        return sample(server)

    assert len(asyncio.run(notebook())) == 1

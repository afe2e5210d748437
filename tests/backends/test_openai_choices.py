"""Probabilities of choices from a server on loopback. Its word model has known probabilities, and settings make it
limited or wrong."""

import hashlib
import json
import math
import re

import pytest

from stepmark.backends.openai import OpenAIBackend, choices, listing, probe
from stepmark.backends.openai.replies import Malformed
from stepmark.errors import BackendError, ConfigError

FAST = {"backoff": 0.001, "retries": 4, "timeout": 5.0, "deadline": 20.0}
VOCABULARY = [
    " Yes",
    " No",
    "No",
    " not",
    " sure",
    "?",
    ".",
    " it",
    " is",
    " so",
    "\n",
    " a",
    " b",
    " c",
    " d",
    " e",
    "<e>",
]
TEXTS = ["Is it so?", "Is it a b?\n\nSo is it? It is", "Why. Not", "It is so. Is it so?"]
PAIR = (" Yes", " No")
LONGER = (" Yes", " not sure", " Maybe")


def words(text):
    return re.findall(r" ?[^\W\d_]+|\s|[^\w\s]| ?\d", text)


def log_probs_after(before):
    """Token -> log-probability after these tokens. It depends strongly on the last two."""
    context = "|".join(before[-2:])
    weights = {t: 6 * hashlib.sha256(f"{context}>{t}".encode()).digest()[0] / 255 for t in VOCABULARY}
    total = math.log(sum(map(math.exp, weights.values())))
    return {t: w - total for t, w in weights.items()}


def log_prob(before, token):
    return log_probs_after(before).get(token, -9.0 - len(token))


def expected(text, options):
    start = words(text)
    sums = []
    for option in options:
        tokens = words(option)
        sums.append(sum(log_prob(start + tokens[:i], token) for i, token in enumerate(tokens)))
    total = sum(map(math.exp, sums))
    return [math.exp(s) / total for s in sums]


@pytest.fixture(autouse=True)
def anew():
    """Drops what is known of earlier servers, since ports are reused."""
    probe.forget()
    choices.forget()


@pytest.fixture
def serve(fault_server):
    """Settings -> a server with the word model."""
    servers = []

    class Words(fault_server.Server):
        echo = "good"  # ignored, shifted (values of the next token), refused
        top = 20  # length of its list of the most probable tokens
        most = 20  # largest length that can be requested; more is refused
        ids = False  # gives token ids
        named = False  # gives named tokens, and then no list
        bos = ""  # first token of an echo
        marks = False  # writes a space as tokenizers do
        listed = True  # gives log-probabilities at all
        chatty = False  # answers a completion like a chat
        known = ()  # id -> token
        opens = False  # its tokenizer adds a space before a text

        def _prompt_tokens(self, body, text, chat):
            return 3

        def _reply(self, body, text, chat, fault):
            status, reply = super()._reply(body, text, chat, fault)
            requested = body.get("top_logprobs" if chat else "logprobs")
            if status[0] != 200 or requested is None:
                return status, self._with_ids(body, text, reply) if status[0] == 200 else reply
            if requested > self.most:
                return (400, {}), json.dumps({"error": {"message": f"logprobs must be at most {self.most}"}})
            if body.get("echo") and self.echo == "refused":
                return (400, {}), json.dumps({"error": {"message": "echo is not available here"}})
            before = [self.known[i] for i in text] if isinstance(text, list) else self._words(text)
            log_probs = log_probs_after(before)
            if body["temperature"] == 0:
                new = max(log_probs, key=log_probs.get)
            else:
                new = self.rng.choices(list(log_probs), [math.exp(v) for v in log_probs.values()])[0]
            whole = json.loads(reply)
            text_out, rows = new, []
            echoed = body.get("echo") and self.echo != "ignored"
            if echoed:
                tokens = [self.bos] * bool(self.bos) + before
                offset = 1 if self.echo == "shifted" else 0
                for i in range(bool(self.bos), len(tokens)):
                    past = tokens[bool(self.bos) : i + offset]
                    rows.append((tokens[i], log_prob(past, tokens[i]) if past else None, {}))
                rows = [(self.bos, None, {})] * bool(self.bos) + rows
                text_out = "".join(t for t, _, _ in rows) + new
            if body.get("max_tokens") or not echoed:
                likeliest = sorted(log_probs, key=log_probs.get, reverse=True)[: min(requested, self.top)]
                if self.named and body.get("logprob_token_ids"):
                    likeliest = [new, *(self.known[i] for i in body["logprob_token_ids"])]
                rows.append((new, log_probs[new], {t: log_prob(before, t) for t in likeliest}))
            choice = whole["choices"][0]
            if chat:
                choice["message"]["content"] = text_out
            else:
                choice["text"] = text_out
            show = self._show(body)
            if self.listed:
                choice["logprobs"] = (
                    {
                        "content": [
                            {
                                "token": show(t),
                                "logprob": v,
                                "top_logprobs": [{"token": show(x), "logprob": y} for x, y in top.items()],
                            }
                            for t, v, top in rows
                        ]
                    }
                    if chat or self.chatty
                    else {
                        "tokens": [show(t) for t, _, _ in rows],
                        "token_logprobs": [v for _, v, _ in rows],
                        "top_logprobs": [{show(x): y for x, y in top.items()} for _, _, top in rows],
                    }
                )
            else:
                choice.pop("logprobs", None)
            return status, self._with_ids(body, text, json.dumps(whole))

        def _with_ids(self, body, text, reply):
            if not (self.ids and body.get("return_token_ids")):
                return reply
            whole = json.loads(reply)
            ids = text if isinstance(text, list) else [self._id(t) for t in self._words(text)]
            whole["choices"][0]["prompt_token_ids"] = ids
            return json.dumps(whole)

        def _words(self, text):
            return words(f" {text}" if self.opens and not text.startswith(" ") else text)

        def _show(self, body):
            if self.ids and body.get("return_tokens_as_token_ids"):
                return lambda t: f"token_id:{self._id(t)}"
            return lambda t: t.replace(" ", "\u0120") if self.marks else t

        def _id(self, token):
            if token not in self.known:
                self.known.append(token)
            return self.known.index(token)

    def make(**settings):
        own = {k: settings.pop(k) for k in list(settings) if k in vars(Words)}

        def say(body, text, n):
            return [fault_server.Said("x")] * n

        server = Words(say, **settings)
        vars(server).update(own)
        server.known = list(VOCABULARY)
        servers.append(server.__enter__())
        return server

    yield make
    for server in servers:
        server.__exit__()


def backend(server, **settings):
    return OpenAIBackend("tiny", server.url, **FAST | settings)


def check(server, options, texts=TEXTS, **settings):
    rows = backend(server, **settings).choice_probs(texts, options)
    for text, row in zip(texts, rows, strict=True):
        assert row == pytest.approx(expected(text, options), abs=1e-9)
    return rows


HONEST = [
    {},
    {"ids": True},
    {"bos": "<s>"},
    {"marks": True},
    {"chatty": True},
    {"most": 5},
    {"top": 0},
    {"ids": True, "top": 1},
    {"ids": True, "top": 3, "named": True},
    {"ids": True, "top": 0, "named": True},
    {"ids": True, "top": 3, "refuses": ("logprob_token_ids",)},
    {"refuses": ("return_token_ids",)},
    {"refuses": (("max_tokens", 0),), "bos": "<s>"},
    {"refuses": ("return_tokens_as_token_ids", "top_k", "min_p")},
]


@pytest.mark.parametrize("settings", HONEST, ids=lambda s: ",".join(s) or "plain")
@pytest.mark.parametrize("options", [PAIR, LONGER], ids=["tokens", "longer"])
def test_choices_have_the_probabilities_of_the_model(serve, settings, options):
    check(serve(**settings), options)


@pytest.mark.parametrize("settings", [{"echo": "ignored"}, {"echo": "shifted"}, {"echo": "refused"}], ids=str)
def test_without_a_reliable_echo_the_list_of_tokens_is_used(serve, settings):
    server = serve(**settings)
    check(server, PAIR)
    with pytest.raises(BackendError, match=r"not all of .* Maybe.*vLLM"):
        backend(server).choice_probs(TEXTS, LONGER)


@pytest.mark.parametrize("echo", ["ignored", "shifted", "refused"])
def test_a_choice_that_is_not_listed_is_an_error_and_never_a_zero(serve, echo):
    with pytest.raises(BackendError, match="likeliest tokens"):
        backend(serve(echo=echo, top=3)).choice_probs(["Why. Not"] * 3, PAIR)


@pytest.mark.parametrize("echo", ["ignored", "shifted", "refused"])
def test_a_server_without_log_probabilities_is_an_error_with_advice(serve, echo):
    with pytest.raises(BackendError, match=r"no log-probabilities.*vLLM"):
        backend(serve(echo=echo, top=0)).choice_probs(TEXTS, PAIR)


def test_a_server_that_ignores_log_probabilities_is_detected(serve):
    with pytest.raises(BackendError, match=r"ignores the request for log-probabilities.*vLLM"):
        backend(serve(listed=False, logprobs=False)).choice_probs(TEXTS, PAIR)


def test_a_chat_is_read_by_its_list_of_tokens(serve):
    server = serve()
    check(server, PAIR, chat=True)
    assert all("messages" in body and not body.get("echo") for body in server.bodies)
    with pytest.raises(BackendError, match="a chat is not echoed"):
        backend(server, chat=True).choice_probs(TEXTS, LONGER)


def test_a_choice_that_merges_with_the_text_is_an_error_unless_the_server_gives_ids(serve):
    text, options = "It is no", ("t sure", " Yes")
    with pytest.raises(BackendError, match="merges the beginning of 't sure'"):
        backend(serve()).choice_probs([text], options)
    check(serve(ids=True), options, [text])


@pytest.mark.parametrize("named", [False, True])
def test_a_choice_is_its_tokens_after_a_text_not_those_that_open_one(serve, named):
    check(serve(ids=True, opens=True, named=named), (" Yes", "Yes", " No", "No"))


@pytest.mark.parametrize("top", [0, 3])
def test_tokens_that_are_not_listed_are_named_before_anything_is_echoed(serve, top):
    server = serve(ids=True, named=True, top=top, echo="refused")
    check(server, PAIR)
    probe_bodies = len(server.bodies)
    check(server, PAIR)
    later = server.bodies[probe_bodies:]
    assert any(body.get("logprob_token_ids") for body in later)
    assert not any(body.get("echo") for body in later)
    with pytest.raises(BackendError, match="vLLM"):
        backend(server).choice_probs(TEXTS, LONGER)


def test_where_most_lists_lack_a_choice_no_more_of_them_are_asked_for(serve):
    server = serve(ids=True, named=True, top=2)
    texts = [f"Is it {c}?" for c in "abcdefghijklmnop"]
    check(server, PAIR, texts, concurrency=1)
    before = len(server.bodies)
    check(server, PAIR, texts, concurrency=1)
    later = server.bodies[before + len(PAIR) :]
    lists = [body for body in later if not body.get("logprob_token_ids")]
    assert len(later) == len(texts) + len(lists)
    assert len(lists) < len(texts) / 2


def test_one_request_brings_all_choices_and_equal_texts_are_asked_for_once(serve):
    server = serve(ids=True)
    check(server, PAIR)
    before = len(server.bodies)
    rows = check(server, PAIR, TEXTS * 5)
    assert len(server.bodies) - before == len(TEXTS) + len(PAIR)
    assert rows[:4] == rows[4:8]
    assert backend(server).choice_probs([], PAIR) == []


def test_requests_run_side_by_side_up_to_the_limit_and_failures_that_may_pass_are_tried_again(serve):
    server = serve(delay=0.03, ids=True)
    texts = [f"Is it {c}?" for c in "abcdefghijklmnop"]
    check(server, PAIR, texts, concurrency=4)
    assert server.peak == 4
    server.faults.extend(["429", "reset", "truncated", "html"])
    check(server, PAIR, texts)
    assert server.counts["429"] == server.counts["truncated"] == 1


def test_a_lasting_fault_is_an_error(serve):
    server = serve(ids=True)
    check(server, PAIR)
    server.faults.extend(["500"] * 200)
    with pytest.raises(BackendError, match="tried 5 times"):
        backend(server).choice_probs(TEXTS, PAIR)
    server.faults.clear()
    server.context = 3
    with pytest.raises(BackendError, match="context"):
        backend(server).choice_probs(TEXTS, PAIR)


@pytest.mark.parametrize("options", [(), ("",), (" Yes", "")])
def test_empty_choices_are_refused(serve, options):
    with pytest.raises(ConfigError, match="choices"):
        backend(serve()).choice_probs(TEXTS, options)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a"], "token_logprobs": [-1.0, -2.0]},
        {"tokens": ["a"], "token_logprobs": ["high"]},
        {"tokens": ["a"], "token_logprobs": [float("nan")]},
        {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -0.1, "b": -0.1}]},
        {"content": [{"token": "a", "logprob": True}]},
    ],
)
def test_invalid_log_probabilities_are_malformed(logprobs):
    reply = {"choices": [{"text": "a", "finish_reason": "length", "logprobs": logprobs}]}
    with pytest.raises(Malformed):
        listing.parse(json.dumps(reply).encode())

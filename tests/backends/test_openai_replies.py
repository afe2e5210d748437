"""Reading replies and errors of a server, valid or not."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.backends.openai import replies

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
REPLY = st.fixed_dictionaries(
    {},
    optional={
        "choices": JSON
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "text": st.text(max_size=5) | JSON,
                    "message": JSON | st.fixed_dictionaries({"content": st.text(max_size=5) | JSON}),
                    "finish_reason": st.sampled_from(["stop", "length", None]) | JSON,
                    "logprobs": JSON | st.fixed_dictionaries({"token_logprobs": st.lists(st.floats() | st.none())}),
                },
            ),
            max_size=3,
        ),
        "usage": JSON | st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON}),
        "error": JSON,
    },
)


@given(REPLY | JSON)
def test_any_json_is_a_reply_or_malformed(value):
    body = json.dumps(value).encode()
    try:
        reply = replies.parse(body)
    except replies.Malformed as e:
        assert str(e)
        return
    assert reply.choices
    for c in reply.choices:
        assert isinstance(c.text, str | None) and isinstance(c.finish, str | None)
        assert c.logprob <= 0 and (c.tokens is None or c.tokens > 0)
    assert all(x is None or x >= 0 for x in (reply.prompt_tokens, reply.completion_tokens))


@given(st.binary(max_size=60))
def test_bytes_are_malformed_or_a_message(body):
    with pytest.raises(replies.Malformed):
        replies.parse(body)
    assert isinstance(replies.message(body), str)
    replies.too_long(body), replies.context_limit(body)


@given(st.data())
def test_a_reply_that_is_cut_anywhere_is_malformed(data):
    body = json.dumps({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}).encode()
    assert replies.parse(body).choices[0].text == "a"
    with pytest.raises(replies.Malformed):
        replies.parse(body[: data.draw(st.integers(0, len(body) - 1))])


@given(st.integers(0, 10**6), st.integers(0, 10**5))
def test_retry_after_reads_seconds_and_dates(seconds, ahead):
    now = datetime(2026, 1, 31, 23, 59, 0, tzinfo=UTC)
    assert replies.retry_after(str(seconds), 0.0) == seconds
    date = format_datetime(now + timedelta(seconds=ahead), usegmt=True)
    assert replies.retry_after(date, now.timestamp()) == ahead
    assert replies.retry_after(date, now.timestamp() + ahead + 5) == 0.0


@given(st.text() | st.sampled_from(["nan", "inf", "-inf", "1e999", "-5", "Wed, 99 Foo", "0, 0 0 0:0:0", "١"]))
def test_retry_after_never_raises(value):
    seconds = replies.retry_after(value, 1e9)
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (
            "This model's maximum context length is 4097 tokens, however you requested 5000 tokens (4900 in your",
            4097,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum context length is 256 "
            "tokens and your request has 200 input tokens (100 > 256 - 200).",
            256,
        ),
        (
            "This model's maximum context length is 163840 tokens. However, you requested 32000 output tokens and your "
            "prompt contains at least 131841 input tokens, for a total of at least 163841 tokens.",
            163840,
        ),
        (
            "You passed 12289 input tokens and requested 4096 output tokens. However, the model's context length is "
            "only 16384 tokens, resulting in a maximum input length of 12288 tokens.",
            16384,
        ),
        ("The decoder prompt (length 300) is longer than the maximum model length of 256.", 256),
        ('{"error":{"message":"request exceeds the available context size","n_prompt_tokens":305,"n_ctx":512}}', 512),
        ("Input length (300 tokens) exceeds the maximum allowed length (256 tokens).", 256),
        ("Requested token count exceeds the model's maximum context length of 256 tokens. You requested 300", 256),
        ("max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", None),
        ('{"error": {"code": "context_length_exceeded", "message": "too long"}}', None),
    ],
)
def test_a_full_context_is_recognised_in_many_messages(body, limit):
    assert replies.too_long(body.encode())
    assert replies.context_limit(body.encode()) == limit
    assert not replies.too_long(b'{"error": "temperature must be a number of at most 2"}')


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("n must be 1", True),
        ("'n'", True),
        ("no such option", False),
        ("line\nline", False),
        ("top_n", False),
        ("n\n", True),
    ],
)
def test_an_error_names_a_parameter_or_not(message, named):
    assert replies.names(json.dumps({"error": message}).encode(), "n") is named


@pytest.mark.parametrize(
    "body",
    ['{"error": {"message": "oh no"}}', '{"error": "oh no"}', '{"message": "oh no"}', '{"detail": "oh no"}', "oh no"],
)
def test_a_servers_own_message_is_found(body):
    assert replies.message(body.encode()) == "oh no"

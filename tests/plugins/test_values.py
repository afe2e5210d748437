"""`key=value` settings: each value is read by the type of its setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.plugins import registry, values

TRICKY = (
    "-",
    "no",
    "null",
    "~",
    "none",
    "1e5",
    "0x10",
    "010",
    "1:30",
    "[a",
    "{question}",
    "a: b",
    "# x",
    "&a",
    "",
    " ",
)


@dataclass(frozen=True)
class Inner:
    word: str = ""
    maybe: str | None = None
    count: int | None = None


TYPES = {
    "text": str,
    "maybe_text": str | None,
    "noted": Annotated[str, "note"],
    "texts": Sequence[str],
    "pair": tuple[float, str],
    "count": int | None,
    "rate": float,
    "flag": bool,
    "word": Literal["null", "soft"],
    "word_or_none": Literal["a"] | None,
    "inner": Inner | None,
    "mapping": Mapping[str, Any],
    "named": dict[str, Inner],
    "text_or_weights": str | dict[str, float] | None,
    "text_or_texts": str | tuple[str, ...] | None,
    "anything": Any,
    "function": Callable[[str], str],
}


def read(*changes, raw=None):
    return values.changed(raw or {}, changes, TYPES)


def one(key, text):
    return read(f"{key}={text}")[key]


@pytest.mark.parametrize("key", ["text", "maybe_text", "noted"])
@given(st.text() | st.sampled_from(TRICKY))
def test_a_text_stays_as_it_stands(key, text):
    assert one(key, text) == text


@given(st.lists(st.sampled_from(TRICKY) | st.text(st.characters(codec="utf-8", exclude_categories=["C"]))))
@example(list(TRICKY))
def test_texts_in_brackets_are_texts(texts):
    written = yaml.safe_dump(texts, default_flow_style=True, allow_unicode=True, width=10**6)
    assert one("texts", written) == texts
    assert read(f"inner.word={texts}")["inner"]["word"] == str(texts)


@given(st.integers(), st.floats(allow_nan=False), st.booleans())
def test_numbers_and_truths_come_back(count, rate, flag):
    assert read(f"count={count}", f"rate={rate!r}", f"flag={flag}") == {"count": count, "rate": rate, "flag": flag}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(("count", text, None) for text in ("null", "none", "~", "", "NULL")),
        ("count", "many", "many"),  # the check of the setting refuses it
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2),
        ("flag", "no", False),
        ("flag", "ON", True),
        ("flag", "1", "1"),
        ("word", "null", "null"),
        ("word_or_none", "null", None),
        ("texts", "[no, 1e5, null]", ["no", "1e5", "null"]),
        ("texts", "no", ["no"]),
        ("texts", "", []),
        ("pair", "[1, 1]", [1, "1"]),
        ("inner", "null", None),
        ("inner", "name", "name"),
        ("inner", "{word: no, count: 3}", {"word": "no", "count": 3}),
        ("inner", "{word: null, maybe: null, count: null}", {"word": "null", "maybe": None, "count": None}),
        ("inner", "{maybe: 'null', word: \"1\"}", {"maybe": "null", "word": "1"}),
        ("mapping", "{a: 1, b: [x, 2], c: '1', d: no}", {"a": 1, "b": ["x", 2], "c": "1", "d": False}),
        ("named", "{no: {word: on}}", {"no": {"word": "on"}}),
        ("text_or_weights", "prm", "prm"),
        ("text_or_weights", "{prm: 1, gold: 0.5}", {"prm": 1, "gold": 0.5}),
        ("text_or_texts", "[a, no]", ["a", "no"]),
        ("text_or_texts", "null", None),
        ("text_or_texts", "no", "no"),
        ("text_or_weights", "", None),
        ("anything", "[1, no, 'no']", [1, False, "no"]),
        ("anything", "2.5", 2.5),
        ("function", "[1]", [1]),
        ("unknown", "yes", True),
    ],
)
def test_a_value_is_read_by_its_type(key, text, value):
    got = one(key, text)
    assert got == value
    assert type(got) is type(value)


def test_later_changes_go_into_earlier_ones():
    assert read("inner={word: no}", "inner.count=2") == {"inner": {"word": "no", "count": 2}}
    assert read("inner=prm", "inner.word=1") == {"inner": {"name": "prm", "word": "1"}}
    assert read("inner=null", "inner.word=1") == {"inner": {"word": "1"}}
    assert read("named.a.word=no", raw={"named": {"a": {"count": 1}}}) == {"named": {"a": {"count": 1, "word": "no"}}}


@pytest.mark.parametrize(
    "change", ["texts=[a", "inner={a: {b}", "anything={", "mapping={a: &a [*a]}", "inner={.word=1", "anything=!x"]
)
def test_broken_yaml_is_named(change):
    with pytest.raises(ConfigError, match="is not YAML") as e:
        read("flag=yes", change)
    assert repr(change) in str(e.value)


@pytest.mark.parametrize("role", registry.ROLES)
def test_the_type_of_every_option_is_known(role):
    for name in registry.names(role):
        assert set(registry.options(role, name)) <= set(registry.types_of(registry.find(role, name)))

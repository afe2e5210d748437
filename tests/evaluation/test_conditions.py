"""Conditions on scores: they mean what Python means, and nothing else can stand in them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.evaluation.conditions import LONGEST, NAMES, Condition, facts_of
from stepmark.text.steps import split
from stepmark.types import Solution, Verification

FACTS = {name: i / 4 for i, name in enumerate(NAMES)}
number = st.one_of(st.sampled_from(list(NAMES)), st.integers(-3, 3).map(str), st.floats(-1, 2).map(repr))
comparison = st.builds(
    lambda first, rest: first + "".join(f" {how} {x}" for how, x in rest),
    number,
    st.lists(st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), number), min_size=1, max_size=3),
)
condition = st.recursive(
    comparison,
    lambda inner: st.one_of(
        inner.map(lambda x: f"not ({x})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda x: f"({x[0]}) {x[1]} ({x[2]})"),
    ),
    max_leaves=6,
)


@given(condition.filter(lambda text: len(text) <= LONGEST))
def test_it_means_what_python_means(text):
    found = Condition(text)
    assert found(FACTS) is eval(text, {"__builtins__": {}}, FACTS)  # noqa: S307 - a text made above
    assert bool(found.failed(FACTS)) is not found(FACTS)


WRONG = [
    *("", "min", "0.5", "min >", "min > > 1", "True", "not min", "min and last", "min > True", "min > None"),
    *(
        "min > 'a'",
        "min > [1]",
        "min > (1, 2)",
        "min in (1, 2)",
        "min is 1",
        "min > 1j",
        "min + 1 > 2",
        "score > 9 ** 9",
    ),
    *("__import__('os').system('true') == 0", "min.__class__ == 1", "(lambda: 1)() > 0", "[x for x in (1,)] == 1"),
    *("f'{min}' == 1", "min := 1", "mni > 1", "a = 1", "min > 0; 1", "min > 0\n1", "\0", "\ud800 > 1", "~min > 1"),
    *("(" * 900, "not " * 300, "min > 0 or mni > 1", "min > 0 and " * 90 + "1", "-" * 900 + "1 > 0"),
]


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_nothing_else_is_a_condition(text):
    with pytest.raises(ConfigError, match=r"min > 0.5|at most 500"):
        Condition(text)


@given(st.text(max_size=60))
def test_any_other_text_is_refused_or_read(text):
    with contextlib.suppress(ConfigError):
        assert Condition(text)(FACTS) in (True, False)


def test_the_parts_that_do_not_hold_are_named():
    found = Condition("min > 0.5 and (last > 2 or not steps == 1) and tokens < 3")
    facts = FACTS | {"min": 0.2, "last": 1.0, "steps": 1.0, "tokens": 2.0}
    assert found.failed(facts) == "min > 0.5; last > 2 or not steps == 1"


def test_the_facts_of_a_solution():
    text = "one\ntwo\nthree"
    v = Verification("p#0", (0.5, 0.2, 0.8), 0.2, "min", tokens=9)
    facts = facts_of(v, Solution("p#0", "p", 0, text, split(text)))
    assert set(facts) == set(NAMES)
    assert facts == pytest.approx(
        {"min": 0.2, "mean": 0.5, "prod": 0.08, "last": 0.8, "score": 0.2, "steps": 3, "tokens": 9, "characters": 13}
    )

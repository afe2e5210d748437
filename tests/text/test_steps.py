"""Splitting a text into steps: no character is lost, no step is blank."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError, UnknownName
from stepmark.integrations.rewards import Rewarder
from stepmark.plugins import registry
from stepmark.run import recipe
from stepmark.text import steps

STRANGERS = Path(__file__).parents[1] / "strangers"

# Pieces at which splitters split, among any other characters.
PIECES = [
    "\n",
    "\n\n",
    " ",
    "\t",
    "\r\n",
    "\x0b",
    "\x85",
    "\u2028",
    "\u2029",
    "\u3000",
    "Step 2:",
    "Step 10.",
    ". A",
    "! 3",
    '." (',
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join)

# Rules of a user's own: some match nothing, some match empty, some end before or within white space.
OWN = [
    "re:;",
    "re:",
    r"re:\s",
    r"re:(?<=[.!?])",
    r"re:(?m)^",
    r"re:(?=\s)",
    r"re:\b",
    "re:.",
    "re:(?s).*",
    "re:a|",
    "re: ",
]
RULES = sorted(steps.SPLITTERS) + OWN


@given(TEXT, st.sampled_from(RULES))
def test_splits_join_to_the_text_and_no_step_is_blank(text, how):
    spans = steps.split(text, how)
    assert "".join(text[a:b] for a, b in spans) == (text if text.strip() else "")
    assert all(text[a:b].strip() for a, b in spans)
    ends = [b for _, b in spans]
    assert [a for a, _ in spans] == [0, *ends[:-1]][: len(spans)]
    assert steps.prefixes(text, spans) == tuple(text[:b] for b in ends)


@given(TEXT, st.sampled_from(RULES))
def test_no_step_begins_with_white_space_but_the_first(text, how):
    assert not any(text[a].isspace() for a, _ in steps.split(text, how)[1:])


@given(TEXT, st.sampled_from(sorted(steps.SPLITTERS)))
def test_trailing_separators_belong_to_the_last_step(text, how):
    if text.strip():
        assert len(steps.split(text.rstrip() + "\n\n \n", how)) == len(steps.split(text.rstrip(), how))


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("line", "\n a = 1\n\n\tb = 2 \r\nc = 3\n\n", ["a = 1", "b = 2", "c = 3"]),
        ("paragraph", "one\ntwo\n \nthree\n\n\n", ["one\ntwo", "three"]),
        ("sentence", "It is 3.5 now. So 4. (Then it ends!) Yes", ["It is 3.5 now.", "So 4.", "(Then it ends!)", "Yes"]),
        ("sentence", "e.g. this stays", ["e.g. this stays"]),
        (
            "numbered",
            "First, Step 1: add. Step 2: see Step 3\nStep 3. done",
            ["First,", "Step 1: add.", "Step 2: see Step 3", "Step 3. done"],
        ),
        (r"re:;", "a = 1; b = 2;\n c = 3;", ["a = 1;", "b = 2;", "c = 3;"]),
        (r"re:(?<=[.!?])(?<!\be\.g\.)\s", "Aspirin, e.g. 300 mg. It helps.", ["Aspirin, e.g. 300 mg.", "It helps."]),
        (r"re:\n(?=def )", "import re\ndef f():\n    pass\n", ["import re", "def f():\n    pass"]),
    ],
)
def test_known_splits(how, text, expected):
    assert [text[a:b].strip() for a, b in steps.split(text, how)] == expected


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t\u2028"])
def test_a_blank_text_has_no_steps(text):
    assert all(steps.split(text, how) == () for how in steps.SPLITTERS)


def test_an_unknown_way_is_refused():
    with pytest.raises(UnknownName, match="Did you mean 'line'"):
        steps.split("a", "lines")
    with pytest.raises(UnknownName, match="A regular expression after whose matches steps begin works too"):
        steps.split("a", "re")
    with pytest.raises(ConfigError, match=r"steps is 're:\(a', and what follows re: is no regular expression: missing"):
        steps.split("a", "re:(a")


@pytest.mark.parametrize("how", sorted(steps.SPLITTERS))
@pytest.mark.parametrize(
    "text", ["a\n" * 300_000, "a" + " " * 600_000 + "b", "a" + "\n \t" * 200_000 + "b", "Step 1: a. " * 50_000]
)
def test_long_texts_are_split_too(how, text):
    # A quadratic algorithm would take hours on these texts.
    spans = steps.split(text, how)
    assert "".join(text[a:b] for a, b in spans) == text


def test_a_rule_of_ones_own_is_taken_and_checked_wherever_a_name_is():
    own, bad = r"re:;\s", "re:(a"
    takers = [
        lambda how: registry.load("labeler", "rule", steps=how),
        lambda how: registry.load("labeler", "nli", path="model", steps=how),
        lambda how: registry.load("task", "jsonl", path="mine.jsonl", steps=how),
        lambda how: Rewarder(registry.load("verifier", str(STRANGERS / "verifier.py")), steps=how),
        lambda how: recipe.parse({"name": "x", "task": "arithmetic", "generator": {"path": "m"}, "steps": how}, "x"),
    ]
    for take in takers:
        take(own)
        with pytest.raises(ConfigError, match="no regular expression: missing"):
            take(bad)


TRACE = st.lists(
    st.sampled_from(["<think>\n", "</think>", "\n\n", "\n", "So 12 + 30 = 42. ", "Wait! No. ", "x" * 40])
    | st.text(max_size=9),
    max_size=60,
).map("".join)


@given(TRACE, st.integers(1, 120), st.integers(0, 400))
def test_a_thought_is_split_near_its_target_and_a_prefix_alike(text, target, cut):
    spans = steps.split(text, f"thought:{target}")
    assert "".join(text[a:b] for a, b in spans) == (text if text.strip() else "")
    assert all(text[a:b].strip() for a, b in spans)
    for a, b in spans:
        assert "</think>" not in text[a:b].rstrip().removesuffix("</think>")  # the answer is a step of its own
    done = [span for span in spans if span[1] <= cut]
    if done and done[-1][1] < len(text.rstrip()):
        prefix = text[: done[-1][1]]
        assert steps.split(prefix + "and so on", f"thought:{target}")[: len(done)] == tuple(done)


def test_a_long_thought_has_steps_of_about_the_target():
    paragraphs = [f"Let me try {i}. " + "It is not so. " * (i % 9) for i in range(400)]
    text = "<think>\n" + "\n\n".join(paragraphs) + "\n</think>\n\nThe answer is 7."
    lengths = [b - a for a, b in steps.split(text, "thought")]
    assert text[steps.split(text, "thought")[-1][0] :] == "The answer is 7."
    assert all(600 <= n <= 1200 for n in lengths[:-2])
    one_line = "<think>" + "I go on without any paragraph. " * 300
    assert all(b - a <= 1300 for a, b in steps.split(one_line, "thought"))


def test_ways_to_split_may_be_added_and_wrong_targets_are_refused():
    for name in ("thought:0", "thought:", "thought:x", "thoughts"):
        with pytest.raises(UnknownName, match="thought"):
            steps.split("a\nb", name)
    steps.SPLITTERS["halves"] = lambda text: [len(text) // 2]
    try:
        assert steps.split("abcd", "halves") == ((0, 2), (2, 4))
    finally:
        del steps.SPLITTERS["halves"]
    with pytest.raises(ConfigError, match="at least 1"):
        steps.by_length(0)

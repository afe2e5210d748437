"""Texts with a tag after each step: the quick way through them and the careful one agree, on any text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.text import tagged

# Pieces that come together to all sorts of nearly right texts.
PIECES = ["Step 1:", "Step 2:", " ки", "ки", "\n", " ", "a", "яблоки", "+", "\u2028", "\r\n", "Q?"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
RIGHT = st.lists(st.sampled_from(["a", "a b", "b ки c", "ки"]), min_size=1, max_size=4)


@settings(max_examples=500)
@given(TEXTS | RIGHT.map(lambda x: "Q? Step 1: " + "".join(f"{step} ки\n" for step in x).rstrip("\n")))
def test_the_quick_way_finds_what_the_careful_one_finds_or_nothing(text):
    quick = tagged.plain(text, "ки", "Step 1:")
    assert quick is None or quick == tagged.read(text, "ки", "Step 1:")
    assert tagged.taken_apart(text, "ки", "Step 1:") == tagged.read(text, "ки", "Step 1:")


@given(RIGHT, st.data())
def test_the_quick_way_is_taken_by_what_is_written(steps, data):
    steps = [f"Step {i}: {step.replace('ки', 'x')}" for i, step in enumerate(steps, 1)]
    signs = data.draw(st.lists(st.sampled_from("+-"), min_size=len(steps), max_size=len(steps)))
    text, labels = (tagged.write("Q?", steps, x) for x in (["ки"] * len(steps), signs))
    found = tagged.plain(text, "ки", "Step 1:")
    assert found is not None
    assert (found.question, found.steps, found.plain) == ("Q?", steps, True)
    assert tagged.differ(text, labels, found.places, "ки", {"+": True, "-": False}) == [s == "+" for s in signs]
    cut = data.draw(st.integers(0, len(labels) - 1))
    broken = labels[:cut] + "§" + labels[cut + 1 :]
    assert isinstance(tagged.differ(text, broken, found.places, "ки", {"+": True, "-": False}), str)

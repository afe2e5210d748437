"""How likely choices are, and generative verifiers that live on that, against vLLM: what a server says is what the same
weights say here.

Both calculate in float32 and sum in orders of their own. On these models that moves a probability by 1e-6, measured;
16-bit arithmetic would move it by 1e-3 and more. So NEAR allows for other machines and still tells the two apart.
"""

from dataclasses import replace

import pytest
from scipy import stats

import stepmark
from stepmark.backends.openai import choices, probe
from stepmark.errors import BackendError
from stepmark.plugins import registry
from stepmark.text.steps import split
from stepmark.types import Outcome, Solution

NEAR = 5e-5
CHANCE = 1e-6  # how often chance alone may fail a test
TORN = "5? So be it."  # the verifier learned to find such solutions right as often as wrong
CONTEXT = "Ann has 2. Ben has 3 more. How many in all?\n"
TEXTS = [
    CONTEXT,
    CONTEXT + "Ben has 2 + 3 =",
    CONTEXT + "Ben has 2 + 3 = 5.\nIn all",
    "In",
    "x \u20ac y",
    CONTEXT + "Be",
    " ",
]
WAYS = {
    "tokens": (" 5", " 6", "Ben"),
    "many": (
        " 2",
        " 3",
        " 5",
        " 6",
        " 7",
        " 8",
        "Ben",
        "In",
        ".",
        "?",
        " has",
        " =",
        "n",
        "\n",
    ),  # more than are listed
    "longer": (" 5.\nIn all", "n", "Ben has", " Yes", " No"),
}


@pytest.fixture(autouse=True)
def anew():
    """What was found out about a server is found out again: tests change what is asked."""
    probe.forget()
    choices.forget()


@pytest.fixture(scope="module")
def remote(server):
    return registry.load("backend", "openai", model=server.model, url=server.url)


@pytest.fixture(scope="module")
def local(server):
    return registry.load("backend", "local", path=server.path, device="cpu")


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_choices_are_as_likely_as_the_local_engine_finds_them(remote, local, ways):
    there, here = remote.choice_probs(TEXTS, ways), local.choice_probs(TEXTS, ways)
    for a, b in zip(there, here, strict=True):
        assert sum(a) == pytest.approx(1)
        assert a == pytest.approx(b, abs=NEAR)
    assert max(x for row in here for x in row) > 0.9
    assert len({max(range(len(ways)), key=row.__getitem__) for row in here}) > 1


@pytest.mark.parametrize("less", [{"top": 0}, {"top": 0, "named": False}, {"named": False}], ids=str)
def test_named_tokens_and_echoes_by_ids_say_the_same(remote, local, less):
    """vLLM has all ways of asking, so that each can be tried alone."""
    remote.choice_probs(["In"], WAYS["tokens"])
    [(key, whole)] = choices._known.items()
    assert (whole.top, whole.ids, whole.echo, whole.named) == (20, True, True, True)
    choices._known[key] = replace(whole, **less)
    for ways in WAYS.values():
        for a, b in zip(remote.choice_probs(TEXTS, ways), local.choice_probs(TEXTS, ways), strict=True):
            assert a == pytest.approx(b, abs=NEAR)


def test_lists_and_echoes_by_text_say_the_same_or_that_they_can_not(remote, local, monkeypatch):
    monkeypatch.setattr(choices, "IDS", {})  # a server that does not speak in ids
    cut_off = [text for text in TEXTS if text.endswith(("=", "all"))]  # where all choices begin with a space
    for texts, ways in ((TEXTS[:-1], WAYS["tokens"]), (cut_off, (" 5.\nIn all", " Yes", " has"))):
        for a, b in zip(remote.choice_probs(texts, ways), local.choice_probs(texts, ways), strict=True):
            assert a == pytest.approx(b, abs=NEAR)
    [ways] = choices._known.values()
    assert (ways.ids, ways.echo) == (False, True)
    for text, merged in ((CONTEXT + "Be", "n has"), (" ", "Ben")):
        with pytest.raises(BackendError, match="merges"):
            remote.choice_probs([text], (merged, " Yes"))


def test_a_text_that_fills_the_context_is_an_error(remote):
    with pytest.raises(BackendError, match="as long as the model's context"):
        remote.choice_probs(["a " * 200], WAYS["tokens"])


# ---- verifiers ----


def solutions():
    """Of a question that the verifier knows and one that it doesn't; the last is like nothing that it learned."""
    for question in ("2 + 3?", "7 + 3?"):
        for tone in ("It is 5.", "Maybe 5.", TORN, "5 has all."):
            text = f"{tone}\nThe answer is 5."
            yield question, Solution(f"{question}{tone}", question, 0, text, split(text))


@pytest.fixture
def load(server):
    """settings -> the verifier here, and through the server."""
    options = {"url": server.url, "model": server.model}

    def loaded(**settings):
        given = {"max_tokens": 60, "device": "cpu", **settings}
        return [
            stepmark.load_verifier(server.path, **given),
            stepmark.load_verifier(server.path, backend="openai", backend_options=options, **given),
        ]

    return loaded


@pytest.mark.parametrize(("mode", "settings"), [("direct", {}), ("cot", {"votes": 1, "temperature": 0.0})])
def test_a_generative_verifier_scores_through_a_server_as_it_does_here(load, mode, settings):
    asked = [(question, [solution]) for question, solution in solutions()]
    here, there = (v.verify_many(asked) for v in load(mode=mode, **settings))
    for one, other in zip(here, there, strict=True):
        assert one.outcome is other.outcome is Outcome.SCORED
        assert other.score == pytest.approx(one.score, abs=NEAR)
        assert other.votes == pytest.approx(one.votes, abs=NEAR)
        assert other.rationales == one.rationales
        assert other.tokens == one.tokens
    scores = [one.score for one in here]
    assert max(scores) - min(scores) > 0.4
    assert all(one.rationales for one in here) == (mode == "cot")


def test_votes_through_a_server_are_those_of_the_same_rationales_here_and_come_as_often(load):
    question, solution = next((q, s) for q, s in solutions() if s.text.startswith(TORN))
    votes = 200
    [here], [there] = (v.verify(question, [solution]) for v in load(mode="cot", votes=votes, keep=votes))
    known = dict(zip(here.rationales, here.votes, strict=True))
    both = [(vote, known[text]) for text, vote in zip(there.rationales, there.votes, strict=True) if text in known]
    assert len(both) > votes / 2
    assert [a for a, _ in both] == pytest.approx([b for _, b in both], abs=NEAR)
    assert min(len(here.votes), len(there.votes)) > 0.9 * votes
    sure = [sum("sure" in text for text in x.rationales) for x in (here, there)]
    counts = [[n, len(x.votes) - n] for n, x in zip(sure, (here, there), strict=True)]
    assert min(counts[0]) > votes / 10
    assert stats.chi2_contingency(counts).pvalue > CHANCE

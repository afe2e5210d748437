"""Probabilities of choices, and generative verifiers that use them, against vLLM: the server and the local engine must
give the same values for the same weights.

Both calculate in float32, with different orders of summation. On these models this changes a probability by 1e-6
(measured). 16-bit arithmetic would change it by 1e-3 or more. NEAR allows for other machines and still separates
the two.
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
CHANCE = 1e-6  # probability that a test fails by chance
TORN = "5? So be it."  # the verifier learned both verdicts on such solutions, equally often
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
CHOICES = {
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
    ),  # more than a server lists
    "longer": (" 5.\nIn all", "n", "Ben has", " Yes", " No"),
}


@pytest.fixture(autouse=True)
def anew():
    """Forgets the stored abilities of the server, because tests change them."""
    probe.forget()
    choices.forget()


@pytest.fixture(scope="module")
def remote(server):
    return registry.load("backend", "openai", model=server.model, url=server.url)


@pytest.fixture(scope="module")
def local(server):
    return registry.load("backend", "local", path=server.path, device="cpu")


@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
def test_choices_are_as_likely_as_the_local_engine_finds_them(remote, local, options):
    served, computed = remote.choice_probs(TEXTS, options), local.choice_probs(TEXTS, options)
    for a, b in zip(served, computed, strict=True):
        assert sum(a) == pytest.approx(1)
        assert a == pytest.approx(b, abs=NEAR)
    assert max(x for row in computed for x in row) > 0.9
    assert len({max(range(len(options)), key=row.__getitem__) for row in computed}) > 1


@pytest.mark.parametrize("removed", [{"top": 0}, {"top": 0, "named": False}, {"named": False}], ids=str)
def test_named_tokens_and_echoes_by_ids_say_the_same(remote, local, removed):
    """vLLM supports every kind of request, so each kind can be tested alone."""
    remote.choice_probs(["In"], CHOICES["tokens"])
    [(key, abilities)] = choices._known.items()
    assert (abilities.top, abilities.ids, abilities.echo, abilities.named) == (20, True, True, True)
    choices._known[key] = replace(abilities, **removed)
    for options in CHOICES.values():
        for a, b in zip(remote.choice_probs(TEXTS, options), local.choice_probs(TEXTS, options), strict=True):
            assert a == pytest.approx(b, abs=NEAR)


def test_lists_and_echoes_by_text_say_the_same_or_that_they_can_not(remote, local, monkeypatch):
    monkeypatch.setattr(choices, "IDS", {})  # a server that does not speak in ids
    cut_off = [text for text in TEXTS if text.endswith(("=", "all"))]  # here all choices begin with a space
    for texts, options in ((TEXTS[:-1], CHOICES["tokens"]), (cut_off, (" 5.\nIn all", " Yes", " has"))):
        for a, b in zip(remote.choice_probs(texts, options), local.choice_probs(texts, options), strict=True):
            assert a == pytest.approx(b, abs=NEAR)
    [abilities] = choices._known.values()
    assert (abilities.ids, abilities.echo) == (False, True)
    for text, merged in ((CONTEXT + "Be", "n has"), (" ", "Ben")):
        with pytest.raises(BackendError, match="merges"):
            remote.choice_probs([text], (merged, " Yes"))


def test_a_text_that_fills_the_context_is_an_error(remote):
    with pytest.raises(BackendError, match="as long as the model's context"):
        remote.choice_probs(["a " * 200], CHOICES["tokens"])


# ---- verifiers ----


def solutions():
    """(question, solution) for a question that the verifier knows and one that it does not know. The last solution of
    each is unlike all that it learned."""
    for question in ("2 + 3?", "7 + 3?"):
        for tone in ("It is 5.", "Maybe 5.", TORN, "5 has all."):
            text = f"{tone}\nThe answer is 5."
            yield question, Solution(f"{question}{tone}", question, 0, text, split(text))


@pytest.fixture
def load(server):
    """Function from settings to the verifier [in process, through the server]."""
    options = {"url": server.url, "model": server.model}

    def loaded(**settings):
        merged = {"max_tokens": 60, "device": "cpu", **settings}
        return [
            stepmark.load_verifier(server.path, **merged),
            stepmark.load_verifier(server.path, backend="openai", backend_options=options, **merged),
        ]

    return loaded


@pytest.mark.parametrize(("mode", "settings"), [("direct", {}), ("cot", {"votes": 1, "temperature": 0.0})])
def test_a_generative_verifier_scores_through_a_server_as_it_does_here(load, mode, settings):
    requests = [(question, [solution]) for question, solution in solutions()]
    computed, served = (v.verify_many(requests) for v in load(mode=mode, **settings))
    for a, b in zip(computed, served, strict=True):
        assert a.outcome is b.outcome is Outcome.SCORED
        assert b.score == pytest.approx(a.score, abs=NEAR)
        assert b.votes == pytest.approx(a.votes, abs=NEAR)
        assert b.rationales == a.rationales
        assert b.tokens == a.tokens
    scores = [x.score for x in computed]
    assert max(scores) - min(scores) > 0.4
    assert all(x.rationales for x in computed) == (mode == "cot")


def test_votes_through_a_server_are_those_of_the_same_rationales_here_and_come_as_often(load):
    question, solution = next((q, s) for q, s in solutions() if s.text.startswith(TORN))
    votes = 200
    [computed], [served] = (v.verify(question, [solution]) for v in load(mode="cot", votes=votes, keep=votes))
    vote_of = dict(zip(computed.rationales, computed.votes, strict=True))
    both = [
        (vote, vote_of[text]) for text, vote in zip(served.rationales, served.votes, strict=True) if text in vote_of
    ]
    assert len(both) > votes / 2
    assert [a for a, _ in both] == pytest.approx([b for _, b in both], abs=NEAR)
    assert min(len(computed.votes), len(served.votes)) > 0.9 * votes
    sure = [sum("sure" in text for text in x.rationales) for x in (computed, served)]
    counts = [[n, len(x.votes) - n] for n, x in zip(sure, (computed, served), strict=True)]
    assert min(counts[0]) > votes / 10
    assert stats.chi2_contingency(counts).pvalue > CHANCE

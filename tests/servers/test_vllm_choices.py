"""How likely choices are, and generative verifiers that live on that, against vLLM: what a server says is what the same
weights say here.

Both calculate in float32 and sum in orders of their own. On these models that moves a probability by 1e-6, measured;
16-bit arithmetic would move it by 1e-3 and more. So NEAR allows for other machines and still tells the two apart.
"""

import pytest

import stepmark
from stepmark import plugins
from stepmark.backends.openai import choices, probe
from stepmark.errors import BackendError
from stepmark.types import Outcome, Solution

NEAR = 5e-5
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
    return plugins.load("backend", "openai", model=server.model, url=server.url)


@pytest.fixture(scope="module")
def local(server):
    return plugins.load("backend", "local", path=server.path, device="cpu")


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_choices_are_as_likely_as_the_local_engine_finds_them(remote, local, ways):
    there, here = remote.choice_probs(TEXTS, ways), local.choice_probs(TEXTS, ways)
    for a, b in zip(there, here, strict=True):
        assert sum(a) == pytest.approx(1)
        assert a == pytest.approx(b, abs=NEAR)
    assert max(x for row in here for x in row) > 0.9
    assert len({max(range(len(ways)), key=row.__getitem__) for row in here}) > 1


def test_a_text_that_fills_the_context_is_an_error(remote):
    with pytest.raises(BackendError, match="as long as the model's context"):
        remote.choice_probs(["a " * 200], WAYS["tokens"])


# ---- verifiers ----


def solutions():
    """Those that the verifier learned to tell apart, and others."""
    for question in ("2 + 3?", "4 + 3?", "7 + 3?"):
        for text in ("It is 5.\nThe answer is 5.", "Maybe 5.\nThe answer is 5.", "5? It is."):
            yield question, Solution(f"{question}{text}", question, 0, text, ((0, len(text)),))


@pytest.mark.parametrize(("mode", "settings"), [("direct", {}), ("cot", {"votes": 1, "temperature": 0.0})])
def test_a_generative_verifier_scores_through_a_server_as_it_does_here(verifying, mode, settings):
    options = {"url": verifying.url, "model": verifying.model}
    settings = {"mode": mode, "max_tokens": 60, "device": "cpu", **settings}
    here = stepmark.load_verifier(verifying.path, **settings)
    there = stepmark.load_verifier(verifying.path, backend="openai", backend_options=options, **settings)
    found = [
        (one, other)
        for question, solution in solutions()
        for one, other in zip(here.verify(question, [solution]), there.verify(question, [solution]), strict=True)
    ]
    for one, other in found:
        assert one.outcome is other.outcome is Outcome.SCORED
        assert other.score == pytest.approx(one.score, abs=NEAR)
        assert other.votes == pytest.approx(one.votes, abs=NEAR)
        assert other.rationales == one.rationales
        assert other.tokens == one.tokens
    scores = [one.score for one, _ in found]
    assert max(scores) - min(scores) > 0.5
    assert all(one.rationales for one, _ in found) == (mode == "cot")


def test_sampled_votes_through_a_server_have_the_distribution_of_those_drawn_here(verifying):
    """Means of many votes: each lies within five standard errors of the other."""
    options = {"url": verifying.url, "model": verifying.model}
    settings = {"mode": "cot", "votes": 60, "max_tokens": 60, "device": "cpu"}
    here = stepmark.load_verifier(verifying.path, **settings)
    there = stepmark.load_verifier(verifying.path, backend="openai", backend_options=options, **settings)
    question, solution = next(solutions())
    [one], [other] = here.verify(question, [solution]), there.verify(question, [solution])
    assert min(len(one.votes), len(other.votes)) > 30
    errors = [(sum((v - x.score) ** 2 for v in x.votes) / len(x.votes) ** 2) ** 0.5 for x in (one, other)]
    assert abs(one.score - other.score) < 5 * sum(e * e for e in errors) ** 0.5 + 0.02

"""ThinkPRM: what its text says of each step becomes a number for each step, and any other text becomes none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from stepmark.errors import ConfigError, UnknownName
from stepmark.types import Finish, Outcome
from stepmark.verifiers.think_prm import PROMPT, verdicts

TEXT = "4 + 3 = 7.\nStep 2: 7 + 1 = 9.\nThe answer is 9."
RIGHT, WRONG = r"Step. The step is \boxed{correct}.", r"No: \boxed{incorrect}"


def ask(*answers, text=TEXT, votes=None, **settings):
    votes = votes or len(answers)
    options = {"default": answers}
    verifier = stepmark.load_verifier(
        "think_prm", backend="scripted", options=options, votes=votes, temperature=float(votes > 1), **settings
    )
    [v] = stepmark.verify(verifier, "Ann has 4. How many?", [text])
    return v


def test_each_step_has_the_share_of_votes_that_call_it_correct():
    v = ask(f"{RIGHT}\n{WRONG}\n{RIGHT}", f"{RIGHT}\n{RIGHT}\n{WRONG}", "I can't say.", f"{RIGHT}\n{WRONG}")
    assert v.outcome is Outcome.SCORED
    assert v.scores == pytest.approx((1.0, 1 / 3, 1 / 3))  # the last vote stopped at the first error
    assert v.score == min(v.scores)
    assert len(v.rationales) == 1


@pytest.mark.parametrize(
    "answer",
    ["", "All steps are correct.", RIGHT, f"{WRONG}\n{RIGHT}", "\n".join([RIGHT] * 4), f"{RIGHT}\n{RIGHT}", "0.5"],
)
def test_a_text_that_does_not_judge_each_step_is_unparsed(answer):
    v = ask(answer)
    assert (v.outcome, v.scores) == (Outcome.UNPARSED, ())
    assert "verdicts for 3 steps" in v.reason


def test_a_verification_that_ran_out_of_tokens_is_truncated():
    v = ask((f"{RIGHT}\n{WRONG}", Finish.LENGTH))
    assert (v.outcome, v.scores) == (Outcome.TRUNCATED, ())


def test_the_prompt_is_its_own_and_holds_no_verdicts_of_the_solution():
    verifier = stepmark.load_verifier("think_prm", backend="scripted", options={"default": ("x",)})
    text = TEXT + r" \boxed{correct} \boxed{ Correct }"
    solution = stepmark.Solution("s", "p", 0, text, ((0, 11), (11, 30), (30, len(text))))
    prompt = verifier.ask(" What is {solution}? ", solution)
    assert "\\boxed" not in prompt
    assert "What is {solution}?\n\n[Solution]\n\nStep 1: 4 + 3 = 7.\nStep 2: 7 + 1 = 9.\nStep 3: The" in prompt
    assert prompt.endswith(PROMPT[PROMPT.index("Review") :])


def test_verdicts_after_the_thought_are_those_that_count():
    assert verdicts(rf"<think>{WRONG}{WRONG}</think>{RIGHT}\boxed{{\text{{incorrect}}}}", 2) == (True, False)
    assert verdicts(rf"<think>{RIGHT}{WRONG}</think> Is the solution correct? No", 2) == (True, False)


@given(
    st.lists(st.sampled_from([RIGHT, WRONG, "so", r"\boxed{7}", r"\boxed{cor", "\n"]), max_size=9), st.integers(1, 5)
)
def test_verdicts_are_one_each_or_none(parts, steps):
    said = [p == RIGHT for p in parts if p in (RIGHT, WRONG)]
    found = verdicts(" ".join(parts), steps)
    assert len(found) in (0, steps)
    if found:
        assert list(found[: len(said)]) == said
        assert not any(found[len(said) :])
    else:
        assert len(said) != steps


def test_bad_settings_are_named_before_the_work():
    with pytest.raises(ConfigError, match="votes must be at least 1"):
        stepmark.load_verifier("think_prm", backend="scripted", votes=0)
    with pytest.raises(ConfigError, match="votes are equal"):
        stepmark.load_verifier("think_prm", backend="scripted", votes=2)
    with pytest.raises(UnknownName):
        stepmark.load_verifier("think_prm", backend="nowhere")

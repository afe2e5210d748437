"""Rewards of an agent's turns, from a verifier that scores steps."""

import pytest

from stepmark.errors import ConfigError
from stepmark.integrations.turns import turns
from stepmark.types import Outcome, Verification

PROMPT = [{"role": "user", "content": "What is 2 + 3?"}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
COMPLETION = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "Wrong: it is 6."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "The answer is 5."},
]


class Wrongs:
    """Scores a step 0.1 if it holds "Wrong", can't read "?!", and remembers what it saw."""

    per_step = True

    def __init__(self):
        self.seen = []

    def verify(self, question, solutions):
        self.seen += [(question, s.steps) for s in solutions]
        return [
            Verification(s.id, (), 0.0, "min", Outcome.UNPARSED, "?!")
            if "?!" in s.text
            else Verification(s.id, tuple(0.1 if "Wrong" in x else 0.9 for x in s.steps), 0.1, "min")
            for s in solutions
        ]


def test_each_assistant_message_has_its_reward():
    reward = turns(verifier := Wrongs(), credit="sum", grader="numeric")
    assert reward.of_turns(PROMPT, COMPLETION, "5") == [0.9, 0.1, 0.9]
    [(question, steps)] = verifier.seen
    assert question == "What is 2 + 3?" and steps[1] == "Wrong: it is 6.\nUser: Sure?"
    state = {}
    assert reward(PROMPT, COMPLETION, answer=5, state=state, task="default") == pytest.approx(1.9)
    assert state == {"turn_rewards": [0.9, 0.1, 0.9]}
    assert turns(Wrongs()).of_turns(PROMPT, COMPLETION) == [0.0, 0.0, 0.1]  # the outcome, at the last turn
    assert turns(Wrongs(), credit="sum").of_turns("What?", "Right.") == [0.9]


def test_turns_of_the_prompt_earn_nothing():
    reward = turns(Wrongs(), credit="sum")
    prompt = [*PROMPT, {"role": "assistant", "content": "Wrong"}, {"role": "user", "content": "Again."}]
    assert reward.of_turns(prompt, COMPLETION) == [0.9, 0.1, 0.9]


def test_a_lost_reward_is_none_and_its_substitute_the_mean():
    reward = turns(Wrongs(), credit="sum")
    assert reward(PROMPT, "Right.") == 0.9
    state = {}
    assert reward(PROMPT, "?!", state=state) == 0.9 and state == {"turn_rewards": None}
    assert turns(Wrongs(), lost=-1.0)(PROMPT, "?!") == -1.0


def test_turns_are_the_steps():
    with pytest.raises(ConfigError, match="no option steps"):
        turns(Wrongs(), steps="line")

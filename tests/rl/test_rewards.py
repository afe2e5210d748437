"""Rewards of attempts, with verifiers whose scores are known and with trained kinds."""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.protocols import RewardSource
from stepmark.rl.rewards import CREDITS, Gold, Mixture, Verified, reward_source, softmin
from stepmark.types import Finish, Grade, Outcome, Problem, Reward, Verdict, Verification

PROBLEM = Problem("p", "1 + 2?", "3", "t")
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@dataclass(frozen=True)
class Says:
    """A verifier that reads each line as the step's score; with `whole` it gives one score. It fails on a truncated
    attempt, which must not be sent to it."""

    whole: bool = False
    outcome: Outcome = Outcome.SCORED
    per_step: bool = False  # as verifiers of steps say of themselves

    def verify(self, question, solutions):
        return [self._verify(s) for s in solutions]

    def _verify(self, solution):
        assert solution.finish is Finish.STOP
        if self.outcome is not Outcome.SCORED:
            return Verification(solution.id, (), 0.0, "min", self.outcome, "the line was cut")
        scores = tuple(map(float, solution.steps))
        scores = (min(scores),) if self.whole else scores
        return Verification(solution.id, scores, min(scores), "min")


class Many(Says):
    """The same verifier with `verify_many` only."""

    def verify(self, question, solutions):
        raise AssertionError("verify_many is there")

    def verify_many(self, asked):
        return [self._verify(s) for _, solutions in asked for s in solutions]


@dataclass(frozen=True)
class Unsure:
    """A grader for which a text that is not a number is ungradable."""

    def grade(self, text, problem):
        if not text.strip().isdigit():
            return Grade(Verdict.UNGRADABLE, "no number")
        return Grade(Verdict.CORRECT if text.strip() == problem.answer else Verdict.INCORRECT, "compared")


def one(source, solution, problem=PROBLEM):
    [reward] = source.reward([(problem, solution)])
    assert reward.solution_id == solution.id
    assert len(reward.steps) == len(solution.spans)
    return reward


def texted(solve, scores):
    return solve("\n".join(map(repr, scores)))


def test_sources_are_reward_sources():
    sources = (Gold(Unsure()), Verified(Says()), Mixture(((1.0, Gold(Unsure())),)))
    assert all(isinstance(source, RewardSource) for source in sources)


@pytest.mark.parametrize("credit", ["sum", "min", "difference", "outcome"])
def test_a_score_that_is_no_number_is_a_lost_reward(solve, credit):
    reward = one(Verified(Says(), credit=credit), solve("0.5\nnan\n0.75"))
    assert (reward.total, reward.lost) == (0.0, "the verifier gave the score nan")


def test_credits_by_hand(solve):
    solution = solve("0.5\n0.25\n0.75")

    def earned(**settings):
        reward = one(Verified(Says(), **settings), solution)
        return reward.steps, reward.end

    assert earned(credit="sum") == ((0.5, 0.25, 0.75), 0.0)
    assert earned(credit="min") == ((0.0, 0.25, 0.0), 0.0)
    assert earned(credit="difference") == ((0.5, -0.25, 0.5), 0.0)
    assert earned(credit="difference", before=0.5) == ((0.0, -0.25, 0.5), 0.0)
    assert earned(credit="outcome") == ((0.0, 0.0, 0.0), 0.25)
    assert earned(credit="outcome", aggregate="mean") == ((0.0, 0.0, 0.0), 0.5)
    assert earned(credit="outcome", aggregate=max) == ((0.0, 0.0, 0.0), 0.75)
    weights = [math.exp(-s / 0.5) for s in (0.5, 0.25, 0.75)]
    by_hand = [s * w / sum(weights) for s, w in zip((0.5, 0.25, 0.75), weights, strict=True)]
    steps, end = earned(credit="min", temperature=0.5)
    assert steps == pytest.approx(by_hand) and end == 0.0


def test_the_minimum_is_given_once_at_the_first_of_the_worst(solve):
    assert one(Verified(Says(), "min"), solve("0.9\n0.2\n0.2")).steps == (0.0, 0.2, 0.0)


@given(SCORES)
def test_differences_sum_to_the_last_score(solve, scores):
    for before in (0.0, 0.5):
        total = one(Verified(Says(), "difference", before=before), texted(solve, scores)).total
        assert total == pytest.approx(scores[-1] - before, abs=1e-9)


@given(SCORES, st.floats(1e-3, 1e3))
def test_min_is_the_minimum_at_temperature_0_and_else_between_it_and_the_mean(solve, scores, temperature):
    solution = texted(solve, scores)
    assert one(Verified(Says(), "min"), solution).total == min(scores)
    soft = one(Verified(Says(), "min", temperature=temperature), solution).total
    assert min(scores) - 1e-9 <= soft <= sum(scores) / len(scores) + 1e-9


def test_a_cold_softmin_is_the_minimum_and_a_hot_one_the_mean():
    scores = (0.8, 0.1, 0.6)
    assert softmin(scores, 1e-4) == pytest.approx(softmin(scores, 0.0))
    assert sum(softmin(scores, 1e9)) == pytest.approx(sum(scores) / 3)


@given(SCORES, st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_sum_pays_for_every_further_step_and_min_and_outcome_never_do(solve, scores, further_scores):
    short, long = texted(solve, scores), texted(solve, scores + further_scores)

    def gain(credit):
        source = Verified(Says(), credit)
        return one(source, long).total - one(source, short).total

    assert gain("sum") > 0
    assert gain("min") <= 0
    assert gain("outcome") <= 0


@pytest.mark.parametrize(("method", "step"), [("ppo", 0.0), ("grpo", 0.5)])
def test_unless_told_otherwise_a_further_step_is_paid_only_where_groups_are_centred(solve, method, step):
    source = reward_source({"prm": Says(per_step=True)}, {"prm": 1.0}, None, Unsure(), method)
    assert one(source, solve("0.5\n0.5\n0.5")).total - one(source, solve("0.5\n0.5")).total == step
    assert one(reward_source({"orm": Says()}, {"orm": 1.0}, None, Unsure(), method), solve("1\n0.5")).end == 0.5


@pytest.mark.parametrize("verifier", [Says(), Many()])
@pytest.mark.parametrize("credit", CREDITS)
def test_rewards_come_in_the_order_of_the_attempts(solve, verifier, credit):
    other = Problem("q", "2 + 2?", "4", "t")
    attempts = [
        (PROBLEM, solve("0.25", sample=0)),
        (other, solve("0.5", "q")),
        (PROBLEM, solve("", sample=1)),
        (PROBLEM, solve("0.75", sample=2)),
        (other, solve("9", "q", 1, finish=Finish.LENGTH)),
    ]
    rewards = Verified(verifier, credit).reward(attempts)
    assert [r.solution_id for r in rewards] == [s.id for _, s in attempts]
    assert [r.total for r in rewards] == [0.25, 0.5, 0.0, 0.75, 0.0]
    assert not any(r.lost for r in rewards)
    assert Verified(verifier, credit).reward([]) == []


@pytest.mark.parametrize("outcome", [Outcome.UNPARSED, Outcome.TRUNCATED, Outcome.FAILED])
@pytest.mark.parametrize("credit", CREDITS)
def test_a_failed_verification_is_lost_and_never_a_low_reward(solve, outcome, credit):
    reward = one(Verified(Says(outcome=outcome), credit), solve("0.5\n0.5"))
    assert reward.lost == "the line was cut"
    assert reward.total == 0


def test_what_ran_out_of_tokens_earns_nothing_and_is_not_asked_about(solve):
    cut = solve("0.5\n0.5", finish=Finish.LENGTH)
    for source in (Verified(Says(), "sum"), Gold(Unsure(), right=2.0, wrong=-1.0)):
        assert one(source, cut) == Reward(cut.id, (0.0, 0.0))


def test_gold_rewards_the_answer_at_the_end_and_loses_what_cannot_be_graded(solve):
    gold = Gold(Unsure(), right=2.0, wrong=-1.0)
    assert (one(gold, solve("3")).steps, one(gold, solve("3")).end) == ((0.0,), 2.0)
    assert one(gold, solve("4")).end == -1.0
    lost = one(gold, solve("three"))
    assert (lost.lost, lost.total) == ("no number", 0.0)


def test_a_mixture_is_the_weighted_sum_and_lost_where_a_part_is(solve):
    mixed = Mixture(((1.0, Gold(Unsure())), (0.5, Verified(Says(), "outcome")), (2.0, Verified(Says(), "sum"))))
    reward = one(mixed, solve("3"))
    assert (reward.steps, reward.end) == ((6.0,), 1.0 + 1.5)
    reward = one(mixed, solve("0.25\n0.5"))
    assert (reward.lost, reward.total) == ("no number", 0.0)
    assert one(Mixture(((-1.0, Verified(Says(), "sum")),)), solve("0.25\n0.5")).steps == (-0.25, -0.5)


@pytest.mark.parametrize("credit", ["sum", "min", "difference"])
def test_a_verifier_with_one_score_for_several_steps_is_told_what_to_do(solve, credit):
    source = Verified(Says(whole=True), credit)
    with pytest.raises(ConfigError, match=r"one for all 2 steps of p#0.*credit=outcome"):
        one(source, solve("0.5\n0.25"))
    assert one(Verified(Says(whole=True), "outcome"), solve("0.5\n0.25")).end == 0.25


def test_a_verifier_that_miscounts_or_mixes_up_is_an_error(solve):
    class Short:
        def verify(self, question, solutions):
            return [Verification(s.id, (0.1, 0.2), 0.1, "min") for s in solutions]

    class Swapped(Says):
        def verify(self, question, solutions):
            return super().verify(question, solutions)[::-1]

    with pytest.raises(DataError, match="2 scores for the 3 steps"):
        one(Verified(Short()), solve("1\n1\n1"))
    with pytest.raises(DataError, match="in another order"):
        Verified(Swapped()).reward([(PROBLEM, solve("1")), (PROBLEM, solve("1", sample=1))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Verified(Says(), "summ"), "Did you mean 'sum'"),
        (lambda: Verified(Says(), "sum", aggregate="min"), "aggregate is for credit=outcome"),
        (lambda: Verified(Says(), "outcome", aggregate="mni"), "Did you mean 'min'"),
        (lambda: Verified(Says(), "sum", temperature=0.1), "temperature is for credit=min"),
        (lambda: Verified(Says(), "min", temperature=-0.1), "at least 0"),
        (lambda: Verified(Says(), "min", before=0.5), "before is for credit=difference"),
        (lambda: Gold(Unsure(), right=0.0), "more than a wrong one"),
        (lambda: Mixture(()), "nothing to mix"),
        (lambda: Mixture(((0.0, Verified(Says())), (math.nan, Verified(Says())))), r"got \[0.0, nan\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_real_process_verifier_rewards_every_step_and_an_outcome_verifier_the_end(tiny, problems, solve):
    problem = problems[0]
    solution = solve(problem.reference, problem.id)
    prm, orm = (registry.load("verifier", kind, path=tiny, head="tag", device="cpu") for kind in ("prm", "orm"))
    [verified] = prm.verify(problem.question, [solution])
    assert one(Verified(prm, "sum"), solution, problem).steps == verified.scores
    assert one(Verified(prm, "min"), solution, problem).total == verified.score
    assert one(Verified(orm, "outcome"), solution, problem).end == orm.verify(problem.question, [solution])[0].score
    with pytest.raises(ConfigError, match="OutcomeVerifier gave one"):
        one(Verified(orm, "min"), solution, problem)


def test_importing_it_loads_no_torch():
    code = "import stepmark.rl.rewards, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Evidence about steps with a known probability of success: early stopping must change the cost and nothing else.

The completers here throw one coin for each rollout, seeded with the rollout's name only, so every number below is the
same in every run."""

import zlib
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seeds import SEED
from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.evaluation.evidence import Prefix, first_error, gather, precise, rollouts_for, succeeded, wilson
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.types import (
    Finish,
    Grade,
    Problem,
    Rollout,
    SamplingParams,
    Solution,
    StepLabel,
    Unlabelled,
    Verdict,
)

MOST = 400


@dataclass
class Coins:
    """A completer: rollout j of a prefix is right if the prefix's j-th random number in [0, 1) is below its p."""

    p: dict
    seed: int = SEED
    asked: list = field(default_factory=list)  # (name, first, n)

    def sample(self, prompts, params):
        for prompt in prompts:
            self.asked.append((prompt.id, prompt.first, prompt.n))
            coins = np.random.default_rng([self.seed, zlib.crc32(prompt.id.encode())]).random(MOST)
            right = coins < self.p[prompt.id]
            for i in range(prompt.first, prompt.first + prompt.n):
                yield Rollout(prompt.id, i, "1" if right[i] else "0", Finish.STOP, 1)


class Quick:
    """A grader that reads the last character."""

    def grade(self, text, problem):
        return Grade(Verdict.CORRECT if text[-1] == "1" else Verdict.INCORRECT, "")


def steps(count):
    """Prefixes of one long solution."""
    problem = Problem("p", "?", "1", "t")
    solution = Solution("p#0", "p", 0, "x\n" * count + "1", tuple((2 * i, 2 * i + 2) for i in range(count)))
    return [Prefix(problem, solution, i) for i in range(count)]


def tools(completer, grader=None):
    return Tools(grader or Quick(), Template(), SamplingParams(), completer)


def chances(kind, count, seed=SEED):
    rng = np.random.default_rng(seed)
    return rng.random(count) if kind == "uniform" else rng.beta(0.1, 0.1, count)


# ---- hard labels ----


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_an_early_stop_draws_the_first_of_the_same_rollouts_and_finds_the_same_hard_label(ps, most, wave, seed):
    prefixes = steps(len(ps))
    p = {x.name: chance for x, chance in zip(prefixes, ps, strict=True)}
    whole = gather(prefixes, tools(Coins(p, seed)), most)
    few = Coins(p, seed)
    early = gather(prefixes, tools(few), most, succeeded, wave)
    for x in prefixes:
        assert early[x.name].hard == whole[x.name].hard
        drawn = [i for name, first, n in few.asked if name == x.name for i in range(first, first + n)]
        assert drawn == list(range(early[x.name].gradable))
        assert whole[x.name].gradable == most
        assert early[x.name].hard or len(drawn) == most


@pytest.mark.robust
@pytest.mark.parametrize("p", [0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("most", [1, 4, 8])
def test_hard_labels_are_1_as_often_as_with_all_rollouts(p, most):
    """P(y = 1) = 1 - (1 - p)^N: over 1,500 steps the share must be within four standard errors of it."""
    prefixes = steps(1500)
    completer = Coins({x.name: p for x in prefixes}, seed=1000 * SEED + round(1000 * p) + most)
    unit = Unlabelled(prefixes[0].problem, prefixes[0].solution)
    [labelled] = MonteCarlo(most, early_stop=True).label([unit], tools(completer))
    share = np.mean([x.hard for x in labelled.labels[:-1]])
    expected = 1 - (1 - p) ** most
    assert abs(share - expected) < 4 * sqrt(expected * (1 - expected) / 1499)
    if most > 1:
        sampled = sum(n for _, _, n in completer.asked)
        assert sampled < most * 1499  # early stopping saved rollouts


@pytest.mark.robust
def test_an_estimate_from_stopped_rollouts_would_not_be_the_soft_label():
    """The reason why the source says early_stop: with a stop at the first success, the share of successes is far too
    high."""
    prefixes = steps(500)
    labels = gather(prefixes, tools(Coins({x.name: 0.3 for x in prefixes})), 8, succeeded)
    assert np.mean([x.soft for x in labels.values()]) > 0.45


# ---- soft labels ----


@pytest.mark.robust
@pytest.mark.parametrize("kind", ["uniform", "bimodal"])
@pytest.mark.parametrize("precision", [0.05, 0.1, 0.2])
def test_soft_labels_are_as_precise_as_asked(kind, precision):
    """1,000 steps of known probability: at least 95% of the labels are within the precision, with fewer rollouts than
    the worst case needs."""
    prefixes = steps(1001)
    p = dict(zip((x.name for x in prefixes), chances(kind, 1001), strict=True))
    completer = Coins(p)
    unit = Unlabelled(prefixes[0].problem, prefixes[0].solution)
    [labelled] = MonteCarlo(precision=precision).label([unit], tools(completer))
    measured = [(x.soft, p[prefix.name]) for x, prefix in zip(labelled.labels[:-1], prefixes, strict=False)]
    assert len(measured) == 1000
    assert np.mean([abs(a - b) <= precision for a, b in measured]) >= 0.95
    per_step = sum(n for _, _, n in completer.asked) / 1000
    worst = rollouts_for(precision)
    assert per_step < worst
    if kind == "bimodal":
        assert per_step < 0.85 * worst
    assert {x.source for x in labelled.labels[:-1]} == {"monte_carlo+precision"}


@given(st.floats(0.02, 0.5))
def test_so_many_rollouts_are_enough_whatever_comes_of_them(precision):
    n = rollouts_for(precision)
    assert all(precise(StepLabel(k, n), precision) for k in range(n + 1))


@given(st.floats(0.02, 0.3))
def test_and_clearly_fewer_would_not_be(precision):
    n = int(0.85 * rollouts_for(precision))
    assert not all(precise(StepLabel(k, n), precision) for k in range(n + 1))


@given(st.integers(1, 400), st.data())
def test_wilsons_interval_holds_the_share_and_is_a_mirror(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_wilsons_interval_is_the_published_one():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I, method 3
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_nothing_gradable_is_never_precise():
    assert not precise(StepLabel(0, 0, truncated=50), 0.5)


# ---- waves ----


@given(st.integers(1, 50), st.integers(1, 60), st.floats(1, 4), st.integers(0, 60))
def test_waves_ask_for_each_rollout_once_and_end_with_the_wave_that_is_enough(most, wave, growth, needed):
    [prefix] = steps(1)
    completer = Coins({prefix.name: 0.5})
    label = gather([prefix], tools(completer), most, lambda x: x.gradable >= needed, wave, growth)[prefix.name]
    drawn = [i for _, first, n in completer.asked for i in range(first, first + n)]
    assert drawn == list(range(label.gradable))
    assert len(drawn) <= most
    assert len(drawn) >= min(most, needed)
    last = completer.asked[-1][1]
    assert last < needed or len(completer.asked) == 1  # before the last wave the evidence was not enough


def test_a_wave_holds_all_that_is_unsettled_and_nothing_else():
    prefixes = steps(6)
    p = {x.name: float(x.step % 2) for x in prefixes}
    completer = Coins(p)
    calls = []
    sample = completer.sample
    completer.sample = lambda prompts, params: calls.append([x.id for x in prompts]) or sample(prompts, params)
    gather(prefixes, tools(completer), 4, succeeded)
    losing = [x.name for x in prefixes if x.step % 2 == 0]
    assert calls == [[x.name for x in prefixes], losing, losing]


def test_outcomes_are_counted_apart():
    [prefix] = steps(1)
    outcomes = [("6", Finish.STOP), ("7", Finish.STOP), ("6", Finish.LENGTH), ("6", Finish.FAILED), ("?", Finish.STOP)]

    class Odd:
        def sample(self, prompts, params):
            for prompt in prompts:
                yield from (Rollout(prompt.id, i, *outcomes[i], 1) for i in reversed(range(prompt.n)))

    class Fussy:
        def grade(self, text, problem):
            odd = text.endswith("?")
            return Grade(Verdict.UNGRADABLE, "") if odd else Numeric().grade(text, Problem("p", "", "6", "t"))

    labels = gather([prefix], tools(Odd(), Fussy()), 5)
    assert labels == {"p#0@0": StepLabel(1, 2, truncated=1, ungradable=1, failed=1)}


def test_without_a_completer_or_a_judge_the_error_says_so():
    with pytest.raises(ConfigError, match="needs a completer"):
        gather(steps(1), tools(None), 1)
    with pytest.raises(ConfigError, match="needs a judge"):
        evidence.need_judge(tools(None))


# ---- evidence without rollouts ----


@given(st.lists(st.sampled_from([StepLabel(2, 3), StepLabel(0, 3), StepLabel(0, 0, truncated=3)]), max_size=6))
def test_the_first_error_is_told_only_where_all_before_it_is_known(labels):
    first = first_error(labels)
    if first is None:
        unknown = next(i for i, x in enumerate(labels) if not x.known)
        assert all(x.correct for x in labels[:unknown])
    else:
        assert all(x.correct for x in labels[:first])
        assert first == len(labels) or labels[first] == StepLabel(0, 3)

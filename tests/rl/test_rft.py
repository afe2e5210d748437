"""Rejection sampling fine-tuning through its public function."""

from __future__ import annotations

import pytest

from seeds import SEED
from stepmark.data.store import Records
from stepmark.errors import ConfigChanged, DataError
from stepmark.rl.rft import rft
from stepmark.stages.train import TrainSettings
from stepmark.types import GradedSolution, SamplingParams, Solution

from .conftest import Key
from .test_loop import chances

pytestmark = pytest.mark.robust

SETTINGS = TrainSettings(epochs=60, batch_tokens=64, row_tokens=32, lr=5e-3, tensorboard=False, seed=SEED)
PARAMS = SamplingParams(max_tokens=4, seed=SEED)


def run(bandit, states, out, grader=None, samples=8):
    return rft(bandit, states, grader or Key(), out, samples=samples, params=PARAMS, train=SETTINGS)


def test_it_learns_what_is_right_and_distinct(tmp_path, bandit, states):
    result = run(bandit, states, tmp_path, samples=32)
    assert result.examples == 2  # 64 samples, about half of them right, and two texts among those
    assert min(chances(tmp_path)) > 0.9 > max(chances(bandit))
    solutions = list(Records(tmp_path / "drawn" / "solutions.jsonl", Solution))
    grades = list(Records(tmp_path / "drawn" / "grades.jsonl", GradedSolution))
    assert len(solutions) == len(grades) == 64


def test_a_finished_one_is_read_and_another_call_is_refused(tmp_path, bandit, states):
    result = run(bandit, states, tmp_path)
    assert run(bandit, states, tmp_path) == result
    with pytest.raises(ConfigChanged, match="samples"):
        run(bandit, states, tmp_path, samples=9)


def test_nothing_right_is_said(tmp_path, bandit, states):
    class Never(Key):
        def grade(self, text, problem):
            return super().grade("?", problem)

    with pytest.raises(DataError, match="none of 8 samples at each of 2 problems is right"):
        run(bandit, states, tmp_path, Never())

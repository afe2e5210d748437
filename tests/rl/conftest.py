"""A bandit with two states: a tiny policy that answers each of two questions with 1 or 2, equally likely."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from seeds import SEED
from stepmark.models import checkpoints
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.types import Grade, Problem, Reward, Verdict

RIGHT = {"Left?": "1", "Right?": "2"}


@dataclass(frozen=True)
class Arms:
    """A reward source that gives 1 for one arm of each state; by default for the right one."""

    pays: tuple[tuple[str, str], ...] = tuple(RIGHT.items())

    def reward(self, attempts):
        return [
            Reward(s.id, (0.0,) * len(s.spans), float(s.text.strip() == dict(self.pays).get(p.question.strip())))
            for p, s in attempts
        ]


@dataclass(frozen=True)
class Key:
    """A grader for which only the right arm is correct."""

    def grade(self, text, problem):
        right = text.strip() == problem.answer
        return Grade(Verdict.CORRECT if right else Verdict.INCORRECT, "", text.strip())


@pytest.fixture(scope="session")
def states():
    return [Problem(q, q, a, "bandit", a, a) for q, a in RIGHT.items()]


@pytest.fixture(scope="session")
def bandit(tmp_path_factory):
    """The directory of the policy's checkpoint."""
    directory = tmp_path_factory.mktemp("bandit")
    shape = checkpoints.Shape(hidden=16, heads=2, kv_heads=1, layers=1, vocab=300, max_length=32)
    base = checkpoints.create(directory / "base", [f"{q}\n{a}" for q in RIGHT for a in "12"], shape, SEED)
    even = [Problem(f"{q}{a}", q, a, "bandit", a, a) for q in RIGHT for a in "12"]
    settings = TrainSettings(epochs=400, batch_tokens=64, row_tokens=32, lr=5e-3, tensorboard=False, seed=SEED)
    train(Generator(str(base)), even, directory / "policy", settings)
    return str(directory / "policy")


@pytest.fixture(scope="session")
def right_policy(tmp_path_factory, bandit, states):
    """A policy that takes the right arm nine times of ten, however many spaces follow the question."""
    out = tmp_path_factory.mktemp("right") / "policy"
    lessons = [
        replace(states[0], id=f"{i}-{k}", question="Left?" + " " * i, demonstration="1" if k else "2")
        for i in range(21)
        for k in range(10)
    ]
    settings = TrainSettings(epochs=30, batch_tokens=256, row_tokens=32, lr=5e-3, tensorboard=False, seed=SEED)
    train(Generator(bandit), lessons, out, settings)
    return out

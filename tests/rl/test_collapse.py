"""The guard against a policy that gives only empty attempts, or none that ends, and its figures in the log."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace

import pytest

from seeds import SEED
from stepmark.errors import ConfigError
from stepmark.models import checkpoints
from stepmark.rl.guards import collapsed
from stepmark.rl.settings import ReinforceSettings
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.types import Problem, Reward

from .conftest import RIGHT, Arms
from .test_loop import run as run_quickly

pytestmark = pytest.mark.robust

DEFAULT = ReinforceSettings().collapse_updates


def run(*given, **changes):
    """Updates small enough that a policy goes where the rewards lead it, however a machine rounds."""
    settings = {"lr": 3e-3, "kl": 0.0, "samples": 32, "updates": 60, "collapse_updates": 5}
    return run_quickly(*given, **settings | changes)


@dataclass(frozen=True)
class Silence:
    """A reward source that pays for an empty answer in some states, and in the others for the right arm."""

    states: tuple[str, ...] = tuple(RIGHT)

    def reward(self, attempts):
        return [
            replace(r, end=float(not s.text.strip())) if p.question.strip() in self.states else r
            for (p, s), r in zip(attempts, Arms().reward(attempts), strict=True)
        ]


class Nothing:
    def reward(self, attempts):
        return [Reward(s.id, (0.0,) * len(s.spans), 0.0) for _, s in attempts]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Makes a policy that gives these answers in both states, or in one of them, equally likely."""

    def make(**answers):
        directory = tmp_path_factory.mktemp("taught")
        shape = checkpoints.Shape(hidden=16, heads=2, kv_heads=1, layers=1, vocab=300, max_length=32)
        base = checkpoints.create(directory / "base", [f"{q}\n{a}" for q in RIGHT for a in "12"], shape, SEED)
        pairs = [(f"{state}?", a) for state, given in answers.items() for a in given]
        lessons = [Problem(f"{q}{a}", q, a, "bandit", a, a) for q, a in pairs]
        settings = TrainSettings(epochs=200, batch_tokens=64, row_tokens=32, lr=1e-2, tensorboard=False, seed=SEED)
        train(Generator(str(base)), lessons, directory / "policy", settings)
        return directory / "policy"

    return make


@pytest.fixture(scope="module")
def hesitant(taught):
    """A policy that may answer with white space."""
    return taught(Left="12 ", Right="12 ")


@pytest.fixture(scope="module")
def silent(taught):
    """A policy that answers with nothing else."""
    return taught(Left=" ", Right=" ")


def log(directory):
    return [json.loads(line) for line in (directory / "reinforce.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_policy_that_is_driven_into_the_empty_answer_is_stopped(tmp_path, hesitant, states, method):
    result = run(hesitant, states, tmp_path, Silence(), method=method)
    assert result.stopped.startswith(
        "collapsed: in 5 updates in a row every attempt was empty at half of the prompts or more, and attempts that "
        f"earn the same teach nothing (update {result.updates}: "
    )
    advice = r"a lower lr \(0\.003\), a higher kl \([\d.]+\), more samples \(32\) or a higher temperature \(1\)\.$"
    assert re.search(advice, result.stopped)  # the weight of kl was adapted meanwhile
    assert 5 < result.updates < 60
    shown = [line["all_empty"] >= 0.5 or line["no_answer"] == 1 for line in log(tmp_path)[-6:]]
    assert shown == [False] + [True] * 5


def test_half_of_the_prompts_are_enough(tmp_path, taught, states):
    result = run(taught(Left="1", Right=" "), states, tmp_path, samples=16, lr=1e-4)
    assert result.updates < 60 and "every attempt was empty at half of the prompts" in result.stopped
    assert [line["all_empty"] for line in log(tmp_path)[-5:]] == [0.5] * 5


def test_a_policy_that_starts_there_is_stopped_after_ten_updates(tmp_path, silent, states):
    result = run(silent, states, tmp_path, Nothing(), collapse_updates=DEFAULT)
    assert result.updates == 10
    assert "It was so from the first update: look at what this policy writes." in result.stopped
    assert "the same reward for all attempts at 100% of the prompts" in result.stopped
    assert "max_tokens" not in result.stopped


def test_a_policy_whose_attempts_never_end_is_stopped(tmp_path, bandit, states):
    result = run(bandit, states, tmp_path, max_tokens=1)
    assert "in 5 updates in a row no attempt ended with an answer" in result.stopped
    assert "100% out of tokens" in result.stopped and "or a higher max_tokens (1)." in result.stopped


def test_a_policy_that_is_right_everywhere_is_not_stopped(tmp_path, taught, states):
    result = run(taught(Left="1", Right="2"), states, tmp_path, updates=10, samples=8, lr=1e-4)
    assert result.stopped == "" and result.updates == 10
    assert sum(x.same_reward for x in result.explored) > 8 and sum(result.rewards) > 9
    assert all(x.empty < 0.5 for x in result.explored)


def test_problems_that_are_too_hard_are_no_collapse(tmp_path, bandit, states):
    result = run(bandit, states, tmp_path, Nothing(), updates=7)
    assert result.stopped == "" and all(x.same_reward == 1 for x in result.explored)


def test_a_few_attempts_at_a_prompt_say_little():
    figures = {"all_empty": 0.5, "no_answer": 0.6}
    assert [collapsed(figures, samples) for samples in (1, 3, 4, 8)] == [False, False, True, True]
    assert collapsed({"all_empty": 1.0, "no_answer": 1.0}, 1)
    assert not collapsed({"all_empty": 0.49, "no_answer": 0.99}, 8)


def test_off_is_off_and_an_alarm_after_the_last_update_stops_nothing(tmp_path, silent, states):
    result = run(silent, states, tmp_path / "off", Nothing(), collapse="off", updates=7)
    assert (result.updates, result.stopped) == (7, "")
    result = run(silent, states, tmp_path / "last", Nothing(), updates=5)
    assert (result.updates, result.stopped) == (5, "")


def test_it_goes_back_and_charges_more_and_then_stops(tmp_path, hesitant, states):
    held = [replace(states[0], id=f"h{i}", question=states[0].question + " " * (i + 1)) for i in range(4)]
    changes = {"collapse": "rollback", "rollbacks": 1, "kl": 0.01, "evaluate_every": 1}
    result = run(hesitant, states, tmp_path, Silence(), held, **changes)
    lines = log(tmp_path)
    rollback = next(i for i, line in enumerate(lines) if line["rollbacks"] == 1)
    assert result.rollbacks == (lines[rollback]["update"],)
    assert (lines[rollback]["kl_weight"], lines[rollback + 1]["kl_weight"]) == (0.01, 0.02)
    assert lines[rollback + 1]["empty"] < lines[rollback]["empty"]
    assert result.stopped.startswith("collapsed: in 5 updates") and result.updates > rollback + 5


def test_it_can_not_go_back_without_held_out_problems(tmp_path, bandit, states):
    with pytest.raises(ConfigError, match=r"collapse=rollback goes back .* on held-out problems; give some"):
        run(bandit, states, tmp_path, collapse="rollback")


def test_the_log_and_the_result_have_the_figures_of_each_update(tmp_path, hesitant, states):
    result = run(hesitant, states, tmp_path, updates=2, max_tokens=1)
    names = ("update", "same_reward", "empty", "truncated", "entropy")
    assert [asdict(x) for x in result.explored] == [{k: line[k] for k in names} for line in log(tmp_path)]
    first = result.explored[0]
    assert (first.update, first.same_reward, first.truncated) == (1, 1.0, 1.0)
    assert 0.2 < first.empty < 0.5 and first.entropy == pytest.approx(1.1, abs=0.1)  # three answers: ln 3


def interrupted(directory, *given, **changes):
    """Ends by an error in the fourth update, after a checkpoint of the third. Returns the stored state's file."""

    class Nothing:
        calls = 0

        def reward(self, attempts):
            type(self).calls += 1
            if type(self).calls == 4:
                raise KeyboardInterrupt
            return [Reward(s.id, (0.0,) * len(s.spans), 0.0) for _, s in attempts]

    with pytest.raises(KeyboardInterrupt):
        run(*given, directory, Nothing(), checkpoint_seconds=0.0, **changes)
    return directory / ".training" / "place.json"


def test_it_counts_on_after_a_kill(tmp_path, silent, states):
    whole = run(silent, states, tmp_path / "whole", Nothing())
    interrupted(tmp_path / "killed", silent, states)
    killed = run(silent, states, tmp_path / "killed", Nothing())
    assert (killed.updates, killed.stopped, killed.explored) == (5, whole.stopped, whole.explored)


def test_what_an_earlier_version_left_is_read_and_goes_on(tmp_path, bandit, states):
    changes = {"updates": 5, "collapse_updates": DEFAULT}
    place = interrupted(tmp_path, bandit, states, **changes)
    for file, keys in ((place, ("collapsing", "explored")), (tmp_path / "training.json", ())):
        stored = json.loads(file.read_text())
        for key in keys:
            del stored[key]
        if file.name == "training.json":
            del stored["settings"]["collapse"], stored["settings"]["collapse_updates"]
        file.write_text(json.dumps(stored))
    result = run(bandit, states, tmp_path, Nothing(), **changes)
    assert result.updates == 5 and [x.update for x in result.explored] == [4, 5]
    stored = json.loads((tmp_path / "reinforced.json").read_text())
    del stored["explored"]
    (tmp_path / "reinforced.json").write_text(json.dumps(stored))
    assert run(bandit, states, tmp_path, Nothing(), **changes) == replace(result, explored=())

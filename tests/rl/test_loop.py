"""Reinforcement through its public function: known optima, guards, and resuming after kills."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seeds import SEED
from stepmark.backends.local import LocalBackend
from stepmark.errors import CheckpointError, ConfigChanged, ConfigError, DataError, StageError
from stepmark.models import checkpoints
from stepmark.rl.loop import reinforce
from stepmark.rl.settings import ReinforceSettings
from stepmark.types import Prompt, Reward, SamplingParams

from .conftest import RIGHT, Arms, Key

pytestmark = pytest.mark.robust

# Many attempts and small updates: a policy goes where the rewards lead it, with any seed and however a machine rounds.
# With 32 attempts at 1e-2 it was sometimes driven into the empty answer. Equal attempts cost hardly more than one.
QUICK = ReinforceSettings(
    updates=60,
    prompts=2,
    samples=256,
    max_tokens=4,
    lr=2e-3,
    epochs=2,
    minibatches=2,
    row_tokens=32,
    kl=0.02,
    guard="off",
    evaluate_every=100,
    tensorboard=False,
    checkpoint_seconds=1000,
    seed=SEED,
)


SURE = {"lr": 1e-3, "updates": 150}  # small updates: a policy comes to the optimum on every seed tried


def chances(path):
    """The probability of the right arm in each state."""
    texts = [f"{q}\n" for q in RIGHT]
    probabilities = LocalBackend(str(path)).choice_probs(texts, ["1", "2"])
    return [p[int(a) - 1] for p, a in zip(probabilities, RIGHT.values(), strict=True)]


def run(bandit, states, out, source=None, held_out=(), **changes):
    changes = {"prompts": len(states)} | changes
    return reinforce(bandit, states, held_out, source or Arms(), Key(), out, replace(QUICK, **changes))


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_bandit_is_solved(tmp_path, bandit, states, method):
    assert all(0.2 < p < 0.8 for p in chances(bandit))
    result = run(bandit, states, tmp_path, method=method, **SURE)
    assert min(chances(tmp_path)) > 0.95
    assert result.rewards[0] < 0.8 < 0.95 < np.mean(result.rewards[-3:])
    assert (result.updates, result.stopped) == (SURE["updates"], "")
    # The policy samples like any checkpoint.
    prompts = [Prompt(q, f"{q}\n", n=8) for q in RIGHT]
    rollouts = list(LocalBackend(str(tmp_path)).sample(prompts, SamplingParams(max_tokens=4)))
    assert sum(r.text.strip() == RIGHT[r.prompt_id] for r in rollouts) >= 14


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_with_the_divergence_charged_the_optimum_is_the_tilted_reference(tmp_path, bandit, states, weight):
    """max E[r] - w KL(pi || ref) has its optimum at pi(a) ~ ref(a) exp(r(a) / w)."""
    settings = {"updates": 120, "samples": 64, "lr": 3e-3, "epochs": 1, "minibatches": 1}
    run(bandit, states, tmp_path, kl=weight, **settings)
    for before, after in zip(chances(bandit), chances(tmp_path), strict=True):
        tilted = before * math.exp(1 / weight)
        assert after == pytest.approx(tilted / (tilted + 1 - before), abs=0.06)


def test_a_kl_target_raises_the_weight_where_the_policy_runs_away(tmp_path, bandit, states):
    run(bandit, states, tmp_path / "far", kl=0.01, kl_target=0.001)
    lines = [json.loads(line) for line in (tmp_path / "far" / "reinforce.jsonl").read_text().splitlines()]
    weights = [line["kl_weight"] for line in lines]
    assert weights[0] == 0.01 and weights[-1] > 0.012
    assert lines[-1]["kl"] > 0.001


class TestGuards:
    """The reward source rewards the wrong arm, so reward and accuracy move in opposite directions."""

    wrong = Arms((("Left?", "2"), ("Right?", "1")))

    def held(self, states):
        return [replace(s, id=f"held-{i}-{s.id}", question=s.question) for i in range(20) for s in states]

    def one_state(self, states):
        """Training in one state; the held-out problems are the same question followed by spaces."""
        return states[:1], [
            replace(states[0], id=f"h{i}", question=states[0].question + " " * (i + 1)) for i in range(20)
        ]

    def test_it_stops_and_hands_on_the_best(self, tmp_path, right_policy, states):
        learned, held = self.one_state(states)
        result = run(
            right_policy, learned, tmp_path, self.wrong, held,
            guard="stop", evaluate_every=2, patience=2, updates=60,
        )  # fmt: skip
        assert result.stopped.startswith("over-optimised: accuracy on 20 held-out problems fell from")
        assert result.updates < 60
        assert result.looks[0].update == 0
        first, last = result.looks[result.best // 2], result.looks[-1]
        assert last.accuracy < first.accuracy and last.reward >= first.reward
        assert result.rewards[-1] > result.rewards[0]
        handed_on = LocalBackend(str(tmp_path)).choice_probs([f"{held[0].question}\n"], ["1", "2"])[0][0]
        assert handed_on > 0.5

    def test_it_goes_back_and_charges_more(self, tmp_path, right_policy, states):
        learned, held = self.one_state(states)
        result = run(
            right_policy, learned, tmp_path, self.wrong, held,
            guard="rollback", rollbacks=1, kl=0.01, evaluate_every=2, patience=1, updates=60,
        )  # fmt: skip
        lines = [json.loads(line) for line in (tmp_path / "reinforce.jsonl").read_text().splitlines()]
        rollback = next(i for i, line in enumerate(lines) if line["rollbacks"] == 1)
        assert result.rollbacks == (lines[rollback]["update"],)
        assert (lines[rollback - 1]["kl_weight"], lines[rollback + 1]["kl_weight"]) == (0.01, 0.02)
        assert lines[rollback + 1]["reward"] < lines[rollback]["reward"]
        assert result.stopped

    def test_without_it_the_last_policy_is_worse(self, tmp_path, right_policy, states):
        learned, held = self.one_state(states)
        changes = {"guard": "off", "best": False, "evaluate_every": 10}
        result = run(right_policy, learned, tmp_path, self.wrong, held, **changes)
        assert result.best == result.updates == QUICK.updates and not result.stopped
        assert result.looks[-1].accuracy < result.looks[0].accuracy

    def test_what_is_learned_from_can_not_be_held_out(self, tmp_path, bandit, states):
        with pytest.raises(ConfigError, match="both learned from and held out"):
            run(bandit, states, tmp_path, held_out=self.held(states))

    def test_a_guard_needs_something_to_look_at(self, tmp_path, bandit, states):
        with pytest.raises(ConfigError, match="held-out"):
            run(bandit, states, tmp_path, guard="stop")

    def test_accuracy_is_logged_from_before_the_first_update(self, tmp_path, bandit, states):
        learned, held = self.one_state(states)
        run(bandit, learned, tmp_path, None, held, guard="stop", updates=2, evaluate_every=1)
        lines = [json.loads(line) for line in (tmp_path / "reinforce.jsonl").read_text().splitlines()]
        assert [line["update"] for line in lines] == [0, 1, 2]
        assert all(0 <= line["held_out_accuracy"] <= 1 and "held_out_reward" in line for line in lines)

    def test_an_alarm_after_the_last_update_stops_nothing(self, tmp_path, right_policy, states):
        learned, held = self.one_state(states)
        changes = {"guard": "stop", "patience": 1, "updates": 20, "evaluate_every": 20}
        result = run(right_policy, learned, tmp_path, self.wrong, held, **changes)
        assert result.looks[-1].accuracy < result.looks[0].accuracy
        assert (result.stopped, result.updates, result.best) == ("", 20, 0)


class TestAttempts:
    def test_those_out_of_tokens_earn_the_penalty_and_never_reach_the_verifier(self, tmp_path, bandit, states):
        class Refuses:
            def reward(self, attempts):
                assert not attempts
                return []

        result = run(bandit, states, tmp_path, Refuses(), max_tokens=1, penalty=-0.5, updates=2)
        assert result.rewards == (-0.5, -0.5)

    def test_masked_ones_are_left_out(self, tmp_path, bandit, states):
        with pytest.raises(DataError, match="ran out of tokens"):
            run(bandit, states, tmp_path, max_tokens=1, truncated="mask", updates=1)
        assert not (tmp_path / "training.json").exists()

    def test_lost_rewards_are_left_out(self, tmp_path, bandit, states):
        class Half:
            def reward(self, attempts):
                return [
                    Reward(s.id, (0.0,) * len(s.spans), 1.0, "broken" if i % 8 == 7 else "")
                    for i, (_, s) in enumerate(attempts)
                ]

        run(bandit, states, tmp_path, Half(), updates=1)
        assert json.loads((tmp_path / "reinforce.jsonl").read_text())["left_out"] == 0.125

    def test_too_many_lost_rewards_stop_it_and_say_why(self, tmp_path, bandit, states):
        class Broken:
            def reward(self, attempts):
                return [Reward(s.id, (0.0,) * len(s.spans), 0.0, "no server") for _, s in attempts[:-1]] + [
                    Reward(s.id, (0.0,) * len(s.spans), 1.0) for _, s in attempts[-1:]
                ]

        with pytest.raises(StageError, match=r"of the latest \d+ attempts have no reward.*no server"):
            run(bandit, states, tmp_path, Broken(), updates=30, samples=32)
        assert json.loads((tmp_path / "reinforce.jsonl").read_text().splitlines()[0])["left_out"] > 0.9

    def test_a_problem_that_comes_twice_in_an_update_is_drawn_twice(self, tmp_path, bandit, states):
        result = run(bandit, states[:1], tmp_path, updates=1, prompts=3, samples=8)
        assert result.tokens >= 24
        assert json.loads((tmp_path / "reinforce.jsonl").read_text())["left_out"] == 0


class TestGoingOn:
    JOB = Path(__file__).parent / "job.py"

    def weights(self, directory):
        return load_file(directory / "model.safetensors")

    def test_killed_at_any_moment_it_ends_with_the_same_weights(self, tmp_path, right_policy):
        out = tmp_path / "killed"
        for directory, kills in ((tmp_path / "whole", []), (out, ["1", "4", "5", "9"])):
            subprocess.run([sys.executable, self.JOB, right_policy, directory, *kills], check=True)
        whole, killed = self.weights(tmp_path / "whole"), self.weights(out)
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[k], killed[k]) for k in whole)
        results = [json.loads((p / "reinforced.json").read_text()) for p in (tmp_path / "whole", out)]
        assert any(json.loads(line)["rollbacks"] for line in (out / "reinforce.jsonl").read_text().splitlines())
        assert results[0]["looks"] == results[1]["looks"] and results[0]["rewards"] == results[1]["rewards"]
        assert results[0]["explored"] == results[1]["explored"]
        updates = [json.loads(line)["update"] for line in (out / "reinforce.jsonl").read_text().splitlines()]
        assert updates == list(range(results[0]["updates"] + 1))
        assert not list(out.glob(".training*")) and not (out / ".best").exists()

    def test_a_finished_one_is_read_and_another_call_is_refused(self, tmp_path, bandit, states):
        result = run(bandit, states, tmp_path, updates=2)
        before = os.stat(tmp_path / "model.safetensors").st_mtime_ns
        assert run(bandit, states, tmp_path, updates=2) == result
        assert os.stat(tmp_path / "model.safetensors").st_mtime_ns == before
        with pytest.raises(ConfigChanged, match="lr"):
            run(bandit, states, tmp_path, updates=2, lr=1e-5)

    def test_a_mistake_found_before_anything_was_computed_can_be_mended(self, tmp_path, bandit, states):
        with pytest.raises(CheckpointError):
            run(tmp_path / "nowhere", states, tmp_path / "out", updates=1)

        class Refuses:
            def reward(self, attempts):
                raise ConfigError("take credit=outcome")

        with pytest.raises(ConfigError, match="outcome"):
            run(bandit, states, tmp_path / "out", Refuses(), updates=1)
        assert run(bandit, states, tmp_path / "out", updates=1).updates == 1

    def test_problems_need_ids_of_their_own(self, tmp_path, bandit, states):
        with pytest.raises(ConfigError, match="same id"):
            run(bandit, [states[0], states[0]], tmp_path)

    def test_a_source_of_any_kind_is_known_again(self, tmp_path, bandit, states):
        """A source that is not a dataclass, with a text longer than a path may be."""

        class Plain(Arms):
            def __init__(self):
                object.__setattr__(self, "prompt", "x" * 5000)
                object.__setattr__(self, "pays", tuple(RIGHT.items()))

        result = run(bandit, states, tmp_path, Plain(), updates=1)
        assert run(bandit, states, tmp_path, Plain(), updates=1) == result

    def test_another_answer_to_the_same_question_is_refused(self, tmp_path, bandit, states):
        result = run(bandit, states, tmp_path, updates=1)
        others = [dataclasses.replace(p, answer="another") for p in states]
        with pytest.raises(ConfigChanged, match="answers"):
            run(bandit, others, tmp_path, updates=1)
        stored = json.loads((tmp_path / "training.json").read_text())
        del stored["answers"]  # as earlier versions wrote it
        (tmp_path / "training.json").write_text(json.dumps(stored))
        assert run(bandit, states, tmp_path, updates=1) == result
        with pytest.raises(ConfigChanged, match="answers"):
            run(bandit, others, tmp_path, updates=1)

    def test_another_policy_in_the_same_place_is_refused(self, tmp_path, bandit, states):
        shutil.copytree(bandit, tmp_path / "policy")
        run(tmp_path / "policy", states, tmp_path / "out", updates=1)
        model = checkpoints.load_model(tmp_path / "policy", device="cpu")
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        checkpoints.save(tmp_path / "policy", model, checkpoints.load_tokenizer(tmp_path / "policy"))
        with pytest.raises(ConfigChanged):
            run(tmp_path / "policy", states, tmp_path / "out", updates=1)


def test_settings_name_all_their_faults():
    with pytest.raises(ConfigError) as e:
        ReinforceSettings(method="dqn", updates=0, lam=2.0, guard="hope", kl_target=-1.0)  # type: ignore[arg-type]
    assert len(e.value.faults) == 5
    with pytest.raises(ConfigError) as e:
        ReinforceSettings(collapse="hope", collapse_updates=0)  # type: ignore[arg-type]
    assert len(e.value.faults) == 2

"""The section `reinforce` of a recipe: its settings, its defaults, and its faults, reported together."""

import json
from pathlib import Path

import pytest
import yaml

from stepmark.errors import ConfigError
from stepmark.run import recipe

STRANGERS = Path(__file__).parents[1] / "strangers"
DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
SECTION = """
split: train
problems: 100
held_out: {split: dev, problems: 20}
test: {split: test, problems: 50, n: 8}
settings: {updates: 7, prompts: 3, kl: 0.1}
policies:
  rft: {method: rft, samples: 4, train: {epochs: 2}}
  orm_ppo: {reward: orm, credit: outcome}
  step_ppo: {reward: prm, settings: {kl: 0.02}}
  mixed: {method: grpo, reward: {prm: 1.0, gold: 0.5}}
refresh: {verifier: prm, policy: step_ppo, problems: 60, n: 2}
"""


def load_recipe(*changes):
    return recipe.load(DEMO, [f"reinforce={json.dumps(yaml.safe_load(SECTION))}", *changes])


def faults(*changes):
    with pytest.raises(ConfigError) as caught:
        load_recipe(*changes)
    return "\n".join(caught.value.faults)


def test_a_policy_has_the_shared_settings_with_its_own_changes():
    reinforce = load_recipe().reinforce
    step, mixed = reinforce.policies["step_ppo"], reinforce.policies["mixed"]
    assert (step.settings.updates, step.settings.prompts, step.settings.kl) == (7, 3, 0.02)
    assert (mixed.settings.kl, mixed.settings.method, mixed.method) == (0.1, "grpo", "grpo")
    assert step.settings.method == "ppo"
    assert step.rewards == {"prm": 1.0}
    assert mixed.rewards == {"gold": 0.5, "prm": 1.0}
    assert (reinforce.policies["rft"].samples, reinforce.policies["rft"].training.epochs) == (4, 2)


def test_attempts_are_sampled_like_other_solutions_unless_settings_say_otherwise():
    assert load_recipe().reinforce.policies["orm_ppo"].settings.max_tokens == 120  # the demo's
    changed = load_recipe("sample.stop=[x]", "sample.temperature=0.5", "reinforce.settings.max_tokens=9").reinforce
    assert changed.settings.stop == ("x",)
    assert (changed.policies["rft"].settings.temperature, changed.policies["rft"].settings.max_tokens) == (0.5, 9)


def test_the_shared_method_is_the_default_of_each_policy():
    reinforce = load_recipe("reinforce.settings.method=grpo").reinforce
    assert {name: p.method for name, p in reinforce.policies.items()} == {
        "rft": "rft",
        "orm_ppo": "grpo",
        "step_ppo": "grpo",
        "mixed": "grpo",
    }


def test_the_resolved_configuration_gives_the_same_recipe_again():
    for changes in ([], ["reinforce.settings.method=grpo"], ["reinforce.refresh.rounds=3"]):
        first = load_recipe(*changes)
        again = recipe.parse(yaml.safe_load(yaml.safe_dump(first.resolved())), "again")
        assert again.resolved() == first.resolved()
        assert again.reinforce == first.reinforce


def test_a_recipe_without_the_section_does_not_store_it_so_older_runs_go_on():
    assert "reinforce" not in recipe.load(DEMO).resolved()
    assert recipe.load(DEMO, ["reinforce=null"]).resolved() == recipe.load(DEMO).resolved()


def test_names_of_later_rounds():
    refresh = load_recipe("reinforce.refresh.rounds=3").reinforce.refresh
    assert [refresh.policy_of(i) for i in (1, 2, 3)] == ["step_ppo", "step_ppo_2", "step_ppo_3"]
    assert refresh.made == ("prm_refreshed", "prm_refreshed_2")
    assert load_recipe().reinforce.refresh.made == ("prm_refreshed",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["reinforce.policies.step_ppo.reward=pmr"],
            "reward is 'pmr'; it can be orm, prm, prm_surprise, surprise, gold",
        ),
        (["reinforce.policies.step_ppo.reward=null"], "reward is missing"),
        (["reinforce.policies.step_ppo.reward={prm: 0}"], "a weight must be above 0, got 0"),
        (["reinforce.policies.rft.reward=orm"], "rft keeps the attempts that the grader finds correct"),
        (["reinforce.policies.rft.settings.lr=1"], "settings has lr, which rft does not use"),
        (["reinforce.policies.orm_ppo.train={epochs: 1}"], "train and samples are only for rft"),
        (["reinforce.policies.g={reward: gold, credit: min}"], "gold grades whole solutions, not steps"),
        (["reinforce.policies.sft={reward: gold}"], "the generator's own name"),
        (["reinforce.policies.a b={reward: gold}"], "should match pattern"),
        (["reinforce.policies={}"], "at least 1"),
        (["reinforce.policies.step_ppo.methd=ppo"], "Did you mean 'method'"),
        (
            ["reinforce.policies.step_ppo.settings.klt=1"],
            "'reinforce.policies.step_ppo.settings.klt'. Did you mean 'kl'",
        ),
        (["reinforce.policies.mixed.settings.samples=1"], "samples must be at least 2"),
        (["reinforce.settings.updtes=1"], "'reinforce.settings.updtes'. Did you mean 'updates'"),
        (["reinforce.held_out.split=train"], "which policies learn from"),
        (["reinforce.held_out.split=test"], "and so is reinforce.held_out.split"),
        (["reinforce.test.split=train"], "and so is reinforce.split"),
        (["reinforce.split=hard", "reinforce.test.split=train"], "and so is sample.train.split"),
        (["reinforce.verifiers=[prm, pmr]"], "reinforce.verifiers has pmr"),
        (["reinforce.refresh.policy=ppo"], "reinforce.refresh.policy is 'ppo'"),
        (["reinforce.refresh.verifier=pmr"], "reinforce.refresh.verifier is 'pmr'"),
        (
            [f"verifiers.own={{kind: {STRANGERS / 'verifier.py'}}}", "reinforce.refresh.verifier=own"],
            "own is not trained",
        ),
        (["reinforce.refresh.verifier=prm_surprise"], "builds on another"),
        (["reinforce.refresh.policy=orm_ppo", "reinforce.refresh.rounds=2"], "is not rewarded by prm"),
        (
            ["reinforce.policies.step_ppo_2={reward: gold}", "reinforce.refresh.rounds=2"],
            "refresh.rounds uses this name; rename the policy",
        ),
        (["verifiers.prm_refreshed={kind: orm}"], "the section reinforce uses this name; rename the verifier"),
        (["verifiers.gold={kind: orm}"], "the section reinforce uses this name; rename the verifier"),
        ([f"generator={{backend: {STRANGERS / 'backend.py'}}}"], "a generator with a model"),
    ],
)
def test_settings_that_do_not_fit_are_reported(changes, message):
    assert message in faults(*changes)


def test_a_fault_in_the_shared_settings_is_reported_once():
    assert faults("reinforce.settings.lr=-1").count("lr must be above 0") == 1


def test_all_faults_are_reported_together():
    reinforce = faults("reinforce.policies.step_ppo.reward=x", "reinforce.verifiers=[y]", "reinforce.test.split=dev")
    assert all(part in reinforce for part in ("'x'", "has y", "test.split is 'dev'"))

"""Old module names, from before the packages: for one release they work, and the warning names the new ones."""

import importlib
import json
import subprocess
import sys

import pytest

import stepmark
from stepmark._moved import MOVED
from stepmark.errors import ConfigError
from stepmark.integrations import rewards
from stepmark.plugins import registry


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_module_gives_what_the_new_one_has(old):
    sys.modules.pop(f"stepmark.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"stepmark.{old} is now {MOVED[old]}"):
        module = importlib.import_module(f"stepmark.{old}")
    new = importlib.import_module(MOVED[old])
    names = [name for name in vars(new) if not name.startswith("__")]
    assert names and all(getattr(module, name) is getattr(new, name) for name in names)
    assert set(names) <= set(dir(module))


def test_the_documented_ways_to_import_still_work_and_warn_where_they_stand():
    code = "import warnings; warnings.simplefilter('always')\nimport stepmark\n"
    code += "from stepmark.sample import sample\nfrom stepmark import rewards\nassert callable(rewards.trl)\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "<string>:3: DeprecationWarning: stepmark.sample is now stepmark.stages.sample" in done.stderr
    assert "<string>:4: DeprecationWarning: stepmark.rewards is now stepmark.integrations.rewards" in done.stderr


def test_a_name_that_never_was_is_still_none():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("stepmark.nothing_like_this")
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = rewards.nothing_like_this


def test_renamed_classes_of_rewards():
    with pytest.warns(DeprecationWarning, match=r"rewards\.Written is now rewards\.Completion"):
        assert rewards.Written is rewards.Completion
    with pytest.warns(DeprecationWarning, match=r"rewards\.Earned is now rewards\.CompletionReward"):
        assert rewards.Earned is rewards.CompletionReward


def test_a_renamed_verifier_kind(tmp_path):
    with pytest.raises(ConfigError, match="'surprise' is now called 'likelihood_corrected'"):
        registry.find("verifier", "surprise")
    with pytest.warns(DeprecationWarning, match="likelihood_corrected"):
        verifier = stepmark.load_verifier("surprise", path="model")
    assert type(verifier) is registry.find("verifier", "likelihood_corrected")
    card = {"kind": "surprise", "options": {}, "ids": {}, "template_hash": "", "version": 1}
    (tmp_path / "verifier.json").write_text(json.dumps(card))
    assert type(stepmark.load_verifier(tmp_path)) is type(verifier)

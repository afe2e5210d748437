"""Runs and commands whose generator reads worked examples before each question."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.store import Records
from stepmark.errors import ConfigError
from stepmark.run import recipe
from stepmark.run.execute import run
from stepmark.types import LabelledSolution, Problem, Solution

STRANGERS = Path(__file__).parents[1] / "strangers"
# It writes down what it is asked, and begins another question where no stop string ends it.
BABBLES = """
import json
from dataclasses import dataclass
from stepmark.types import Finish, Rollout

@dataclass(frozen=True)
class Babbler:
    log: str

    def sample(self, prompts, params):
        for prompt in prompts:
            with open(self.log, "a") as file:
                file.write(json.dumps([prompt.id, prompt.context, prompt.prefix, params.stop]) + "\\n")
            for index in range(prompt.first, prompt.first + prompt.n):
                text = "1 + 1 = 2\\nThe answer is 2.\\n\\nQuestion: What else?\\nIt is 3."
                for stop in params.stop:
                    text = text.partition(stop)[0]
                yield Rollout(prompt.id, index, text, Finish.STOP, 9)
"""
EXAMPLES = (
    "Question: Add 1 and 2 and 3 (no 0).\nAnswer:\n1 + 2 = 3\n3 + 3 = 6\nThe answer is 6.\n\n"
    "Question: Add 2 and 3 and 4 (no 1).\nAnswer:\n2 + 3 = 5\n5 + 4 = 9\nThe answer is 9.\n\n"
)


@pytest.fixture
def babbler(tmp_path):
    (tmp_path / "babbler.py").write_text(BABBLES)
    return {"name": str(tmp_path / "babbler.py"), "options": {"log": str(tmp_path / "asked")}}


def asked(tmp_path):
    return [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]


def load(backend, *changes, few_shot=2):
    raw = {
        "name": "shots",
        "seed": 1,
        "prompt": "Question: {question}\nAnswer:\n",
        "task": str(STRANGERS / "task.py"),
        "generator": {"backend": backend},
        "verifiers": {"listener": {"kind": str(STRANGERS / "listener.py")}},
        "sample": {
            "train": {"split": "train", "problems": 3, "n": 2},
            "test": {"split": "test", "problems": 2, "n": 2},
            "stop": ["THE END"],
        },
        "label": {"name": "monte_carlo", "options": {"rollouts": 2}},
        "evaluate": {"n": [1, 2]},
        "workers": 1,
    }
    if few_shot is not None:
        raw["sample"]["few_shot"] = few_shot
    return recipe.parse(recipe.changed(raw, changes), "test")


def test_a_run_shows_the_examples_to_the_generator_and_the_completer_alone(babbler, tmp_path):
    run(load(babbler), tmp_path / "run")
    prompts = asked(tmp_path)
    assert {len(prefix) > 0 for _, _, prefix, _ in prompts} == {True, False}  # solutions, and rollouts from steps
    for _, context, _, stop in prompts:
        assert context.startswith(EXAMPLES + "Question: Add ")
        assert context.count("Question:") == 3
        assert stop == ["THE END", "\n\nQuestion:"]
    stored = [p.id for p in Records(tmp_path / "run/problems/train.jsonl", Problem)]
    assert stored == ["train-2", "train-3", "train-4"]  # others take the places of the examples
    texts = {s.text for s in Records(tmp_path / "run/solutions/train.jsonl", Solution)}
    assert texts == {"1 + 1 = 2\nThe answer is 2."}
    card = json.loads((tmp_path / "run/verifiers/listener/verifier.json").read_text())
    assert "no 0" not in json.dumps(card)  # a verifier reads the question alone
    before = len(prompts)
    run(load(babbler), tmp_path / "run")
    assert len(asked(tmp_path)) == before


def test_none_is_the_default_and_changes_nothing(babbler, tmp_path):
    plain = load(babbler, few_shot=None)
    assert plain.resolved() == load(babbler, few_shot=0).resolved()
    assert "few_shot" not in plain.resolved()["sample"]
    assert load(babbler).resolved()["sample"]["few_shot"] == 2
    run(plain, tmp_path / "run")
    assert all(context.count("Question:") == 1 and stop == ["THE END"] for _, context, _, stop in asked(tmp_path))


def test_what_does_not_go_with_examples_is_refused_before_the_run(babbler, tiny):
    with pytest.raises(ConfigError, match=r"sample.few_shot: generator.train teaches the model the question alone"):
        load(babbler, f"generator={{path: {tiny}, train: {{epochs: 1}}}}", "label=null")
    with pytest.raises(ConfigError, match=r"sample.few_shot: policies learn from the question alone"):
        load(babbler, "reinforce={policies: {a: {method: rft}}}")
    with pytest.raises(ConfigError, match=r"sample.few_shot shows worked examples of the task; give a task"):
        load(babbler, "task=null")


def test_the_commands_take_it_too(babbler, tmp_path):
    backend = ["--backend", babbler["name"], "--backend-option", f"log={tmp_path / 'asked'}"]
    same = ["--task", str(STRANGERS / "task.py"), "--split", "train", "--prompt", "Question: {question}\nAnswer:\n"]
    same += [*backend, "--few-shot", "2"]

    def call(*words):
        done = CliRunner().invoke(app, [*words, *same])
        assert done.exit_code == 0, done.output

    solutions, labels = str(tmp_path / "s.jsonl"), str(tmp_path / "l.jsonl")
    call("sample", "--n", "2", "--problems", "3", "--out", solutions)
    assert {s.problem_id for s in Records(solutions, Solution)} == {"train-2", "train-3", "train-4"}
    call("label", "--solutions", solutions, "--labeler-option", "rollouts=2", "--out", labels)
    assert len(Records(labels, LabelledSolution)) == 3
    assert all(context.startswith(EXAMPLES) for _, context, _, _ in asked(tmp_path))
    assert {tuple(stop) for *_, stop in asked(tmp_path)} == {("\n\nQuestion:",)}

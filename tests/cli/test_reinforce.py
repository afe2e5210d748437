"""`stepmark reinforce` on a tiny model: looks as text and as JSON, and a policy that can be sampled."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.store import Records
from stepmark.types import Solution

STRANGERS = Path(__file__).parents[1] / "strangers"
TASK = ["--task", STRANGERS / "guesses.py"]
SHORT = ["--max-tokens", 24, "--set", "tensorboard=false"]
QUICK = [*SHORT, "--samples", 2, *(x for k in ("updates=2", "prompts=4", "evaluate_every=1") for x in ("--set", k))]


def ok(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    place = tmp_path_factory.mktemp("generator")
    shape = ["--shape", "hidden=16", "--shape", "layers=1", "--shape", "heads=2", "--shape", "kv_heads=1"]
    ok("init", *TASK, *shape, "--shape", "vocab=300", "--shape", "max_length=64", "--out", place / "base")
    training = ["--set", "epochs=15", "--set", "lr=1e-2", "--set", "batch_tokens=256", "--set", "tensorboard=false"]
    ok("train", "generator", *TASK, "--base", place / "base", *training, "--out", place / "generator")
    return place / "generator"


def test_a_policy_learns_from_a_verifier_and_gold_answers(generator, tmp_path):
    verifier = tmp_path / "steady.py"
    verifier.write_text(
        "from dataclasses import dataclass\n"
        "from stepmark.types import Verification\n"
        "@dataclass(frozen=True)\n"
        "class Steady:\n"
        "    def verify(self, question, solutions):\n"
        "        return [Verification(s.id, (0.25,) * len(s.spans), 0.25, 'min') for s in solutions]\n"
    )
    command = ["reinforce", "--policy", generator, *TASK, *QUICK, "--problems", 8, "--held-out-problems", 6]
    command += [
        "--reward",
        f"{verifier}=2",
        "--reward",
        "gold=0.5",
        "--credit",
        "outcome",
        "--out",
        tmp_path / "policy",
    ]
    output = ok(*command).stdout
    rows = [line.split() for line in output.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert output.count("<- handed on") == 1
    assert "updates      2" in output
    summary = json.loads(ok(*command, "--json").stdout)  # it is finished already
    assert [look["update"] for look in summary["looks"]] == [0, 1, 2]
    for look, row in zip(summary["looks"], rows, strict=True):
        assert row[1] == f"{100 * look['accuracy']:.1f}%"
        # A complete greedy answer has reward 2 * 0.25, and 0.5 more if it is correct.
        assert look["accuracy"] - 1e-9 <= look["reward"] <= 0.5 + 0.5 * look["accuracy"] + 1e-9
    ok("sample", *TASK, "--model", tmp_path / "policy", "--n", 1, "--problems", 3, "--out", tmp_path / "s.jsonl")
    assert len(Records(tmp_path / "s.jsonl", Solution)) == 3


def test_a_policy_learns_from_its_correct_attempts(generator, tmp_path):
    command = ["reinforce", "--policy", generator, *TASK, *SHORT, "--method", "rft", "--samples", 6, "--problems", 10]
    summary = json.loads(ok(*command, "--set", "epochs=1", "--out", tmp_path / "policy", "--json").stdout)
    assert summary["examples"] > 0
    assert (tmp_path / "policy/model.safetensors").is_file()


@pytest.mark.parametrize("method", ["grpo", "rft"])
def test_stop_texts_arrive_as_they_are_typed_and_end_attempts(generator, tmp_path, method):
    """A line break, and texts that YAML would read as something else."""
    stops = ["\n", "null", "[a, b]"]
    command = ["reinforce", "--policy", generator, *TASK, *SHORT, "--problems", 8, "--method", method, "--samples", 4]
    command += [x for stop in stops for x in ("--stop", stop)]
    if method == "rft":
        ok(*command, "--set", "epochs=1", "--out", tmp_path / "policy")
        texts = [s.text for s in Records(tmp_path / "policy/drawn/solutions.jsonl", Solution)]
        assert len(texts) == 32
        assert not any("\n" in text for text in texts)
        return
    command += ["--reward", "gold", "--set", "updates=1", "--set", "prompts=2", "--held-out-problems", 4]
    ok(*command, "--out", tmp_path / "policy")
    stored = json.loads((tmp_path / "policy/training.json").read_text())
    assert stored["settings"]["stop"] == stops

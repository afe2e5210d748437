"""Several writers of verifications in one run, each for verifiers of their own, and a judge that the run teaches."""

import json
from pathlib import Path

import pytest

from stepmark.data.ledger import Budget
from stepmark.data.store import Records, RunDir
from stepmark.errors import BudgetReached, ConfigError
from stepmark.models import checkpoints
from stepmark.run import recipe
from stepmark.run.context import RunContext
from stepmark.run.cost_estimate import plan
from stepmark.run.execute import run
from stepmark.types import LabelledSolution

STRANGERS = Path(__file__).parents[1] / "strangers"
LISTENER = f"kind: {STRANGERS / 'listener.py'}"
ORACLE = "{name: rationale, options: {source: oracle}}"
UNGUIDED = '{name: rationale, options: {source: unguided, max_tokens: 40, prompt: "{question}\\n{solution}\\nSo:\\n"}}'
REFERENCE = (
    '{name: rationale, options: {source: reference, max_tokens: 40, prompt: "{question}\\n{reference}\\n'
    'So:\\n{solution}\\nSo:\\n"}}'
)
TRAIN = "{epochs: 8, lr: 0.01, batch_tokens: 400, row_tokens: 200, tensorboard: false, device: cpu}"


@pytest.fixture
def made(tmp_path):
    """Recipes with a task that can verify: it says of each line whether it is right."""
    task = tmp_path / "telling.py"
    source = (STRANGERS / "task.py").read_text()
    task.write_text(
        source
        + """
    def rationale(self, problem: Problem, solution: Solution):
        return "\\n".join(f"Line {i}: {flag}." for i, flag in enumerate(self.judge_steps(problem, solution)))
"""
    )

    def load(*changes):
        raw = {
            "name": "writers",
            "seed": 1,
            "task": str(task),
            "generator": {"backend": str(STRANGERS / "backend.py")},
            "verifiers": {"plain": {"kind": str(STRANGERS / "listener.py")}},
            "sample": {
                "train": {"split": "train", "problems": 6, "n": 3},
                "test": {"split": "test", "problems": 2, "n": 2},
            },
            "limits": {"ungradable": 1.0, "truncated": 1.0},
            "evaluate": {"n": [1, 2]},
            "workers": 1,
        }
        return recipe.parse(recipe.changed(raw, changes), "test")

    return load


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    texts = ["1 + 2 = 3\nThe answer is 3.\nLine 0: True.\nLine 1: False.\nIs the answer correct (Yes/No)? Yes No"] * 50
    shape = checkpoints.Shape(hidden=16, heads=2, layers=1, vocab=400, max_length=256)
    return checkpoints.create(tmp_path_factory.mktemp("model") / "base", texts, shape, seed=1)


def heard(path, name):
    found = json.loads((path / "verifiers" / name / "heard.json").read_text())
    return {x["solution"]["id"]: x["rationales"] for x in found}


def written(path, name=""):
    return {r.key: r for r in Records(path / "rationales" / name / "train.jsonl", LabelledSolution)}


SCRIBE = f"{{name: {STRANGERS / 'scribe.py'}, options: {{draws: 2}}}}"


def test_a_verifier_learns_from_its_own_writer_and_the_others_from_the_recipes(made, tmp_path):
    given = made(
        f"rationales={ORACLE}",
        f"verifiers.own={{{LISTENER}, rationales: {SCRIBE}}}",
        f"verifiers.same={{{LISTENER}, rationales: {SCRIBE}}}",
        f"verifiers.told={{{LISTENER}, rationales: {ORACLE}}}",
    )
    metrics = run(given, tmp_path / "run").metrics
    plain, own, same, oracle = (heard(tmp_path / "run", name) for name in ("plain", "own", "same", "told"))
    assert plain == oracle and own == same and plain.keys() == own.keys()
    assert all([r["source"] for r in x] == ["oracle"] for x in plain.values())
    assert all([r["source"] for r in x] == ["unguided"] * 2 for x in own.values())
    assert written(tmp_path / "run").keys() == written(tmp_path / "run", "own").keys() == plain.keys()
    assert not {"same", "told"} & {p.name for p in (tmp_path / "run/rationales").iterdir()}  # written once
    counted = metrics["rationales"]
    assert {k: v["asked"] for k, v in counted.items()} == {"oracle": len(plain), "unguided": 2 * len(plain)}
    assert "unguided" in (tmp_path / "run/report.html").read_text()


def test_without_writers_of_the_recipe_the_others_learn_from_grades_alone(made, tmp_path):
    run(made(f"verifiers.own={{{LISTENER}, rationales: {ORACLE}}}"), tmp_path / "run")
    plain, own = heard(tmp_path / "run", "plain"), heard(tmp_path / "run", "own")
    assert plain.keys() == own.keys()
    assert not any(plain.values()) and all(own.values())


def test_each_writer_has_a_ledger_and_is_paid_for_once(made, tmp_path):
    given = made(f"rationales={SCRIBE}", f"verifiers.own={{{LISTENER}, rationales: {SCRIBE.replace('2', '3')}}}")
    for limit in (30, 60, 80):
        with pytest.raises(BudgetReached):
            run(given, tmp_path / "run", budget=Budget(rollouts=limit))
    run(given, tmp_path / "run")
    run(given, tmp_path / "whole")
    for name, draws in (("", 2), ("own", 3)):
        assert written(tmp_path / "run", name) == written(tmp_path / "whole", name) != {}
        ledger = tmp_path / "run/rollouts" / f"rationales-{name and name + '-'}completer.spent.json"
        assert json.loads(ledger.read_text())["rollouts"] == draws * len(written(tmp_path / "run", name))


def test_a_plan_tells_the_writers_apart(made, tmp_path):
    given = made(f"rationales={SCRIBE}", f"verifiers.own={{{LISTENER}, rationales: {SCRIBE.replace('2', '3')}}}")
    with RunDir(tmp_path / "run").open(given.resolved()) as directory:
        first, second = plan(RunContext(given, directory), problems=3, solutions=2).rationales
    assert first.stage.startswith("rationales: ") and second.stage.startswith("rationales of own: ")
    assert second.rollouts == pytest.approx(1.5 * first.rollouts)


def test_a_judge_learns_to_write_what_the_task_would_in_each_way_that_it_is_asked(made, tmp_path, model):
    given = made(
        f"judge={{path: {model}, problems: 4, train: {TRAIN}, backend: {{name: local, options: {{device: cpu}}}}}}",
        f"verifiers.unguided={{{LISTENER}, rationales: {UNGUIDED}}}",
        f"verifiers.reference={{{LISTENER}, rationales: {REFERENCE}}}",
        f"verifiers.told={{{LISTENER}, rationales: {ORACLE}}}",
    )
    metrics = run(given, tmp_path / "run").metrics
    taught = json.loads((tmp_path / "run/judge/trained.json").read_text())
    right = written(tmp_path / "run", "told")
    of_four = [key for key in right if int(key.split("#")[0].split("-")[1]) < 4]
    assert taught["examples"] == 2 * len(of_four) < 2 * len(right)
    # A model that learned little says little that is kept, but each of them was asked once in each way.
    asked = {source: counts["asked"] for source, counts in metrics["rationales"].items()}
    assert asked == {"oracle": len(right), "reference": len(right), "unguided": len(right)}
    before = (tmp_path / "run/judge/trained.json").stat().st_mtime_ns
    run(given, tmp_path / "run")
    assert (tmp_path / "run/judge/trained.json").stat().st_mtime_ns == before


def test_what_a_judge_or_a_writer_needs_is_said_before_anything_starts(made, model):
    unguided = f"rationales={UNGUIDED}"
    for changes, fault in (
        ([unguided, f"judge={{train: {TRAIN}}}"], "judge.train: without a generator that has a model"),
        ([unguided, f"judge={{path: {model}, train: {TRAIN}}}", f"task={STRANGERS / 'task.py'}"], "no `rationale`"),
        ([f"judge={{path: {model}, train: {TRAIN}}}"], "judge.train: no labeller under rationales"),
        (
            [unguided, f"judge={{path: {model}, split: dev, train: {TRAIN}}}"],
            "is always trained on the training solutions",
        ),
        ([unguided, "judge={init: {hidden: 8}}"], "can't judge before it is trained"),
        ([unguided, "judge={backend: local}"], "give path, init or train"),
        (
            [unguided, f"judge={{train: {TRAIN}, backend: {STRANGERS / 'backend.py'}}}"],
            "can't run a model that was trained here",
        ),
        ([f"verifiers.own={{{LISTENER}, rationales: {UNGUIDED}}}"], r"verifiers.own.rationales: .* asks a judge"),
        (
            [f"verifiers.orm={{kind: orm, base: {{path: x}}, rationales: {ORACLE}}}"],
            "is not trained to write verifications",
        ),
    ):
        with pytest.raises(ConfigError, match=fault):
            made(*changes)
    given = made(
        unguided, f"judge={{path: {model}, train: {TRAIN}}}", f"verifiers.own={{{LISTENER}, rationales: {ORACLE}}}"
    )
    again = recipe.parse(given.resolved(), "again")
    assert (again.judge, again.verifiers, again.writers) == (given.judge, given.verifiers, given.writers)
    assert "rationales" not in given.resolved()["verifiers"]["plain"]


def test_nothing_is_planned_with_a_judge_that_is_yet_to_learn(made, tmp_path, model):
    given = made(f"rationales={UNGUIDED}", f"judge={{path: {model}, train: {TRAIN}}}")
    with (
        RunDir(tmp_path / "run").open(given.resolved()) as directory,
        pytest.raises(ConfigError, match="Run its stage `train judge` first, then plan"),
    ):
        plan(RunContext(given, directory))

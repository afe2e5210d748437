"""Several writers of verifications in one run, each for its own verifiers, and a judge that the run trains."""

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
def load_recipe(tmp_path):
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


def examples_of(path, name):
    examples = json.loads((path / "verifiers" / name / "heard.json").read_text())
    return {x["solution"]["id"]: x["rationales"] for x in examples}


def written(path, name=""):
    return {r.key: r for r in Records(path / "rationales" / name / "train.jsonl", LabelledSolution)}


def scribe(draws):
    return f"{{name: {STRANGERS / 'scribe.py'}, options: {{draws: {draws}}}}}"


SCRIBE = scribe(2)


def test_a_verifier_learns_from_its_own_writer_and_the_others_from_the_recipes_writer(load_recipe, tmp_path):
    loaded = load_recipe(
        f"rationales={ORACLE}",
        f"verifiers.own={{{LISTENER}, rationales: {SCRIBE}}}",
        f"verifiers.same={{{LISTENER}, rationales: {SCRIBE}}}",
        f"verifiers.told={{{LISTENER}, rationales: {ORACLE}}}",
    )
    metrics = run(loaded, tmp_path / "run").metrics
    plain, own, same, oracle = (examples_of(tmp_path / "run", name) for name in ("plain", "own", "same", "told"))
    assert plain == oracle and own == same and plain.keys() == own.keys()
    assert all([r["source"] for r in x] == ["oracle"] for x in plain.values())
    assert all([r["source"] for r in x] == ["unguided"] * 2 for x in own.values())
    assert written(tmp_path / "run").keys() == written(tmp_path / "run", "own").keys() == plain.keys()
    assert not {"same", "told"} & {p.name for p in (tmp_path / "run/rationales").iterdir()}  # written once
    counted = metrics["rationales"]
    assert {k: v["asked"] for k, v in counted.items()} == {"oracle": len(plain), "unguided": 2 * len(plain)}
    assert "unguided" in (tmp_path / "run/report.html").read_text()


def test_without_a_writer_of_the_recipe_the_other_verifiers_learn_from_grades(load_recipe, tmp_path):
    run(load_recipe(f"verifiers.own={{{LISTENER}, rationales: {ORACLE}}}"), tmp_path / "run")
    plain, own = examples_of(tmp_path / "run", "plain"), examples_of(tmp_path / "run", "own")
    assert plain.keys() == own.keys()
    assert not any(plain.values()) and all(own.values())


def test_each_writer_has_a_ledger_and_is_paid_for_once(load_recipe, tmp_path):
    loaded = load_recipe(f"rationales={SCRIBE}", f"verifiers.own={{{LISTENER}, rationales: {scribe(3)}}}")
    for limit in (30, 60, 80):
        with pytest.raises(BudgetReached):
            run(loaded, tmp_path / "run", budget=Budget(rollouts=limit))
    run(loaded, tmp_path / "run")
    run(loaded, tmp_path / "whole")
    for name, draws in (("", 2), ("own", 3)):
        assert written(tmp_path / "run", name) == written(tmp_path / "whole", name) != {}
        ledger = tmp_path / "run/rollouts" / f"rationales-{name and name + '-'}completer.spent.json"
        assert json.loads(ledger.read_text())["rollouts"] == draws * len(written(tmp_path / "run", name))


def test_a_plan_has_a_cost_for_each_writer(load_recipe, tmp_path):
    loaded = load_recipe(f"rationales={SCRIBE}", f"verifiers.own={{{LISTENER}, rationales: {scribe(3)}}}")
    with RunDir(tmp_path / "run").open(loaded.resolved()) as directory:
        first, second = plan(RunContext(loaded, directory), problems=3, solutions=2).rationales
    assert first.stage.startswith("rationales: ") and second.stage.startswith("rationales of own: ")
    assert second.rollouts == pytest.approx(1.5 * first.rollouts)


def test_a_judge_is_trained_on_the_tasks_verifications_for_every_prompt(load_recipe, tmp_path, model):
    loaded = load_recipe(
        f"judge={{path: {model}, problems: 4, train: {TRAIN}, backend: {{name: local, options: {{device: cpu}}}}}}",
        f"verifiers.unguided={{{LISTENER}, rationales: {UNGUIDED}}}",
        f"verifiers.reference={{{LISTENER}, rationales: {REFERENCE}}}",
        f"verifiers.told={{{LISTENER}, rationales: {ORACLE}}}",
    )
    metrics = run(loaded, tmp_path / "run").metrics
    taught = json.loads((tmp_path / "run/judge/trained.json").read_text())
    right = written(tmp_path / "run", "told")
    of_four = [key for key in right if int(key.split("#")[0].split("-")[1]) < 4]
    assert taught["examples"] == 2 * len(of_four) < 2 * len(right)
    # This model is trained too little to write usable verifications, but each prompt was used once for each solution.
    counts_by_source = {source: counts["asked"] for source, counts in metrics["rationales"].items()}
    assert counts_by_source == {"oracle": len(right), "reference": len(right), "unguided": len(right)}
    before = (tmp_path / "run/judge/trained.json").stat().st_mtime_ns
    run(loaded, tmp_path / "run")
    assert (tmp_path / "run/judge/trained.json").stat().st_mtime_ns == before


def test_missing_requirements_of_a_judge_or_writer_are_reported_before_the_run(load_recipe, model):
    unguided = f"rationales={UNGUIDED}"
    for changes, fault in (
        ([unguided, f"judge={{train: {TRAIN}}}"], "judge.train: without a generator that has a model"),
        ([unguided, f"judge={{path: {model}, train: {TRAIN}}}", f"task={STRANGERS / 'task.py'}"], "no `rationale`"),
        ([f"judge={{path: {model}, train: {TRAIN}}}"], "judge.train: no labeler under rationales"),
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
            load_recipe(*changes)
    loaded = load_recipe(
        unguided, f"judge={{path: {model}, train: {TRAIN}}}", f"verifiers.own={{{LISTENER}, rationales: {ORACLE}}}"
    )
    again = recipe.parse(loaded.resolved(), "again")
    assert (again.judge, again.verifiers, again.writers) == (loaded.judge, loaded.verifiers, loaded.writers)
    assert "rationales" not in loaded.resolved()["verifiers"]["plain"]


def test_a_plan_with_an_untrained_judge_is_refused(load_recipe, tmp_path, model):
    loaded = load_recipe(f"rationales={UNGUIDED}", f"judge={{path: {model}, train: {TRAIN}}}")
    with (
        RunDir(tmp_path / "run").open(loaded.resolved()) as directory,
        pytest.raises(ConfigError, match="Run its stage `train judge` first, then plan"),
    ):
        plan(RunContext(loaded, directory))

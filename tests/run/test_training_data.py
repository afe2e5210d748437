"""The training data of verifiers and tokenizers: labels, written verifications, reference solutions, words."""

import json
from pathlib import Path

import pytest

from stepmark.data.ledger import Budget
from stepmark.data.store import Records, RunDir
from stepmark.errors import BudgetReached, ConfigError, DataError
from stepmark.models import checkpoints
from stepmark.run import recipe
from stepmark.run.context import RunContext
from stepmark.run.execute import run, run_stage
from stepmark.run.pipeline.models import TrainModel
from stepmark.types import LabelledSolution

STRANGERS = Path(__file__).parents[1] / "strangers"
WRITES = """
    def rationale(self, problem: Problem, solution: Solution):
        return "\\n".join(f"Recomputed {i}: {flag}" for i, flag in enumerate(self.judge_steps(problem, solution)))
"""
SCRIBE = f"rationales={STRANGERS / 'scribe.py'}"
DRAWS = f"rationales={{name: {STRANGERS / 'scribe.py'}, options: {{draws: 2}}}}"


@pytest.fixture
def load_recipe(tmp_path):
    """Recipes of the strangers' task, which can write verifications here."""
    task = tmp_path / "telling.py"
    task.write_text((STRANGERS / "task.py").read_text() + WRITES)

    def load(*changes):
        raw = {
            "name": "lessons",
            "seed": 1,
            "task": str(task),
            "generator": {"backend": str(STRANGERS / "backend.py")},
            "verifiers": {"listener": {"kind": str(STRANGERS / "listener.py")}},
            "sample": {
                "train": {"split": "train", "problems": 5, "n": 3},
                "test": {"split": "test", "problems": 2, "n": 2},
            },
            "evaluate": {"n": [1, 2]},
            "workers": 1,
        }
        return recipe.parse(recipe.changed(raw, changes), "test")

    return load


def examples_of(path):
    return json.loads((path / "verifiers/listener/heard.json").read_text())


def written(path):
    return {r.key: r for r in Records(path / "rationales/train.jsonl", LabelledSolution)}


@pytest.mark.parametrize("label", [[], ["label={name: monte_carlo, options: {rollouts: 2}}"]])
def test_examples_have_labels_and_rationales_each_with_or_without_the_other(load_recipe, tmp_path, label):
    run(load_recipe(*label, SCRIBE), tmp_path / "both")
    run(load_recipe(*label), tmp_path / "without")
    both, without = examples_of(tmp_path / "both"), examples_of(tmp_path / "without")
    assert [x | {"rationales": []} for x in both] == without
    assert {x["labels"][0]["source"] for x in both} == ({"monte_carlo"} if label else {"none"})
    for x in both:
        (rationale,) = x["rationales"]
        assert rationale["text"].count("\n") == len(x["solution"]["spans"]) - 1
        assert rationale["said"] == ("yes" if x["grade"]["verdict"] == "correct" else "no")
        assert ("False" in rationale["text"]) == (rationale["said"] == "no")
    assert {x["solution"]["id"] for x in both} == set(written(tmp_path / "both"))
    assert not (tmp_path / "without/rationales").exists()
    counted = json.loads((tmp_path / "both/metrics.json").read_text())["rationales"]["oracle"]
    assert (counted["asked"], counted["kept"]) == (len(both), len(both))
    assert counted["kept_yes"] == sum(x["grade"]["verdict"] == "correct" for x in both)


def test_copies_of_a_solution_are_verified_only_with_distinct_false(load_recipe, tmp_path):
    run(load_recipe(SCRIBE), tmp_path / "one")
    run(load_recipe(SCRIBE, "rationales.distinct=false"), tmp_path / "all")
    assert len(written(tmp_path / "one")) < len(written(tmp_path / "all")) == 15 == len(examples_of(tmp_path / "all"))


def test_sampled_rationales_have_their_own_ledger_and_are_paid_for_once(load_recipe, tmp_path):
    loaded = load_recipe("label={name: monte_carlo, options: {rollouts: 2}}", DRAWS)
    for limit in (40, 62, 70, 77):
        with pytest.raises(BudgetReached, match=f"rollouts {limit} of {limit}"):
            run(loaded, tmp_path / "run", budget=Budget(rollouts=limit))
    run(loaded, tmp_path / "run")
    run(loaded, tmp_path / "whole")
    assert written(tmp_path / "run") == written(tmp_path / "whole")
    assert examples_of(tmp_path / "run") == examples_of(tmp_path / "whole")
    for path in ("run", "whole"):
        spent = json.loads((tmp_path / path / "rollouts/rationales-completer.spent.json").read_text())
        assert spent["rollouts"] == 2 * len(written(tmp_path / path))


def test_missing_requirements_of_rationales_are_reported_before_the_run(load_recipe):
    with pytest.raises(
        ConfigError, match=r"rationales: .*scribe.py needs a task that writes verifications; .* no `rationale`"
    ):
        load_recipe(SCRIBE, f"task={STRANGERS / 'task.py'}")
    with pytest.raises(ConfigError, match=r"rationales needs a task"):
        load_recipe(SCRIBE, "task=null")
    load_recipe(DRAWS, f"task={STRANGERS / 'task.py'}")
    with pytest.raises(ConfigError, match="rationales: judge asks a judge"):
        load_recipe("rationales=judge")


def test_rationales_of_imported_solutions_are_stored_and_learned_from(tmp_path):
    reader = tmp_path / "reader.py"
    reader.write_text('''"""Two questions, three solutions each, of which the first has a verification."""

from stepmark.types import *


class Reader:
    def read(self, path):
        for q in range(40):
            solutions = tuple(Solution(f"q{q}#{i}", f"q{q}", i, "It is 1.", ((0, 8),)) for i in range(3))
            grade = Grade(Verdict.CORRECT, "")
            grades = tuple(GradedSolution(s.id, s.problem_id, grade) for s in solutions)
            brought = tuple(
                LabelledSolution(s, grade, (StepLabel(0, 0),), (Rationale(f"Looks good, {i}.", "yes", "reference"),))
                for i, s in enumerate(solutions)
            )
            problem = Problem(f"q{q}", f"What is {q}?", "1", "")
            yield Imported(problem, solutions, grades, brought)
''')
    part = f"{{file: x, format: {reader}, n: 2, share: [%s]}}"
    raw = {"name": "imported", "verifiers": {"listener": {"kind": str(STRANGERS / "listener.py")}}, "workers": 1}
    changes = [f"sample.train={part % '0.3, 1'}", f"sample.test={part % '0, 0.3'}", "evaluate.n=[1, 2]"]
    run(recipe.parse(recipe.changed(raw, changes), "test"), tmp_path / "run")
    stored = written(tmp_path / "run")
    assert {key.split("#")[1] for key in stored} == {"0", "1"}
    examples = examples_of(tmp_path / "run")
    assert len(stored) == 2 * len(examples)  # solutions with the same text are learned from once
    assert all([r["text"] for r in x["rationales"]] == ["Looks good, 0."] for x in examples)


def test_references_go_only_to_the_verifier_with_that_setting(load_recipe, tmp_path):
    other = f"verifiers.other={{kind: {STRANGERS / 'listener.py'}}}"
    run(load_recipe("verifiers.listener.references=3", other, SCRIBE), tmp_path / "run")
    added = [x for x in examples_of(tmp_path / "run") if x["labels"][0]["source"] == "reference"]
    assert [x["solution"]["id"] for x in added] == [f"train-{i}#reference" for i in range(3)]
    for x in added:
        assert x["grade"]["verdict"] == "correct"
        assert x["solution"]["text"].startswith(x["question"].split()[1] + " + ")
        assert (len(x["labels"]), len(x["solution"]["spans"]), x["rationales"]) == (3, 3, [])
    other_examples = json.loads((tmp_path / "run/verifiers/other/heard.json").read_text())
    assert other_examples == [x for x in examples_of(tmp_path / "run") if x not in added]


def test_references_are_correct_even_where_demonstrations_are_not(load_recipe, tmp_path):
    task = tmp_path / "erring.py"
    task.write_text((STRANGERS / "task.py").read_text().replace('"sums", text, text', '"sums", text, "wrong"'))
    run(load_recipe(f"task={task}", "verifiers.listener.references=2"), tmp_path / "run")
    assert [x["solution"]["text"] for x in examples_of(tmp_path / "run")][-1].endswith("The answer is 9.")


def test_replayed_demonstrations_are_unchanged_and_have_no_verification(load_recipe, tmp_path):
    task = tmp_path / "erring.py"
    task.write_text((STRANGERS / "task.py").read_text().replace('"sums", text, text', '"sums", text, "It is 0."'))
    run(load_recipe(f"task={task}", "verifiers.listener.replay=2"), tmp_path / "run")
    *_, before, last = examples_of(tmp_path / "run")
    assert last["solution"]["text"] == before["solution"]["text"] == "It is 0."
    assert last["solution"]["id"] != before["solution"]["id"]
    assert last["grade"]["verdict"] == "ungradable"
    assert [x["source"] for x in last["labels"]] == ["reference"]
    assert "replay" not in load_recipe().resolved()["verifiers"]["listener"]


def test_references_are_refused_for_a_verifier_that_does_not_write_solutions(load_recipe):
    with pytest.raises(ConfigError, match="is not trained to write solutions"):
        load_recipe(f"verifiers.listener={{kind: {STRANGERS / 'verifier.py'}, references: 1}}")
    with pytest.raises(ConfigError, match="is not trained to write solutions"):
        load_recipe("verifiers.listener={kind: orm, base: {path: m}, references: 1}")
    assert "references" not in load_recipe().resolved()["verifiers"]["listener"]
    loaded = load_recipe("verifiers.listener.references=2")
    assert recipe.parse(loaded.resolved(), "again").verifiers == loaded.verifiers


def vocabulary(loaded, path):
    """The words of the tokenizer that the generator's base got."""
    with RunDir(path).open(loaded.resolved()) as directory:
        run_stage(RunContext(loaded, directory), TrainModel("generator"))
    return set(checkpoints.load_tokenizer(path / "bases/generator").get_vocab())


def test_a_new_tokenizer_learns_the_words_of_verifications_where_there_are_any(load_recipe, tmp_path):
    shape = "{hidden: 8, layers: 1, heads: 2, vocab: 600, max_length: 64}"
    new = f"generator={{init: {shape}, train: {{epochs: 0.1, tensorboard: false}}}}"
    plain = f"verifiers={{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}"
    with_words = vocabulary(load_recipe(new, plain, SCRIBE), tmp_path / "written")
    with_corpus = vocabulary(load_recipe(new), tmp_path / "corpus")
    neither = vocabulary(load_recipe(new, plain), tmp_path / "neither")
    assert {"Recomputed", "ĠTrue", "ĠFalse"} <= with_words and not {"Recomputed", "ĠTrue", "ĠFalse"} & with_corpus
    assert {"Zyxwvuts", "ĠQwertzuiop"} <= with_corpus and not {"Zyxwvuts", "ĠQwertzuiop"} & with_words
    task = load_recipe(new).task.load()
    texts = [f"{p.question}\n{p.demonstration}" for p in task.load("train").problems]
    checkpoints.create(tmp_path / "alone", texts, load_recipe(new).generator.init)
    assert neither == set(checkpoints.load_tokenizer(tmp_path / "alone").get_vocab())


@pytest.mark.parametrize(
    "ids,message",
    [
        ("[]", r"generator: the split 'train' of the task .* has no usable problem"),
        ("['a', 'b', 'a']", r"generator: the split 'train' of the task .* two problems with the id 'a': 'q0' and 'q2'"),
    ],
)
def test_a_generator_is_not_trained_on_no_problems_or_on_two_with_one_id(load_recipe, tiny, tmp_path, ids, message):
    (tmp_path / "few.py").write_text(
        "from stepmark.types import Problem, ProblemSet\n"
        "class Few:\n"
        "    grader, steps = 'numeric', 'line'\n"
        "    def load(self, split, limit=None):\n"
        f"        rows = enumerate({ids})\n"
        "        return ProblemSet(tuple(Problem(id, f'q{i}', '1', 't', 'x', 'The answer is 1.') for i, id in rows))\n"
    )
    training = f"generator={{path: {tiny}, train: {{epochs: 1}}}}"
    loaded = load_recipe(f"task={tmp_path / 'few.py'}", training)
    with RunDir(tmp_path / "run").open(loaded.resolved()) as directory, pytest.raises(DataError, match=message):
        run_stage(RunContext(loaded, directory), TrainModel("generator"))
    assert not (tmp_path / "run/generator").exists()


@pytest.mark.parametrize("label", [[], ["label={name: monte_carlo, options: {rollouts: 2}}"]])
def test_solutions_without_any_answer_end_the_run_before_they_are_labelled(load_recipe, tmp_path, label):
    (tmp_path / "hums.py").write_text(
        "from dataclasses import dataclass\n"
        "from stepmark.types import Finish, Rollout\n"
        "@dataclass(frozen=True)\n"
        "class Hums:\n"
        "    def sample(self, prompts, params):\n"
        "        for p in prompts:\n"
        "            assert not p.prefix, 'no rollout is paid for'\n"
        "            for i in range(p.first, p.first + p.n):\n"
        "                yield Rollout(p.id, i, 'Let me think.\\nHow hard.', Finish.STOP, 9)\n"
    )
    loaded = load_recipe(f"generator.backend={tmp_path / 'hums.py'}", *label)
    for _ in range(2):  # going on gives the same
        with pytest.raises(DataError) as e:
            run(loaded, tmp_path / "run")
        for part in (
            "none of the 15 graded training solutions has an answer that the grader could read",
            "(15 of these because: no answer found)",
            "One text: 'Let me think.\\nHow hard.'",
            "max_tokens",
            "sample.few_shot=4",
        ):
            assert part in str(e.value)
    assert not (tmp_path / "run/labels").exists()
    assert not (tmp_path / "run/verifiers").exists()

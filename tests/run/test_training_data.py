"""What verifiers and tokenizers of a run learn from: labels, written verifications, worked solutions, words."""

import json
from pathlib import Path

import pytest

from stepmark.data.ledger import Budget
from stepmark.data.store import Records, RunDir
from stepmark.errors import BudgetReached, ConfigError
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
def made(tmp_path):
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


def heard(path):
    return json.loads((path / "verifiers/listener/heard.json").read_text())


def written(path):
    return {r.key: r for r in Records(path / "rationales/train.jsonl", LabelledSolution)}


@pytest.mark.parametrize("label", [[], ["label={name: monte_carlo, options: {rollouts: 2}}"]])
def test_examples_carry_labels_and_rationales_each_with_or_without_the_other(made, tmp_path, label):
    run(made(*label, SCRIBE), tmp_path / "both")
    run(made(*label), tmp_path / "without")
    both, without = heard(tmp_path / "both"), heard(tmp_path / "without")
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


def test_only_where_solutions_are_not_to_be_distinct_are_copies_verified(made, tmp_path):
    run(made(SCRIBE), tmp_path / "one")
    run(made(SCRIBE, "rationales.distinct=false"), tmp_path / "all")
    assert len(written(tmp_path / "one")) < len(written(tmp_path / "all")) == 15 == len(heard(tmp_path / "all"))


def test_drawn_rationales_have_ledgers_of_their_own_and_are_paid_for_once(made, tmp_path):
    given = made("label={name: monte_carlo, options: {rollouts: 2}}", DRAWS)
    for limit in (40, 62, 70, 77):
        with pytest.raises(BudgetReached, match=f"rollouts {limit} of {limit}"):
            run(given, tmp_path / "run", budget=Budget(rollouts=limit))
    run(given, tmp_path / "run")
    run(given, tmp_path / "whole")
    assert written(tmp_path / "run") == written(tmp_path / "whole")
    assert heard(tmp_path / "run") == heard(tmp_path / "whole")
    for path in ("run", "whole"):
        spent = json.loads((tmp_path / path / "rollouts/rationales-completer.spent.json").read_text())
        assert spent["rollouts"] == 2 * len(written(tmp_path / path))


def test_what_rationales_need_is_said_before_anything_starts(made):
    with pytest.raises(
        ConfigError, match=r"rationales: .*scribe.py needs a task that writes verifications; .* no `rationale`"
    ):
        made(SCRIBE, f"task={STRANGERS / 'task.py'}")
    with pytest.raises(ConfigError, match=r"rationales needs a task"):
        made(SCRIBE, "task=null")
    made(DRAWS, f"task={STRANGERS / 'task.py'}")
    with pytest.raises(ConfigError, match="rationales: judge asks a judge"):
        made("rationales=judge")


def test_rationales_that_imported_solutions_bring_are_kept_and_learned_from(tmp_path):
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
    assert len(stored) == 2 * len(heard(tmp_path / "run"))  # their texts are the same, so each is learned from once
    assert all([r["text"] for r in x["rationales"]] == ["Looks good, 0."] for x in heard(tmp_path / "run"))


def test_references_are_shown_to_a_verifier_that_asks_for_them_and_to_no_other(made, tmp_path):
    other = f"verifiers.other={{kind: {STRANGERS / 'listener.py'}}}"
    run(made("verifiers.listener.references=3", other, SCRIBE), tmp_path / "run")
    more = [x for x in heard(tmp_path / "run") if x["labels"][0]["source"] == "reference"]
    assert [x["solution"]["id"] for x in more] == [f"train-{i}#reference" for i in range(3)]
    for x in more:
        assert x["grade"]["verdict"] == "correct"
        assert x["solution"]["text"].startswith(x["question"].split()[1] + " + ")
        assert (len(x["labels"]), len(x["solution"]["spans"]), x["rationales"]) == (3, 3, [])
    seen = json.loads((tmp_path / "run/verifiers/other/heard.json").read_text())
    assert seen == [x for x in heard(tmp_path / "run") if x not in more]


def test_references_are_the_true_solutions_even_where_demonstrations_err(made, tmp_path):
    task = tmp_path / "erring.py"
    task.write_text((STRANGERS / "task.py").read_text().replace('"sums", text, text', '"sums", text, "wrong"'))
    run(made(f"task={task}", "verifiers.listener.references=2"), tmp_path / "run")
    assert [x["solution"]["text"] for x in heard(tmp_path / "run")][-1].endswith("The answer is 9.")


def test_what_the_generator_read_is_replayed_as_it_was_and_verified_by_nobody(made, tmp_path):
    task = tmp_path / "erring.py"
    task.write_text((STRANGERS / "task.py").read_text().replace('"sums", text, text', '"sums", text, "It is 0."'))
    run(made(f"task={task}", "verifiers.listener.replay=2"), tmp_path / "run")
    *_, before, last = heard(tmp_path / "run")
    assert last["solution"]["text"] == before["solution"]["text"] == "It is 0."
    assert last["solution"]["id"] != before["solution"]["id"]
    assert last["grade"]["verdict"] == "ungradable"
    assert [x["source"] for x in last["labels"]] == ["reference"]
    assert "replay" not in made().resolved()["verifiers"]["listener"]


def test_references_are_refused_where_nothing_learns_to_write(made):
    with pytest.raises(ConfigError, match="is not trained to write solutions"):
        made(f"verifiers.listener={{kind: {STRANGERS / 'verifier.py'}, references: 1}}")
    with pytest.raises(ConfigError, match="is not trained to write solutions"):
        made("verifiers.listener={kind: orm, base: {path: m}, references: 1}")
    assert "references" not in made().resolved()["verifiers"]["listener"]
    given = made("verifiers.listener.references=2")
    assert recipe.parse(given.resolved(), "again").verifiers == given.verifiers


def vocabulary(given, path):
    """The words of the tokenizer that the generator's base got."""
    with RunDir(path).open(given.resolved()) as directory:
        run_stage(RunContext(given, directory), TrainModel("generator"))
    return set(checkpoints.load_tokenizer(path / "bases/generator").get_vocab())


def test_a_new_tokenizer_knows_the_words_of_verifications_and_else_only_the_generators(made, tmp_path):
    shape = "{hidden: 8, layers: 1, heads: 2, vocab: 600, max_length: 64}"
    new = f"generator={{init: {shape}, train: {{epochs: 0.1, tensorboard: false}}}}"
    plain = f"verifiers={{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}"
    with_words = vocabulary(made(new, plain, SCRIBE), tmp_path / "written")
    with_corpus = vocabulary(made(new), tmp_path / "corpus")
    neither = vocabulary(made(new, plain), tmp_path / "neither")
    assert {"Recomputed", "ĠTrue", "ĠFalse"} <= with_words and not {"Recomputed", "ĠTrue", "ĠFalse"} & with_corpus
    assert {"Zyxwvuts", "ĠQwertzuiop"} <= with_corpus and not {"Zyxwvuts", "ĠQwertzuiop"} & with_words
    task = made(new).task.load()
    texts = [f"{p.question}\n{p.demonstration}" for p in task.load("train").problems]
    checkpoints.create(tmp_path / "alone", texts, made(new).generator.init)
    assert neither == set(checkpoints.load_tokenizer(tmp_path / "alone").get_vocab())

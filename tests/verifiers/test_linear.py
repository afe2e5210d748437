"""The linear baseline: its fit, the inputs that it refuses, and loading from its file alone."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import stepmark
from stepmark.errors import CheckpointError, ConfigError, DataError
from stepmark.evaluation.stats import auc
from stepmark.run import execute, recipe
from stepmark.stages import train
from stepmark.text.steps import split
from stepmark.types import (
    Finish,
    Grade,
    GradedSolution,
    LabelledSolution,
    Outcome,
    Problem,
    Solution,
    StepLabel,
    Verdict,
)
from stepmark.verifiers.linear import LinearVerifier


def solution(problem: str, sample: int, text: str, finish: Finish = Finish.STOP) -> Solution:
    return Solution(f"{problem}#{sample}", problem, sample, text, split(text, "line"), finish)


def example(problem: Problem, sample: int, text: str, verdict: Verdict) -> tuple[Problem, LabelledSolution]:
    s = solution(problem.id, sample, text)
    no_evidence = (StepLabel(0, 0, source="none"),) * len(s.spans)
    return problem, LabelledSolution(s, GradedSolution(s.id, problem.id, Grade(verdict, "")).grade, no_evidence)


def examples(questions: int = 30) -> list[tuple[Problem, LabelledSolution]]:
    """Right solutions of easy questions outnumber wrong ones; "so we add" is right, "so we double" is wrong."""
    result = []
    for q in range(questions):
        problem = Problem(f"p{q}", f"Ann has {q} pears and {q + 7} figs. How many?", "", "test")
        for i in range(4):
            right = i < (3 if q % 2 else 1)
            phrase = "so we add" if right else "so we double"
            text = f"Ann has {q} and {q + 7}, {phrase} {i}.\nThe answer is {q + i}."
            result.append(example(problem, i, text, Verdict.CORRECT if right else Verdict.INCORRECT))
    return result


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fitted") / "linear"
    done = train.train(LinearVerifier(), examples(), directory)
    assert done.examples == 120
    return directory


def test_tells_new_solutions_apart_and_is_loaded_by_its_directory_alone(fitted: Path) -> None:
    verifier = stepmark.load_verifier(fitted)
    texts = ["Bo has 3 and 9, so we add 5.\nThe answer is 12.", "Bo has 3 and 9, so we double 5.\nThe answer is 18."]
    right, wrong = verifier.verify("Bo has 3 and 9. How many?", [solution("x", i, t) for i, t in enumerate(texts)])
    assert 0 < wrong.score < 0.5 < right.score < 1
    assert right.scores == (right.score,) and right.aggregate == "last" and right.outcome is Outcome.SCORED
    assert pickle.loads(pickle.dumps(LinearVerifier("anywhere"))) == LinearVerifier("anywhere")  # noqa: S301


def test_the_difficulty_of_a_question_changes_no_score(tmp_path: Path) -> None:
    """Solutions that differ only in how easy the question is: a fit without weights would separate them."""
    examples = []
    for q in range(40):
        problem = Problem(f"p{q}", f"How many of {q}?", "", "test")
        word = "easy" if q % 2 else "hard"
        for i in range(4):
            right = i < (3 if q % 2 else 1)
            examples.append(example(problem, i, word, Verdict.CORRECT if right else Verdict.INCORRECT))
    train.train(LinearVerifier(), examples, tmp_path / "even")
    easy, hard = (
        stepmark.load_verifier(tmp_path / "even").verify("How many?", [solution("x", 0, word)])[0].score
        for word in ("easy", "hard")
    )
    assert easy == pytest.approx(hard, abs=1e-3)


def test_what_did_not_end_or_is_empty_is_not_scored(fitted: Path) -> None:
    solutions = [solution("x", 0, "so we add", Finish.LENGTH), Solution("x#1", "x", 1, "", ()), solution("x", 2, "...")]
    truncated, empty, odd = stepmark.load_verifier(fitted).verify("How many?", solutions)
    assert (truncated.outcome, empty.outcome, odd.outcome) == (Outcome.TRUNCATED, Outcome.FAILED, Outcome.SCORED)
    assert (truncated.solution_id, empty.solution_id, odd.solution_id) == ("x#0", "x#1", "x#2")


def test_fitting_again_changes_nothing(fitted: Path, tmp_path: Path) -> None:
    train.train(LinearVerifier(), examples(), tmp_path / "again")
    name = "linear.safetensors"
    assert (fitted / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert train.train(LinearVerifier(), examples(), fitted).examples == 120


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    only_right = [e for e in examples() if e[1].grade.verdict is Verdict.CORRECT]
    unknown = [example(p, x.solution.sample, x.solution.text, Verdict.UNGRADABLE) for p, x in examples(2)]
    with pytest.raises(DataError, match="30 questions has both a right and a wrong"):
        train.train(LinearVerifier(), only_right + unknown, tmp_path / "one")


def test_directories_of_other_verifiers_are_refused(fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no linear\.safetensors"):
        LinearVerifier(str(tmp_path)).verify("q", [solution("x", 0, "a")])
    with pytest.raises(CheckpointError, match="262144 weights for 8 buckets"):
        LinearVerifier(str(fitted), buckets=8).verify("q", [solution("x", 0, "a")])
    (tmp_path / "linear.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="can't be read"):
        LinearVerifier(str(tmp_path)).verify("q", [solution("x", 0, "a")])
    with pytest.raises(ConfigError, match="buckets must be above 0, got 0"):
        LinearVerifier(buckets=0)


def test_the_card_tells_how_it_was_fitted(fitted: Path) -> None:
    card = json.loads((fitted / "verifier.json").read_text())
    assert card["kind"] == "linear" and card["options"] == {"buckets": 1 << 18, "strength": 0.5}


def test_it_ranks_by_more_than_length(fitted: Path) -> None:
    graded = examples(6)
    scores, correct = [], []
    for problem, labelled in graded:
        scores.append(stepmark.load_verifier(fitted).verify(problem.question, [labelled.solution])[0].score)
        correct.append(labelled.grade.verdict is Verdict.CORRECT)
    assert auc(np.array(scores), np.array(correct)) == 1.0


def test_a_recipe_needs_no_model_for_it(tmp_path: Path) -> None:
    """From imported solutions to metrics. Best-of-N by the verifier beats voting when words show which are right."""
    released = tmp_path / "solutions.jsonl"
    rows = []
    for q in range(60):
        listed = []
        for i in range(4):
            right = i == q % 4
            text = f"{'so' if right else 'hence'} {q} + {i}. The answer is {q + (not right)}."
            listed.append({"sample_id": i, "solution": text, "correct": right})
        rows.append(json.dumps({"question_id": q, "question": f"What\u2028is {q}?", "solutions": listed}))
    released.write_text("\n".join(rows) + "\n")
    part = {"file": str(released), "format": "genrm_release", "n": 4}
    raw = {
        "name": "words",
        "sample": {"train": {**part, "share": [0.3, 1]}, "test": {**part, "share": [0, 0.3]}},
        "verifiers": {"linear": {"kind": "linear"}},
        "evaluate": {"n": [4]},
        "workers": 1,
    }
    best = execute.run(recipe.parse(raw, "here"), tmp_path / "run").metrics["best_of_n"]
    assert best["self_consistency"]["4"]["mean"] == 0.0
    assert best["linear"]["4"]["mean"] == 1.0

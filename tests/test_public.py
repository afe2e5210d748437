"""The public names: sorted, complete, and importable without heavy packages."""

import json
import subprocess
import sys

import pytest

import stepmark
from stepmark.errors import CheckpointError, ConfigError
from stepmark.types import Problem, Solution

HEAVY = ("torch", "transformers", "tokenizers", "numpy", "pydantic", "sympy")


def loaded_after(code):
    """The heavy packages that a fresh Python has loaded after running `code`."""
    code += f"\nimport sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stderr.splitlines()[-1])


def test_names_are_sorted_and_all_there():
    assert sorted(stepmark.__all__) == list(stepmark.__all__)
    assert set(stepmark.__all__) <= set(dir(stepmark))
    for name in stepmark.__all__:
        assert getattr(stepmark, name) is not None
    for name in ("load_task", "load_grader", "load_backend", "load_verifier", "rank", "verify"):
        assert callable(getattr(stepmark, name))
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = stepmark.nothing_like_this


def test_rank_stays_a_function_whatever_is_imported():
    code = "import stepmark.run.pipeline, stepmark.evaluation.rank, stepmark; assert callable(stepmark.rank)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_light():
    assert loaded_after("import stepmark; stepmark.Problem; stepmark.load_task") == []


def test_help_is_light():
    code = "import sys; sys.argv = ['stepmark', '--help']\nfrom stepmark.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass"
    assert loaded_after(code) == []


def test_a_task_and_a_grader_by_name():
    task = stepmark.load_task("arithmetic", noise=0.5)
    problem = task.load("test", 1).problems[0]
    grade = stepmark.load_grader(task.grader).grade(problem.reference, problem)
    assert grade.correct
    wrong = stepmark.load_grader("numeric").grade("The answer is 3.", Problem("p", "?", "4", "t"))
    assert wrong.verdict is stepmark.Verdict.INCORRECT
    with pytest.raises(ConfigError, match="Did you mean 'arithmetic'"):
        stepmark.load_task("arithmetik")
    with pytest.raises(ConfigError, match="Did you mean 'noise'"):
        stepmark.load_task("arithmetic", nois=1)


def test_a_verifier_by_path_by_kind_and_a_directory_that_is_none(tmp_path, request):
    path = request.path.parent / "strangers" / "verifier.py"
    solution = Solution("p#0", "p", 0, "1 + 1 = 3", ((0, 9),))
    [verification] = stepmark.load_verifier(str(path), doubt=0.25).verify("1 + 1?", [solution])
    assert verification.scores == (0.25,)
    mine = stepmark.load_verifier(str(path), doubt=0.25)
    assert [v.scores for v in stepmark.verify(mine, "1 + 1?", ["1 + 1 = 3", "1 + 1 = 2\nSo."])] == [(0.25,), (0.9, 0.9)]
    with pytest.raises(ConfigError, match=r"give \[text\]"):
        stepmark.verify(mine, "1 + 1?", "1 + 1 = 3")
    with pytest.raises(ConfigError, match="Did you mean 'line'"):
        stepmark.verify(mine, "1 + 1?", ["1 + 1 = 3"], steps="lines")
    with pytest.raises(ConfigError, match="Did you mean 'prm'"):
        stepmark.load_verifier("pmr")
    with pytest.raises(CheckpointError, match="verifier"):
        stepmark.load_verifier(tmp_path)

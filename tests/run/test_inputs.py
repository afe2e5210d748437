"""A run goes on only with the checkpoints and the data that it began with."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.errors import ConfigChanged
from stepmark.models import checkpoints
from stepmark.run import execute, recipe
from stepmark.run.execute import Selection

STRANGERS = Path(__file__).parents[1] / "strangers"


def made(tmp_path, problems, name, seed):
    texts = [f"{p.question}\n{p.reference}" for p in problems[:40]]
    shape = checkpoints.Shape(hidden=8, heads=2, kv_heads=1, layers=1, vocab=300, max_length=128)
    return checkpoints.create(tmp_path / name, texts, shape, seed=seed)


def load_recipe(**sections):
    raw = {
        "name": "fed",
        "task": str(STRANGERS / "task.py"),
        "generator": {"backend": str(STRANGERS / "backend.py")},
        "verifiers": {"recompute": {"kind": str(STRANGERS / "verifier.py")}},
        "sample": {
            "train": {"split": "train", "problems": 2, "n": 1},
            "test": {"split": "test", "problems": 2, "n": 2},
            "max_tokens": 4,
        },
        "limits": {"truncated": 1, "ungradable": 1},
        "evaluate": {"n": [1, 2]},
        "workers": 1,
    }
    return recipe.parse(raw | sections, "test")


def files(path):
    """The bytes of the run's files, without logs."""
    skipped = {"log.jsonl", "seconds.json", ".lock"}
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name not in skipped}


def refused(loaded, path, **arguments):
    before = files(path)
    with pytest.raises(ConfigChanged) as caught:
        execute.run(loaded, path, **arguments)
    assert files(path) == before
    return str(caught.value)


def test_a_generator_made_anew_under_its_path_is_refused_until_its_solutions_are_made_anew_too(tmp_path, problems):
    a, b = (made(tmp_path, problems, name, seed) for seed, name in enumerate("ab"))
    run, loaded = tmp_path / "run", load_recipe(generator={"path": str(a)})
    execute.run(loaded, run)
    first = (run / "solutions" / "test.jsonl").read_bytes()
    execute.run(loaded, run)
    # Moved away and back: the same content.
    shutil.copytree(a, tmp_path / "c")
    shutil.rmtree(a)
    shutil.copytree(tmp_path / "c", a)
    execute.run(loaded, run)
    shutil.rmtree(a)
    shutil.copytree(b, a)
    message = refused(loaded, run)
    for part in ('"generator.path"', '-      "fingerprint"', '+      "fingerprint"', "--from 'sample train'"):
        assert part in message
    for selection in (Selection(start="score"), Selection(start="grade train"), Selection(only="sample")):
        refused(loaded, run, selection=selection)
    execute.run(loaded, run, selection=Selection(start="sample train"))
    execute.run(loaded, run)
    assert (run / "solutions" / "test.jsonl").read_bytes() != first


def test_the_base_of_a_verifier_is_named_and_what_came_before_it_may_stay(tmp_path, problems):
    a, b = (made(tmp_path, problems, name, seed) for seed, name in enumerate("ab"))
    verifiers = {"mine": {"kind": str(STRANGERS / "verifier.py"), "base": {"path": str(a)}}}
    loaded = load_recipe(verifiers=verifiers)
    execute.run(loaded, tmp_path / "run")
    shutil.rmtree(a)
    shutil.copytree(b, a)
    message = refused(loaded, tmp_path / "run")
    assert '"verifiers.mine.base.path"' in message and "--from 'train verifiers'" in message
    execute.run(loaded, tmp_path / "run", selection=Selection(start="train verifiers"))
    execute.run(loaded, tmp_path / "run")


def test_runs_of_earlier_versions_go_on_and_know_their_inputs_from_then_on(tmp_path, problems):
    a, b = (made(tmp_path, problems, name, seed) for seed, name in enumerate("ab"))
    loaded = load_recipe(generator={"path": str(a)})
    execute.run(loaded, tmp_path / "run")
    (tmp_path / "run" / "inputs.json").unlink()
    execute.run(loaded, tmp_path / "run")
    shutil.rmtree(a)
    execute.run(loaded, tmp_path / "run")  # all is made; nobody needs the generator any more
    shutil.copytree(b, a)
    refused(loaded, tmp_path / "run")


def test_a_plan_and_a_run_share_what_they_know(tmp_path, problems):
    a, b = (made(tmp_path, problems, name, seed) for seed, name in enumerate("ab"))
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps(load_recipe(generator={"path": str(a)}).model_dump(mode="json", exclude={"seeds"})))
    command = ["plan", str(config), "--out", str(tmp_path / "run"), "--problems", "1", "--solutions", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    shutil.rmtree(a)
    shutil.copytree(b, a)
    for arguments in (command, ["run", str(config), "--out", str(tmp_path / "run")]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2 and '"generator.path"' in done.stderr


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_of_a_task_may_be_added_to_a_run_and_not_changed(tmp_path):
    data, run = tmp_path / "mine.jsonl", tmp_path / "run"
    rows = [{"id": str(i), "question": f"{i} + {i} + 1?", "answer": 2 * i + 1} for i in range(8)]
    write(data, rows)
    task = {"name": "jsonl", "options": {"path": str(data), "test_share": 0.5}}
    loaded = load_recipe(task=task)
    execute.run(loaded, run)
    kept = json.loads((run / "problems" / "test.jsonl").read_text().splitlines()[0])["key"]
    rows.append({"id": "new", "question": "1 + 1 + 1?", "answer": 3})
    write(data, rows)
    execute.run(loaded, run)
    rows[int(kept)]["answer"] = 99
    write(data, rows)
    message = refused(loaded, run)
    assert f"another question, answer or solution: '{kept}'" in message
    assert str(data) in message and "--from problems" in message
    refused(loaded, run, selection=Selection(start="sample train"))
    execute.run(loaded, run, selection=Selection(start="problems"))
    execute.run(loaded, run)
    assert '"99"' in (run / "problems" / "test.jsonl").read_text()


def test_imported_solutions_may_be_added_to_and_not_changed(tmp_path):
    data, run = tmp_path / "others.jsonl", tmp_path / "run"
    rows = [
        {
            "question": f"Add 1 and {i} and 2 (no {i}).",
            "solutions": [f"{i + 1}\nThe answer is {i + 3}."],
            "correct": [1],
        }
        for i in range(30)
    ]
    reader = tmp_path / "reader.py"
    reader.write_text(
        "import json\n"
        "from pathlib import Path\n"
        "from stepmark.types import Grade, GradedSolution, Imported, Problem, Solution, Verdict\n"
        "class Reader:\n"
        "    def read(self, path):\n"
        "        for i, line in enumerate(Path(path).read_text().splitlines()):\n"
        "            row = json.loads(line)\n"
        "            text = row['solutions'][0]\n"
        "            s = Solution(f'{i}#0', str(i), 0, text, ((0, len(text)),))\n"
        "            g = GradedSolution(s.id, s.problem_id, Grade(Verdict.CORRECT, 'said'))\n"
        "            yield Imported(Problem(str(i), row['question'], '', 'mine'), (s,), (g,))\n"
    )
    write(data, rows)
    form = {"file": str(data), "format": str(reader), "n": 1}
    sample = {"train": form | {"share": [0.0, 0.5]}, "test": form | {"share": [0.5, 1.0]}}
    loaded = load_recipe(sample=sample, generator=None, task=None, evaluate={"n": [1]})
    execute.run(loaded, run)
    rows.append(rows[0] | {"question": "Add 4 and 5 and 6."})
    write(data, rows)
    execute.run(loaded, run)
    rows[3]["solutions"] = ["Another."]
    write(data, rows)
    assert "another question, answer or solution: '3#0'" in refused(loaded, run)

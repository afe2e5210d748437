"""The command line, as text and as JSON: help, results, errors, exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
from typer.testing import CliRunner

from seeds import SEED
from stepmark.cli import app, parameters
from stepmark.data.store import Records
from stepmark.errors import ConfigChanged
from stepmark.plugins import registry
from stepmark.types import GradedSolution, LabelledSolution, SamplingParams, Solution, Verification

STRANGERS = Path(__file__).parents[1] / "strangers"
DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
COMMANDS = [
    *("init", "sample", "grade", "label", "export", "convert", "train", "score", "filter", "reinforce"),
    *("demo", "plan", "run", "evaluate", "report", "rank", "doctor"),
]
TASK = ["--task", str(STRANGERS / "task.py")]
BACKEND = ["--backend", str(STRANGERS / "backend.py")]


def stepmark(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def ok(*arguments, code=0):
    done = stepmark(*arguments)
    assert done.exit_code == code, done.output
    return done


def test_help_names_every_command():
    output = ok("--help").stdout
    assert all(f"\n  {command} " in output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    output = ok(command, "--help").stdout
    assert "Example" in output
    assert f"\n    stepmark {command}" in output
    assert "--json" in output


def test_the_stages_one_by_one(tmp_path):
    solutions, grades, labels, scores = (tmp_path / f"{n}.jsonl" for n in ("s", "g", "l", "v"))
    done = ok("sample", *TASK, *BACKEND, "--n", 3, "--problems", 5, "--out", solutions, "--json")
    assert json.loads(done.stdout) | {"tokens": 0} == {
        "problems": 5,
        "solutions": 15,
        "truncated": 0,
        "tokens": 0,
        "quarantined": 0,
        "failed": 0,
    }
    ok("sample", *TASK, *BACKEND, "--n", 4, "--problems", 5, "--out", solutions)
    assert len(Records(solutions, Solution)) == 20
    graded = json.loads(ok("grade", *TASK, "--solutions", solutions, "--out", grades, "--json").stdout)
    assert graded["correct"] + graded["incorrect"] == 20 == len(Records(grades, GradedSolution))
    inputs = ["--split", "test", "--solutions", solutions]
    ok("label", *TASK, *BACKEND, *inputs, "--labeler-option", "rollouts=2", "--no-distinct", "--out", labels)
    stored_labels = list(Records(labels, LabelledSolution))
    assert len(stored_labels) == 20
    assert {x.gradable for s in stored_labels for x in s.labels[:-1]} == {2}
    ok("score", "--verifier", STRANGERS / "verifier.py", *TASK, *inputs, "--out", scores)
    assert len(Records(scores, Verification)) == 20


ROWS = [
    {"question": "1 + 2 + 3?", "solutions": ["1 + 2 = 3\n3 + 3 = 6\nThe answer is 6.", "1 + 2 = 4"]},
    {"id": "b", "question": "2 + 2?", "completions": ["2 + 2 = 4"], "more": 1},
    {"question": "3 + 3?", "solution": "3 + 3 = 6"},
    {"question": "4 + 4?", "solutions": []},
]
SCORES = {"1": [(0.9, 0.9, 0.9), (0.1,)], "b": [(0.9,)], "3": [(0.9,)], "4": []}


def scored(lines):
    """Row -> the step scores of its solutions, from lines of JSON."""
    rows = [json.loads(line) for line in lines.splitlines()]
    for v in (v for row in rows for v in row["verifications"]):
        assert (v["score"], v["outcome"]) == (min(v["scores"]), "scored")
    return {row["key"]: [tuple(v["scores"]) for v in row["verifications"]] for row in rows}


def test_rows_are_scored_without_a_task(tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["score", "--verifier", STRANGERS / "verifier.py", rows]
    assert scored(ok(*command).stdout) == SCORES
    assert json.loads(ok(*command, "--out", out, "--json").stdout) == {
        "solutions": 4,
        "scored": 4,
        **dict.fromkeys(("unparsed", "truncated", "failed_outcome", "quarantined", "failed"), 0),
    }
    whole = out.read_bytes()
    assert scored(whole.decode()) == SCORES
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        out.write_bytes(whole[:cut])
        ok(*command, "--out", out)
        assert out.read_bytes() == whole
    ok(*command, "--out", tmp_path / "two.jsonl", "--workers", 2)
    assert scored((tmp_path / "two.jsonl").read_text()) == SCORES
    [first, *_] = ok(*command, "--steps", "sentence").stdout.splitlines()
    assert scored(first) == {"1": SCORES["1"]}
    assert '+  "steps": "sentence"' in ok(*command, "--out", out, "--steps", "sentence", code=2).stderr
    other = tmp_path / "other.py"
    other.write_text((STRANGERS / "verifier.py").read_text().replace("class Recompute", "class Other"))
    assert '+    "name": "other.py"' in ok("score", "--verifier", other, rows, "--out", out, code=2).stderr
    rows.write_text(json.dumps(ROWS[1] | {"id": "1"}))
    assert "row 1 of" in stepmark(*command, "--out", out).stderr
    assert out.read_bytes() == whole


def test_rows_that_cannot_be_scored_are_named(tmp_path):
    rows = tmp_path / "rows.jsonl"
    bad = [
        '{"question": "1 + 1?"}',
        '{"question": "1 + 1?", "solutions": ["2"], "completions": ["2"]}',
        '{"question": "1 + 1?", "solutions": ["2", 3, null]}',
        '{"solution": "2"}',
        "[]",
    ]
    rows.write_text("\n".join([*bad, '{"question": "1 + 1?", "solution": "1 + 1 = 2"}']))
    done = ok("score", "--verifier", STRANGERS / "verifier.py", rows, code=3)
    assert scored(done.stdout) == {"6": [(0.9,)]}
    two = "got 'solutions' and 'completions'"
    for line, reason in enumerate(("got none of them", two, "item 1: wrong type", "'question': missing", "a list"), 1):
        assert any(f"line {line}: " in x and reason in x for x in done.stderr.splitlines()), (line, done.stderr)
    rows.write_text(json.dumps(ROWS[2] | {"solution": "a + b = c"}))
    failing = ["score", "--verifier", STRANGERS / "verifier.py", rows]
    assert "Nothing is kept in a file" in stepmark(*failing).stderr
    rows.write_text(bad[0])
    assert "no usable row. The first of 1 bad rows" in stepmark("score", "--verifier", "linear", rows).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["sample", "--task", "arithmatic", "--out", "x"], 2, "Did you mean 'arithmetic'"),
        (["sample", "--out", "x"], 2, "needs --model"),
        (["sample", *TASK, *BACKEND, "--backend-option", "eror=1", "--out", "x"], 2, "Did you mean 'error'"),
        (["sample", *TASK, *BACKEND, "--out", "x", "--prompt", "?"], 2, "exactly one"),
        (["grade", *TASK, "--solutions", "nowhere", "--out", "x"], 1, "no file nowhere"),
        (["score", "--verifier", "pmr", *TASK, "--solutions", "x", "--out", "y"], 1, "no file x"),
        (["score", "--verifier", "linear", "--out", "y"], 2, "give either ROWS"),
        (["score", "--verifier", "linear", "x", "--solutions", "x", "--out", "y"], 2, "give either ROWS"),
        (["score", "--verifier", "linear", "--solutions", "x"], 2, "--out is missing"),
        (["score", "--verifier", "linear", "x"], 1, "no file or directory 'x'"),
        (["train", "prm", "--base", "x", "--out", "y", *TASK], 2, "needs --labels"),
        (["train", "prm", "--base", "x", "--out", "y", *TASK, "--set", "lrr=1"], 2, "Did you mean 'lr'"),
        (["reinforce", "--policy", "x", "--out", "y"], 2, "--reward is missing"),
        (["reinforce", "--policy", "x", "--out", "y", "--method", "rft", "--reward", "gold"], 2, "rft keeps"),
        (["reinforce", "--policy", "x", "--out", "y", "--reward", "prm/=a"], 2, "'a' is not a number"),
        (["reinforce", "--policy", "x", "--out", "y", "--reward", "gold=0"], 2, "must be above 0"),
        (["reinforce", "--policy", "x", "--out", "y", "--reward", "gold", "--credit", "min"], 2, "not steps"),
        (["reinforce", "--policy", "x", "--out", "y", "--reward", "prm", "--credit", "all"], 2, "it can be sum"),
        (["reinforce", "--policy", "x", "--out", "y", "--reward", "gold", "--set", "updats=1"], 2, "mean 'updates'"),
        (["run", "nowhere.yaml"], 2, "no recipe"),
        (["run", DEMO, "sed=1", "evaluate.m=1"], 2, "Did you mean 'seed'"),
        (["rank", "nowhere"], 1, "config.json"),
        (["report", "nowhere"], 1, "config.json"),
        (["evaluate", "nowhere"], 1, "config.json"),
        (["init", "--out", "x", "--shape", "heads=3", "--shape", "hidden=64"], 2, "multiple of heads"),
    ],
)
def test_errors_are_reported_without_a_traceback(tmp_path, monkeypatch, arguments, code, output):
    monkeypatch.chdir(tmp_path)
    done = stepmark(*arguments)
    assert (done.exit_code, output in done.stderr) == (code, True), done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_options_are_read_by_the_type_of_the_plug_ins_option():
    changes = ["bad=-", "tag=no", "good=1e5", "language_weight=1e-1", "trust_remote_code=no"]
    prm = parameters.options(changes, registry.find("verifier", "prm"))
    verifier = registry.load("verifier", "prm", path="null", **prm)
    assert (verifier.bad, verifier.tag, verifier.good) == ("-", "no", "1e5")
    assert (verifier.language_weight, verifier.trust_remote_code) == (0.1, False)
    task = registry.find("task", "jsonl")
    assert parameters.options(["path=2024"], task) == {"path": "2024"}
    assert parameters.backend("vllm", ["path=1e5"], "other").path == "1e5"
    labeler = registry.load("labeler", "judge", **parameters.options(["stop=null"], registry.find("labeler", "judge")))
    assert labeler.stop == ["null"]


def shrunk(*changes, **backend):
    return [
        f"task={{name: {STRANGERS / 'task.py'}, options: {{size: 6}}}}",
        f"generator={{backend: {{name: {STRANGERS / 'backend.py'}, options: {json.dumps(backend)}}}}}",
        f"verifiers={{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}",
        "sample.train={split: train, problems: 2, n: 2}",
        "sample.test={split: test, problems: 6, n: 4}",
        "evaluate.n=[1, 4]",
        "workers=1",
        *changes,
    ]


def rows_file(path, question="question", answer="answer"):
    rows = [{question: f"Add {i} and 2 and 3.", answer: i + 5} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_six_questions_says_how_it_was_divided_and_can_be_taken_whole(tmp_path):
    path = rows_file(tmp_path / "mine.jsonl")
    task = ["--task", "jsonl", "--task-option", f"path={path}", *BACKEND, "--n", 1, "--json"]
    whole = ok("sample", *task, "--split", "all", "--out", tmp_path / "all.jsonl")
    assert json.loads(whole.stdout)["problems"] == 6
    train = ok("sample", *task, "--split", "train", "--out", tmp_path / "train.jsonl")
    count = json.loads(train.stdout)["problems"]
    assert 0 < count < 6
    assert f"stepmark: {count} of 6 rows are the train split of {path}." in train.stderr
    task += ["--task-option", "test_share=0.0001"]
    empty = ok("sample", *task, "--split", "test", "--out", tmp_path / "test.jsonl", code=1)
    assert "train 6, test 0" in empty.stderr and "raise test_share" in empty.stderr


def test_a_run_of_a_file_with_other_field_names_says_which_option_names_them(tmp_path):
    path = rows_file(tmp_path / "mine.jsonl", "prompt", "final_answer")
    changes = [x for x in shrunk() if not x.startswith("task=")]
    changes += [f"task={{name: jsonl, options: {{path: {path}}}}}"]
    done = ok("run", DEMO, *changes, "--out", tmp_path / "run", code=1)
    for part in (
        "the split 'train' of the task jsonl has no usable problem; 6 rows were set aside, 6 for this reason",
        "The fields found are prompt, final_answer; needed are question and answer.",
        "question: prompt, answer: final_answer",
        "quarantine.jsonl",
    ):
        assert part in done.stderr
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 6


def test_notes_of_a_run_are_printed_and_logged(tmp_path):
    recipe = tmp_path / "mine.yaml"
    path = rows_file(tmp_path / "mine.jsonl")
    recipe.write_text(
        f"task: {{name: jsonl, options: {{path: {path}, test_share: 0.5}}}}\n"
        f"generator: {{backend: {STRANGERS / 'backend.py'}}}\n"
        f"verifiers: {{recompute: {{kind: {STRANGERS / 'verifier.py'}}}}}\n"
        "sample: {train: {n: 1}, test: {n: 2}}\nworkers: 1\n"
    )
    done = ok("run", recipe, "--out", tmp_path / "run")
    cut = "evaluate.n is [1, 2] and not the default [1, 4, 16, 64], since sample.test.n is 2."
    assert f"stepmark: note: {cut}" in done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["evaluate"]["n"] == [1, 2]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    notes = [line["note"] for line in log if line["event"] == "note"]
    assert len(notes) == 3 and notes[0].startswith(cut)
    for part, note in zip(("train", "test"), notes[1:], strict=True):
        assert f"of 6 rows are the {part} split" in note and note in done.stderr
    assert cut in ok("run", recipe, "--out", tmp_path / "run", "--dry-run", "--json").stderr


def test_two_problems_with_one_id_are_named_by_the_stages_and_by_a_run(tmp_path):
    task = tmp_path / "task.py"
    task.write_text((STRANGERS / "task.py").read_text().replace('f"{split}-{i}", f"Add', 'f"{split}-{i % 2}", f"Add'))
    message = f"the split 'test' of the task {task} has two problems with the id 'test-0'"
    done = ok("sample", "--task", task, *BACKEND, "--out", tmp_path / "s.jsonl", code=1)
    assert message in done.stderr
    changes = [x for x in shrunk() if not x.startswith("task=")]
    done = ok("run", DEMO, *changes, f"task={task}", "--out", tmp_path / "run", code=1)
    assert message in done.stderr


def test_a_run_and_the_commands_on_its_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ok("run", DEMO, *shrunk())
    assert "recompute" in done.stdout
    assert "report.html" in done.stdout
    run = tmp_path / "runs" / "demo"
    metrics = json.loads((run / "metrics.json").read_text())
    again = json.loads(ok("run", DEMO, *shrunk(), "--json").stdout)
    assert again["best_of_n"] == metrics["best_of_n"]
    lines = [json.loads(x) for x in ok("rank", run, "--method", "recompute", "--n", 2, "--json").stdout.splitlines()]
    assert [x["n"] for x in lines] == [2] * 6
    assert {x["method"] for x in lines} == {"recompute"}
    assert len(ok("rank", run, "--method", "self_consistency").stdout.splitlines()) == 6
    assert "Did you mean 'recompute'" in ok("rank", run, "--method", "recomputed", code=2).stderr
    (run / "metrics.json").unlink()
    (run / "report.html").unlink()
    assert json.loads(ok("evaluate", run, "--json").stdout)["best_of_n"] == metrics["best_of_n"]
    ok("report", run)
    assert "recompute" in (run / "report.html").read_text()
    advice = json.loads(ok("plan", "--optimal", run, "--json").stdout)["in_distribution"]["advice"]
    assert advice[0]["plain"]["method"] == "pass@1"
    assert advice[-1]["verified"]["method"].endswith("recompute")
    advice_table = ok("plan", "--optimal", run, "--tokens", 1000).stdout
    assert "do this" in advice_table and ("leave it out" in advice_table or "leaving it out" in advice_table)
    refused = ok("run", DEMO, *shrunk("seed=9"), code=2)
    assert '+  "seed": 9' in refused.stderr


def test_rows_set_aside_give_exit_status_3_and_are_named(tmp_path):
    bad = ["--task-option", "bad_rows=2"]
    done = ok("sample", *TASK, *bad, *BACKEND, "--problems", 1, "--out", tmp_path / "s.jsonl", code=3)
    assert "test.jsonl, line 2: field 'answer': missing" in done.stderr
    done = ok("run", DEMO, *shrunk("task.options.bad_rows=2"), "--out", tmp_path / "run", "--json", code=3)
    assert "4 rows were set aside" in done.stderr
    assert json.loads(done.stdout)["problems"] == 6


def test_items_that_fail_give_exit_status_3_and_are_named(tmp_path):
    done = ok("run", DEMO, *shrunk(fail_on="test-1002"), "--out", tmp_path / "run", code=3)
    assert "failed: test-1002: ValueError: I don't like test-1002" in done.stderr


def test_a_spent_budget_gives_exit_status_4_and_a_larger_one_continues(tmp_path):
    solutions, labels, rows = (tmp_path / f"{n}.jsonl" for n in ("s", "l", "r"))
    sampled = ["sample", *TASK, *BACKEND, "--n", 4, "--problems", 5, "--out", solutions]
    output = ok(*sampled, "--budget", "rollouts=9", code=4).stderr
    assert "rollouts 9 of 9" in output
    ok(*sampled, "--budget", "rollouts=12", code=4)
    ok(*sampled)  # it also continues without a budget
    assert json.loads((tmp_path / "s.rollouts" / "solutions.spent.json").read_text())["rollouts"] == 20
    whole = tmp_path / "whole.jsonl"
    ok(*sampled[:-1], whole)
    assert {s.key: s for s in Records(solutions, Solution)} == {s.key: s for s in Records(whole, Solution)}
    # Here the same split is sampled and labelled; the test is about the cost of labelling.
    split = ["--split", "test"]
    labelled = ["label", *TASK, *split, *BACKEND, "--solutions", solutions, "--labeler-option", "rollouts=3"]
    ok(*labelled, "--out", labels, "--budget", "tokens=200", code=4)
    ok(*labelled, "--out", labels)
    spent = json.loads((tmp_path / "l.rollouts" / "labels.spent.json").read_text())
    labels.rename(tmp_path / "mine.jsonl")  # rollouts of another configuration are not reused
    assert "holds results of another configuration" in ok(*labelled, "--max-tokens", 9, "--out", labels, code=2).stderr
    (tmp_path / "mine.jsonl").rename(labels)
    ok(*labelled, "--out", tmp_path / "once.jsonl")
    assert spent == json.loads((tmp_path / "once.rollouts" / "labels.spent.json").read_text())
    ok("export", *TASK, *split, "--labels", labels, "--soft", "--out", rows)
    assert len(rows.read_text().splitlines()) == len(Records(labels, LabelledSolution))
    assert "no model here has a price" in ok(*sampled, "--budget", "money=3", code=2).stderr
    assert "no model here has a price" in ok(*labelled, "--out", labels, "--budget", "money=3", code=2).stderr
    assert "budget: there is no limit 'euros'" in ok(*sampled, "--budget", "euros=3", code=2).stderr


def test_rollouts_of_versions_without_choices_are_reused(tmp_path):
    generator = registry.load("backend", "local", path="model")
    with parameters.kept(tmp_path / "s.jsonl", "{question}", SamplingParams(), generator=generator):
        pass
    config = json.loads((tmp_path / "s.rollouts" / "config.json").read_text())
    assert "choices" not in config["params"]
    asking = SamplingParams(choices=(" Yes", " No"))
    with pytest.raises(ConfigChanged, match="Yes"):
        parameters.kept(tmp_path / "s.jsonl", "{question}", asking, generator=generator)


def test_a_share_above_its_limit_stops_a_stage_unless_the_limit_is_raised(tmp_path):
    solutions = tmp_path / "s.jsonl"
    sampled = ["sample", *TASK, *BACKEND, "--backend-option", "truncated=0.8", "--n", 30, "--out", solutions]
    output = ok(*sampled, code=1).stderr
    assert "were truncated, more than the 50% allowed" in output
    ok(*sampled, "--limit", "truncated=1")
    graded = ["grade", *TASK, "--solutions", solutions, "--out", tmp_path / "g.jsonl"]
    assert "solutions" in ok(*graded, code=1).stderr
    assert 200 <= len(Records(tmp_path / "g.jsonl", GradedSolution)) < 360  # the grades so far are kept
    ok(*graded, "--limit", "truncated=1")
    scored = ["score", "--verifier", STRANGERS / "verifier.py", *TASK, "--solutions", solutions]
    ok(*scored, "--limit", "truncated=1", "--out", tmp_path / "v.jsonl")
    assert "there is none of the name 'late'" in ok(*sampled, "--limit", "late=1", code=2).stderr


def test_a_plan_as_text_and_json(tmp_path):
    recipe = [DEMO, f"task={STRANGERS / 'task.py'}", f"generator={{backend: {STRANGERS / 'backend.py'}}}"]
    small = ["sample.train={split: train, n: 2}", "sample.test={split: test, n: 4}", "evaluate.n=[1]", "verifiers={}"]
    where = ["--out", tmp_path / "run", "--problems", 3]
    assert "label: monte_carlo rollouts=16 (this recipe)" in ok("plan", *recipe, *small, *where).stdout
    estimate = json.loads(ok("plan", *recipe, *small, *where, "--json").stdout)
    assert estimate["sampling"][0]["solutions"] == 24


def test_variants_of_a_recipe_are_planned_beside_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = ["plan", DEMO, *shrunk(), "--problems", 1, "--solutions", 1]
    assert "note" not in ok(*plan).stderr
    note = ok(*plan, "sample.test.n=8").stderr
    [place] = [p for p in (tmp_path / "runs").iterdir() if p.name != "demo"]
    assert f"runs/demo holds a run of other settings. This plan is in runs/{place.name}, with the models" in note
    assert "note" not in ok(*plan).stderr
    ok(*plan, "sample.test.n=8")
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert '"n": 8' in ok(*plan, "sample.test.n=8", "--out", "runs/demo", code=2).stderr


def test_doctor_as_text_and_json():
    results = json.loads(ok("doctor", "--json").stdout)
    assert results["torch"]["ok"]
    assert results["pyarrow"]["advice"] == "pip install 'stepmark[parquet]'"
    assert results["gguf"]["advice"] == "pip install 'stepmark[gguf]'"
    assert f"python        {results['python']['found']}" in ok("doctor").stdout


def test_evaluate_shows_the_verifiers_in_the_order_of_the_recipe(tmp_path):
    kind = str(STRANGERS / "verifier.py")
    verifiers = {name: {"kind": kind} for name in ("zeta", "alpha", "mid")}
    changes = [*shrunk(), f"verifiers={json.dumps(verifiers)}", "--out", tmp_path / "run"]
    first = ok("run", DEMO, *changes).stdout
    assert first.index("zeta") < first.index("alpha") < first.index("mid")
    assert ok("evaluate", tmp_path / "run").stdout.strip() == first.partition("Report:")[0].strip()
    ok("run", DEMO, *changes)  # the order is no setting of its own
    verifiers = dict(reversed(verifiers.items()))
    ok("run", DEMO, *shrunk(), f"verifiers={json.dumps(verifiers)}", "--out", tmp_path / "run")


def test_a_closed_pipe_is_not_an_error(tmp_path):
    ok("run", DEMO, *shrunk(), "--out", tmp_path / "run")
    pipe = f"{sys.executable} -m stepmark rank {tmp_path / 'run'} --method recompute --json | head -c 1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=os.environ)
    assert "Traceback" not in done.stderr


@pytest.mark.robust
def test_a_model_is_created_trained_and_verified_end_to_end(tmp_path):
    """The demo's recipe, shrunk to seconds: a real generator, real labels, real verifiers."""
    changes = [f"seed={SEED + 21}", *small_run.CHANGES, "--out", tmp_path / "run"]
    metrics = json.loads(ok("run", DEMO, *changes, "--json").stdout)
    assert {"pass@1", "self_consistency", "prm", "self_consistency+prm", "oracle"} <= set(metrics["best_of_n"])
    run = tmp_path / "run"
    assert (run / "generator" / "model.safetensors").is_file()
    assert (run / "verifiers" / "prm" / "verifier.json").is_file()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    ok("run", DEMO, *changes)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")} == before

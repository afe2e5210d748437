"""The stages of a run: which are done, which would run, running some again, and a user's own stage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.ledger import Budget, spent_in
from stepmark.data.store import RunDir
from stepmark.errors import BudgetReached, ConfigChanged, ConfigError, DataError, StageError
from stepmark.run import dry_run, execute, recipe
from stepmark.run.execute import Selection, run
from stepmark.run.pipeline import stages

STRANGERS = Path(__file__).parents[1] / "strangers"
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
FAR = "sample.out_of_distribution={split: far, problems: 4, n: 4}"


def load_recipe(*changes):
    raw = {
        "name": "staged",
        "seed": 1,
        "task": str(STRANGERS / "task.py"),
        "generator": {"backend": str(STRANGERS / "backend.py")},
        "verifiers": {
            "recompute": {"kind": str(STRANGERS / "verifier.py")},
            "trusting": {"kind": str(STRANGERS / "verifier.py"), "options": {"doubt": 0.8}},
        },
        "sample": {
            "train": {"split": "train", "problems": 3, "n": 2},
            "test": {"split": "test", "problems": 6, "n": 4},
        },
        "label": {"name": "monte_carlo", "options": {"rollouts": 2}},
        "evaluate": {"n": [1, 4]},
        "workers": 1,
    }
    return recipe.parse(recipe.changed(raw, changes), "test")


def files(path):
    """Every file of the run but logs and the archive, with its bytes."""
    skipped = {"log.jsonl", "seconds.json", ".lock"}
    names = {p.relative_to(path): p for p in path.rglob("*") if p.is_file() and p.name not in skipped}
    return {str(name): p.read_bytes() for name, p in names.items() if name.parts[0] != "archive"}


def archived(path):
    """Of each archive by date, its files with their bytes."""
    dates = sorted((path / "archive").iterdir()) if (path / "archive").exists() else []
    return [{str(p.relative_to(date)): p.read_bytes() for p in date.rglob("*") if p.is_file()} for date in dates]


def names(planned, **wanted):
    return [p.stage for p in planned if all(getattr(p, key) == value for key, value in wanted.items())]


def test_the_order_of_the_stages():
    assert [stage.name for stage in stages(load_recipe(FAR))] == [
        "problems",
        "sample train",
        "grade train",
        "sample test",
        "grade test",
        "sample out_of_distribution",
        "grade out_of_distribution",
        "label",
        "train verifiers",
        "score recompute",
        "score trusting",
        "score recompute out_of_distribution",
        "score trusting out_of_distribution",
        "evaluate",
        "report",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_dry_run_of_every_recipe_needs_no_torch_and_writes_nothing(path, tmp_path):
    """Names are unique, no two stages write the same file, and what one reads an earlier one writes."""
    code = "import sys; from stepmark.cli import main\n"
    code += (
        f"sys.argv = ['stepmark', 'run', {str(path)!r}, '--dry-run', '--json', '--out', {str(tmp_path / 'run')!r}]\n"
    )
    code += "try: main()\nexcept SystemExit as e: assert e.code in (None, 0, 2), e.code\n"
    code += "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    planned = json.loads(done.stdout)["stages"]
    # The data and models that some recipes name are not here; nothing else is wrong.
    lacking = ("no file or directory", "no checkpoint", "no package")
    assert all(any(x in line for x in lacking) for line in done.stderr.splitlines())
    assert len({p["stage"] for p in planned}) == len(planned) > 5
    assert all(p["runs"] and p["made"] == 0 and not p["archives"] for p in planned)
    written = set()
    for p in planned:
        assert set(p["reads"]) <= written, p
        assert not written & set(p["writes"]), p
        written |= set(p["writes"])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_which_stages_are_done_and_changes_nothing(tmp_path):
    run(load_recipe(), tmp_path / "run", selection=Selection())
    before = files(tmp_path / "run")
    planned = dry_run.plan(load_recipe(), tmp_path / "run")
    assert names(planned, runs=True) == ["evaluate", "report"]
    solutions = (tmp_path / "run/solutions/test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/solutions/test.jsonl").write_text("".join(solutions[:5]))
    planned = dry_run.plan(load_recipe(), tmp_path / "run")
    assert names(planned, runs=True) == ["sample test", "evaluate", "report"]
    sample = next(p for p in planned if p.stage == "sample test")
    assert (sample.made, sample.total) == (5, 24)
    (tmp_path / "run/solutions/test.jsonl").write_text("".join(solutions))
    assert files(tmp_path / "run") == before
    with pytest.raises(ConfigChanged, match="temperature"):
        dry_run.plan(load_recipe("sample.temperature=0.5"), tmp_path / "run")


def test_in_a_finished_run_only_evaluate_and_report_run_again(tmp_path):
    first = run(load_recipe(), tmp_path / "run")
    assert first.stages[0] == "problems" and first.stages[-1] == "report"
    again = run(load_recipe(), tmp_path / "run")
    assert again.stages == ("evaluate", "report")
    assert {**again.metrics, "seconds": 0} == {**first.metrics, "seconds": 0}


def test_from_score_runs_score_and_the_later_stages_but_no_earlier_ones(tmp_path):
    first = run(load_recipe(), tmp_path / "run")
    before = files(tmp_path / "run")
    untouched = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.jsonl") if p.parent.name != "scores"}
    planned = dry_run.plan(load_recipe(), tmp_path / "run", Selection(start="score"))
    assert names(planned, runs=True) == ["score recompute", "score trusting", "evaluate", "report"]
    moved = {"scores/recompute.jsonl", "scores/trusting.jsonl", "metrics.json", "by_problem.json", "report.html"}
    assert {name for p in planned for name in p.archives} == moved
    again = run(load_recipe(), tmp_path / "run", selection=Selection(start="score"))
    assert again.stages == ("score recompute", "score trusting", "evaluate", "report")
    [old] = archived(tmp_path / "run")
    assert old == {name: before[name] for name in moved}
    now = files(tmp_path / "run")
    assert set(now) == set(before)
    assert all(now[name] == before[name] for name in before if name not in ("metrics.json", "report.html"))
    assert again.metrics["best_of_n"] == first.metrics["best_of_n"]
    changed = {p for p, when in untouched.items() if p.stat().st_mtime_ns != when}
    assert {p.name for p in changed} <= {"log.jsonl"}


def test_only_runs_one_stage_and_the_plain_command_continues_after_a_kill(tmp_path):
    run(load_recipe(), tmp_path / "run")
    before = files(tmp_path / "run")
    result = run(load_recipe(), tmp_path / "run", selection=Selection(only="score trusting"))
    assert result.stages == ("score trusting",) and result.metrics == {}
    assert archived(tmp_path / "run") == [{"scores/trusting.jsonl": before["scores/trusting.jsonl"]}]
    assert files(tmp_path / "run") == before
    # A kill right after the old scores were archived: the same command without --only makes them again.
    execute.archive(tmp_path / "run", ["scores/trusting.jsonl"])
    assert len(archived(tmp_path / "run")) == 2
    again = run(load_recipe(), tmp_path / "run")
    assert again.stages == ("score trusting", "evaluate", "report")
    assert files(tmp_path / "run")["scores/trusting.jsonl"] == before["scores/trusting.jsonl"]


def test_labelling_again_samples_new_rollouts(tmp_path):
    run(load_recipe(), tmp_path / "run")
    before = files(tmp_path / "run")
    run(load_recipe(), tmp_path / "run", selection=Selection(start="label"))
    [old] = archived(tmp_path / "run")
    assert old["rollouts/labels.jsonl"] == before["rollouts/labels.jsonl"]
    assert old["labels/train.jsonl"] == before["labels/train.jsonl"] == files(tmp_path / "run")["labels/train.jsonl"]


def test_what_was_paid_before_still_counts_for_a_budget(tmp_path):
    run(load_recipe(), tmp_path / "run")
    spent = spent_in(tmp_path / "run/rollouts")
    assert spent.rollouts > 0
    run(load_recipe(), tmp_path / "run", selection=Selection(only="label"))
    assert spent_in(tmp_path / "run/rollouts") == spent + spent
    with pytest.raises(BudgetReached):
        run(
            load_recipe(),
            tmp_path / "run",
            budget=Budget(rollouts=2 * spent.rollouts),
            selection=Selection(only="label"),
        )
    run(load_recipe(), tmp_path / "run")
    assert spent_in(tmp_path / "run/rollouts").rollouts == 3 * spent.rollouts


def test_what_a_stage_wrote_before_is_never_mixed_with_what_it_writes_now(tmp_path):
    run(load_recipe(), tmp_path / "run")
    for _ in range(3):  # within the same second too
        run(load_recipe(), tmp_path / "run", selection=Selection(only="sample test"))
    old = archived(tmp_path / "run")
    assert len(old) == 3 and all(set(x) == {"solutions/test.jsonl"} for x in old)
    assert len({x["solutions/test.jsonl"] for x in old}) == 1
    with RunDir(tmp_path / "run").open(load_recipe().resolved()) as directory:
        from stepmark.run.context import RunContext

        assert len(RunContext(load_recipe(), directory).solutions("test")) == 24


def test_a_wrong_selection_is_refused_before_files_are_moved(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no stage 'scores' in this run\. Did you mean 'score'\? There are: problems, "
    ):
        run(load_recipe(), tmp_path / "run", selection=Selection(only="scores"))
    with pytest.raises(ConfigError, match="either --only or --from"):
        Selection("score", "label")
    with pytest.raises(DataError, match=r"score recompute reads problems/test.jsonl.*not there yet"):
        run(load_recipe(), tmp_path / "run", selection=Selection(only="score"))
    run(load_recipe(), tmp_path / "run", selection=Selection(only="problems"))
    with pytest.raises(DataError, match=r"grade train reads solutions/train.jsonl"):
        run(load_recipe(), tmp_path / "run", selection=Selection(start="grade"))
    assert archived(tmp_path / "run") == []


def test_from_works_with_several_seeds(tmp_path):
    from stepmark.run import seeds

    raw = load_recipe().model_dump(mode="json", exclude_unset=True, exclude={"seed"})
    several = recipe.parse({**raw, "seeds": [1, 2]}, "test")
    first = seeds.run(several, tmp_path / "run")
    again = seeds.run(several, tmp_path / "run", selection=Selection(start="score trusting"))
    assert again.metrics["best_of_n"] == first.metrics["best_of_n"]
    assert [set(x) for x in archived(tmp_path / "run")] == [{"metrics.json", "report.html"}]
    for seed in (1, 2):
        [old] = archived(tmp_path / f"run/seed-{seed}")
        assert set(old) == {"scores/trusting.jsonl", "metrics.json", "by_problem.json", "report.html"}


def test_a_users_stage_runs_once_after_the_stage_that_it_names(tmp_path):
    loaded = load_recipe(f"stages=[{{name: {STRANGERS / 'stage.py'}, options: {{count: 2}}}}]")
    order = [stage.name for stage in stages(loaded)]
    assert order[order.index("sample test") + 1] == "stage"
    result = run(loaded, tmp_path / "run")
    assert "stage" in result.stages
    longest = json.loads((tmp_path / "run/longest.json").read_text())
    assert len(longest) == 2
    assert run(loaded, tmp_path / "run").stages == ("evaluate", "report")
    again = run(loaded, tmp_path / "run", selection=Selection(only="stage"))
    assert again.stages == ("stage",)
    assert [json.loads(x["longest.json"]) for x in archived(tmp_path / "run")] == [longest]
    assert set(archived(tmp_path / "run")[0]) == {"longest.json", "stages/stage.json"}
    assert loaded.resolved() == load_recipe().resolved()


def test_a_file_is_used_for_two_stages_with_two_names(tmp_path):
    body = "from dataclasses import dataclass\n@dataclass\nclass Count:\n    part: str = 'test'\n    after = 'sample'\n"
    body += "    @property\n    def outputs(self): return (f'{self.part}.txt',)\n"
    body += "    def run(self, context):\n"
    body += "        (context.path / f'{self.part}.txt').write_text(str(len(context.solutions(self.part))))\n"
    path = tmp_path / "count.py"
    path.write_text(body)
    second = "{{name: {path}, called: {called}, options: {{part: train}}}}"
    given = load_recipe(f"stages=[{path}, {second.format(path=path, called='of_train')}]")
    result = run(given, tmp_path / "run")
    assert {"count", "of_train"} <= set(result.stages)
    assert [(tmp_path / f"run/{part}.txt").read_text() for part in ("test", "train")] == ["24", "6"]
    assert run(given, tmp_path / "run", selection=Selection(only="of_train")).stages == ("of_train",)
    for called in ("count", "label"):
        with pytest.raises(ConfigError, match=rf"another stage has the name '{called}'.*called: {called}_2"):
            stages(load_recipe(f"stages=[{path}, {second.format(path=path, called=called)}]"))
    with pytest.raises(ConfigError, match="called"):
        load_recipe(f"stages=[{second.format(path=path, called='a/b')}]")


def own_stage(tmp_path, name, body):
    path = tmp_path / f"{name}.py"
    path.write_text(f"class Own:\n{body}\n")
    return f"stages=[{path}]"


def test_a_users_stage_joins_a_finished_run(tmp_path):
    run(load_recipe(), tmp_path / "run")
    given = load_recipe(f"stages=[{STRANGERS / 'stage.py'}]")
    assert run(given, tmp_path / "run").stages == ("stage", "evaluate", "report")


def test_a_users_stage_that_was_killed_or_failed_is_run_again(tmp_path):
    write = "(context.path / 'o.txt').write_text('half')"
    body = f"    outputs = ('o.txt',)\n    def run(self, context):\n        {write}\n        1 / 0"
    given = load_recipe(own_stage(tmp_path, "half", body))
    with pytest.raises(
        StageError, match=r"stage half failed: ZeroDivisionError: division by zero \(.*half.py, line 5\)"
    ):
        run(given, tmp_path / "run")
    assert (tmp_path / "run/o.txt").exists()
    assert names(dry_run.plan(given, tmp_path / "run"), stage="half", runs=True) == ["half"]
    given = load_recipe(own_stage(tmp_path, "lazy", "    outputs = ('p.txt',)\n    def run(self, context): ..."))
    with pytest.raises(StageError, match=r"the stage lazy ended without writing p\.txt"):
        run(given, tmp_path / "run")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    outputs = ('metrics.json',)", "stages: own writes metrics.json, and so does evaluate|evaluate writes"),
        ("    outputs = ('../x.csv',)", "it takes paths inside the run directory"),
        ("    outputs = ('/x.csv',)", "it takes paths inside the run directory"),
        ("    outputs = 'x.csv'", "it is a tuple of paths"),
        (
            "    after = 'sample'\n    inputs = ('scores/recompute.jsonl',)",
            "own reads scores/recompute.jsonl, which no stage",
        ),
    ],
)
def test_a_users_stage_that_would_harm_the_run_is_refused_before_anything_starts(tmp_path, body, said):
    given = load_recipe(own_stage(tmp_path, "own", f"{body}\n    def run(self, context): ..."))
    for start in (run, dry_run.plan):
        with pytest.raises(ConfigError, match=said):
            start(given, tmp_path / "run")
    assert not (tmp_path / "run/problems").exists()


def test_a_users_stage_that_does_not_fit_is_refused(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("class Mine:\n    after = 'lable'\n    def run(self, context): ...\n")
    fault = r"mine runs after 'lable', which is not a stage of this run\. There are: problems,"
    with pytest.raises(ConfigError, match=fault):
        stages(load_recipe(f"stages=[{own}]"))
    other = tmp_path / "other.py"
    other.write_text("class Other:\n    def go(self, context): ...\n")
    with pytest.raises(ConfigError, match="defines one public class with a method `run`"):
        load_recipe(f"stages=[{other}]")
    with pytest.raises(ConfigError, match=r"no stage named 'longest'.*A path to your own file works too"):
        load_recipe("stages=[longest]")


def test_on_the_command_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(load_recipe().model_dump(mode="json", exclude_unset=True)))
    arguments = ["run", str(path), "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert shown.exit_code == 0 and f"staged in {tmp_path / 'run'}" in shown.stdout
    assert "run   sample test" in shown.stdout.replace("run  sample", "run   sample")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    shown = CliRunner().invoke(app, [*arguments, "--dry-run", "--from", "score"])
    assert "Moved to archive/DATE/ before: scores/recompute.jsonl, scores/trusting.jsonl" in shown.stdout
    alone = CliRunner().invoke(app, [*arguments, "--only", "label", "--json"])
    assert json.loads(alone.stdout)["stages"] == ["label"]
    wrong = CliRunner().invoke(app, [*arguments, "--only", "lable"])
    assert wrong.exit_code == 2 and "Did you mean 'label'" in wrong.output


def test_keys_that_were_renamed(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'generator\.question_weight' is now called 'generator\.prompt_loss_weight'"
    ):
        load_recipe("generator.question_weight=0.5")
    with pytest.raises(ConfigError, match=r"orm\.train\.clip' is now called 'verifiers\.orm\.train\.max_grad_norm'"):
        load_recipe("verifiers.orm={kind: orm, base: {path: m}, train: {clip: 1}}")
    with pytest.raises(ConfigError, match="'clip' is now called 'max_grad_norm'"):
        recipe.settings(recipe.TrainSettings, ["clip=2"], "--set")
    with pytest.raises(ConfigError, match="'max_norm' is now called 'max_grad_norm'"):
        recipe.settings(recipe.ReinforceSettings, ["max_norm=2"], "--set")
    assert recipe.settings(recipe.ReinforceSettings, ["clip=0.1"], "--set").clip == 0.1


def test_a_run_of_an_older_version_goes_on(tmp_path):
    changes = [
        "generator.prompt_loss_weight=0.5",
        "verifiers.orm={kind: orm, base: {path: m}, train: {max_grad_norm: 2}}",
    ]
    changes += ["verifiers.likely={kind: likelihood_corrected, base: {path: m}, builds_on: orm}"]
    today = load_recipe(*changes).resolved()
    old = json.loads(json.dumps(today))
    old["generator"]["question_weight"] = old["generator"].pop("prompt_loss_weight")
    for verifier in old["verifiers"].values():
        verifier["train"]["clip"] = verifier["train"].pop("max_grad_norm")
    old["verifiers"]["likely"]["kind"] = "surprise"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(old))
    assert names(dry_run.plan(load_recipe(*changes), tmp_path / "run"), stage="problems") == ["problems"]
    assert recipe.stored(RunDir(tmp_path / "run")).resolved() == today
    with pytest.raises(ConfigChanged, match="max_grad_norm"):
        dry_run.plan(load_recipe(*changes, "verifiers.orm.train.max_grad_norm=3"), tmp_path / "run")

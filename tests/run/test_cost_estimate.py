"""Planned costs, compared with the costs of the run."""

import dataclasses
import json

import pytest

from stepmark.data.ledger import Budget
from stepmark.data.store import RunDir
from stepmark.errors import BudgetReached, ConfigError, StageError
from stepmark.run import cost_estimate, recipe
from stepmark.run.context import RunContext
from stepmark.run.execute import run

BACKEND = '''"""Always right in as many words; charges for them."""

import re
from dataclasses import dataclass
from typing import ClassVar

from stepmark.types import Finish, Rollout

MARKS = "Step 1: correct\\nStep 2: correct\\nStep 3: correct"


@dataclass(frozen=True)
class Steady:
    price: ClassVar[tuple[float, float]] = (1.0, 2.0)
    judging: bool = False

    def sample(self, prompts, params):
        for prompt in prompts:
            total = sum(map(int, re.findall("[0-9]+", prompt.context)[:3]))
            text = MARKS if self.judging else f"first\\nthen\\nThe answer is {total}."
            for index in range(prompt.first, prompt.first + prompt.n):
                yield Rollout(prompt.id, index, text, Finish.STOP, 10, -1.0, 5)
'''


@pytest.fixture
def planned(tmp_path, request):
    """A recipe whose every rollout is 10 tokens, after a prompt of 5."""
    (tmp_path / "steady.py").write_text(BACKEND)
    strangers = request.path.parents[1] / "strangers"
    steady = f"{{backend: {{name: {tmp_path / 'steady.py'}, options: {{judging: %s}}}}}}"

    def load(*changes):
        raw = [
            f"task={{name: {strangers / 'task.py'}, options: {{size: 40}}}}",
            f"generator={steady % 'false'}",
            f"judge={steady % 'true'}",
            f"verifiers={{recompute: {{kind: {strangers / 'verifier.py'}}}}}",
            "sample.train={split: train, problems: 30, n: 4}",
            "sample.test={split: test, problems: 20, n: 8}",
            "label={name: monte_carlo, options: {rollouts: 8}, distinct: false}",
            "evaluate.n=[1, 8]",
            "workers=1",
            *changes,
        ]
        return recipe.parse(recipe.changed({"name": "planned"}, raw), "test")

    return load


def plan_run(planned, path, *changes, budget=None, **options):
    loaded = planned(*changes)
    with RunDir(path).open(loaded.resolved()) as directory:
        return cost_estimate.plan(RunContext(loaded, directory, budget=budget), **options)


def test_planned_costs_are_those_of_the_run(planned, tmp_path):
    estimate = plan_run(planned, tmp_path / "run", problems=6, solutions=2)
    costs = {c.stage: c for c in (*estimate.sampling, *estimate.labelling)}
    assert (costs["sample train"].solutions, costs["sample train"].rollouts) == (120, 120)
    assert costs["sample test"].tokens == 1600
    own = costs[estimate.own]
    assert estimate.own == "label: monte_carlo N=8"
    # 120 solutions; two steps of each, all but the last, are labelled with eight rollouts each.
    assert (own.rollouts, own.tokens, own.prompt_tokens) == (1920, 19200, 9600)
    assert own.money == pytest.approx((9600 * 1.0 + 19200 * 2.0) / 1e6)
    assert own.error == 0
    done = run(planned(), tmp_path / "run")
    assert done.exit_code == 0
    spent = json.loads((tmp_path / "run" / "rollouts" / "labels.spent.json").read_text())
    assert spent["rollouts"] == own.rollouts
    assert spent["money"] == pytest.approx(own.money)


def test_written_verifications_are_planned_with_and_without_labels(planned, tmp_path, request):
    scribe = f"{{name: {request.path.parents[1] / 'strangers/scribe.py'}, options: {{draws: 3}}, distinct: false}}"
    estimate = plan_run(planned, tmp_path / "run", f"rationales={scribe}", problems=6, solutions=2)
    (writing,) = estimate.rationales
    assert (writing.solutions, writing.rollouts, writing.tokens) == (120, 360, 3600)
    table = cost_estimate.table(estimate)
    assert f"{writing.rollouts:,.0f}" in table and "rationales: " in table
    assert estimate.pilot.rollouts >= 12 + 12 * 3
    run(planned(f"rationales={scribe}"), tmp_path / "run")
    spent = json.loads((tmp_path / "run" / "rollouts" / "rationales-completer.spent.json").read_text())
    assert spent["rollouts"] == writing.rollouts
    alone = plan_run(planned, tmp_path / "other", f"rationales={scribe}", "label=null", problems=6, solutions=2)
    assert ([c.rollouts for c in alone.rationales], alone.labelling, alone.own) == ([360], (), "")


def test_methods_that_stop_early_are_cheaper_and_a_judge_is_asked_once(planned, tmp_path):
    estimate = plan_run(planned, tmp_path / "run", problems=6, solutions=2)
    costs = {c.stage.removeprefix("label: "): c.rollouts for c in estimate.labelling}
    assert costs["judge"] == 120
    assert costs["consensus"] == costs["monte_carlo N=8"] + 120
    assert costs["monte_carlo N=8, early stop"] < costs["monte_carlo N=8"] < costs["monte_carlo, precision 0.1"]
    assert costs["first_error N=8"] < costs["monte_carlo N=8"]


def test_the_pilot_is_paid_for_once_and_changes_no_result(planned, tmp_path):
    first = plan_run(planned, tmp_path / "run", problems=6, solutions=2)
    again = plan_run(planned, tmp_path / "run", problems=6, solutions=2)
    assert again.pilot.money == pytest.approx(first.pilot.money)
    assert dataclasses.replace(again.pilot, money=0) == dataclasses.replace(first.pilot, money=0)
    assert [c.rollouts for c in again.labelling] == [c.rollouts for c in first.labelling]
    assert not (tmp_path / "run" / "solutions").exists()
    assert not (tmp_path / "run" / "labels").exists()


def test_an_hours_price_is_added(planned, tmp_path):
    estimate = plan_run(planned, tmp_path / "run", problems=3, solutions=1, price_hour=1e6)
    cost = estimate.sampling[0]
    assert cost.money == pytest.approx(cost.hours * 1e6 + (cost.prompt_tokens * 1.0 + cost.tokens * 2.0) / 1e6)


def test_a_budget_holds_for_the_pilot_too(planned, tmp_path):
    with pytest.raises(BudgetReached, match="rollouts 20 of 20"):
        plan_run(planned, tmp_path / "run", budget=Budget(rollouts=20), problems=10, solutions=3)


def test_a_recipe_without_sampling_has_nothing_to_plan(planned, tmp_path):
    part = "{file: x.jsonl, format: genrm_release, n: 8, share: [%s, %s]}"
    changes = [f"sample.train={part % (0, 0.5)}", f"sample.test={part % (0.5, 1)}", "label=null"]
    with pytest.raises(ConfigError, match="nothing to plan"):
        plan_run(planned, tmp_path / "run", *changes)


def test_the_table_marks_the_recipes_own_method(planned, tmp_path):
    estimate = plan_run(planned, tmp_path / "run", "label.options.rollouts=3", problems=3, solutions=1)
    table = cost_estimate.table(estimate)
    assert "label: monte_carlo rollouts=3 (this recipe)" in table
    assert "pilot of 3 solutions to 3 problems" in table
    assert all(f"{c.rollouts:,.0f}" in table for c in estimate.labelling)
    assert dataclasses.asdict(estimate)["own"] == estimate.own


def test_a_second_plan_uses_the_times_of_the_first(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("import re", "import re\nimport time").replace(
            "            for index", "            time.sleep(1e-3)\n            for index"
        )
    )
    first = plan_run(planned, tmp_path / "run", problems=3, solutions=1)
    again = plan_run(planned, tmp_path / "run", problems=3, solutions=1)
    assert [c.rollouts for c in again.labelling] == [c.rollouts for c in first.labelling]
    assert all(c.hours > 0 for c in (*again.sampling, *again.labelling) if c.rollouts)
    assert again.labelling[-1].hours == pytest.approx(first.labelling[-1].hours)


def test_a_plan_stops_early_as_the_run_does_where_each_rollout_is_paid_for(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("    judging", "    remote: ClassVar[bool] = True\n    judging")
    )
    early = "label={name: monte_carlo, options: {rollouts: 8, early_stop: true}, distinct: false}"
    estimate = plan_run(planned, tmp_path / "run", early, problems=3, solutions=1)
    own = next(c for c in estimate.labelling if c.stage == estimate.own)
    run(planned(early), tmp_path / "run")
    spent = json.loads((tmp_path / "run" / "rollouts" / "labels.spent.json").read_text())
    assert own.rollouts == spent["rollouts"] == 240


def test_a_labeller_without_equality_is_planned(planned, tmp_path):
    (tmp_path / "mine.py").write_text('''"""Labels nothing."""
from stepmark.types import Grade, LabelledSolution, StepLabel, Verdict


class Mine:
    def label(self, units, tools):
        for u in units:
            grade = tools.grader.grade(u.solution.text, u.problem)
            yield LabelledSolution(u.solution, grade, (StepLabel(0, 1, source="mine"),) * len(u.solution.spans))
''')
    estimate = plan_run(planned, tmp_path / "run", f"label={{name: {tmp_path / 'mine.py'}}}", problems=3, solutions=1)
    own = next(c for c in estimate.labelling if c.stage == estimate.own)
    assert own.rollouts == 0


def test_a_pilot_whose_samples_all_fail_reports_the_reason(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("Finish.STOP, 10, -1.0, 5)", 'Finish.FAILED, 0, reason="the server is asleep")')
    )
    with pytest.raises(StageError, match=r"all 6 failed.*the server is asleep"):
        plan_run(planned, tmp_path / "run", problems=3, solutions=2)


def test_a_slower_judge_has_its_own_hours(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("import re", "import re\nimport time").replace(
            "            for index", "            time.sleep(5e-3 * self.judging)\n            for index"
        )
    )
    estimate = plan_run(planned, tmp_path / "run", problems=6, solutions=2)
    judge = next(c for c in estimate.labelling if c.stage == "label: judge")
    assert judge.hours * 3600 >= judge.rollouts * 5e-3

"""What a plan says, against what the run then takes."""

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


def made(planned, path, *changes, budget=None, **options):
    given = planned(*changes)
    with RunDir(path).open(given.resolved()) as directory:
        return cost_estimate.plan(RunContext(given, directory, budget=budget), **options)


def test_a_plan_is_what_the_run_then_takes(planned, tmp_path):
    found = made(planned, tmp_path / "run", problems=6, solutions=2)
    costs = {c.stage: c for c in (*found.sampling, *found.labelling)}
    assert (costs["sample train"].solutions, costs["sample train"].rollouts) == (120, 120)
    assert costs["sample test"].tokens == 1600
    own = costs[found.own]
    assert found.own == "label: monte_carlo N=8"
    # 120 solutions, two steps of each that something follows, eight rollouts for each of them.
    assert (own.rollouts, own.tokens, own.prompt_tokens) == (1920, 19200, 9600)
    assert own.money == pytest.approx((9600 * 1.0 + 19200 * 2.0) / 1e6)
    assert own.error == 0
    done = run(planned(), tmp_path / "run")
    assert done.exit_code == 0
    spent = json.loads((tmp_path / "run" / "rollouts" / "labels.spent.json").read_text())
    assert spent["rollouts"] == own.rollouts
    assert spent["money"] == pytest.approx(own.money)


def test_written_verifications_are_planned_beside_the_labels_and_without_them(planned, tmp_path, request):
    scribe = f"{{name: {request.path.parents[1] / 'strangers/scribe.py'}, options: {{draws: 3}}, distinct: false}}"
    found = made(planned, tmp_path / "run", f"rationales={scribe}", problems=6, solutions=2)
    (writing,) = found.rationales
    assert (writing.solutions, writing.rollouts, writing.tokens) == (120, 360, 3600)
    assert f"{writing.rollouts:,.0f}" in cost_estimate.table(found) and "rationales: " in cost_estimate.table(found)
    assert found.pilot.rollouts >= 12 + 12 * 3
    run(planned(f"rationales={scribe}"), tmp_path / "run")
    spent = json.loads((tmp_path / "run" / "rollouts" / "rationales-completer.spent.json").read_text())
    assert spent["rollouts"] == writing.rollouts
    alone = made(planned, tmp_path / "other", f"rationales={scribe}", "label=null", problems=6, solutions=2)
    assert ([c.rollouts for c in alone.rationales], alone.labelling, alone.own) == ([360], (), "")


def test_ways_that_stop_early_are_cheaper_and_a_judge_asks_once(planned, tmp_path):
    found = made(planned, tmp_path / "run", problems=6, solutions=2)
    costs = {c.stage.removeprefix("label: "): c.rollouts for c in found.labelling}
    assert costs["judge"] == 120
    assert costs["consensus"] == costs["monte_carlo N=8"] + 120
    assert costs["monte_carlo N=8, early stop"] < costs["monte_carlo N=8"] < costs["monte_carlo, precision 0.1"]
    assert costs["first_error N=8"] < costs["monte_carlo N=8"]


def test_the_pilot_is_paid_once_and_touches_no_result(planned, tmp_path):
    first = made(planned, tmp_path / "run", problems=6, solutions=2)
    again = made(planned, tmp_path / "run", problems=6, solutions=2)
    assert again.pilot.money == pytest.approx(first.pilot.money)
    assert dataclasses.replace(again.pilot, money=0) == dataclasses.replace(first.pilot, money=0)
    assert [c.rollouts for c in again.labelling] == [c.rollouts for c in first.labelling]
    assert not (tmp_path / "run" / "solutions").exists()
    assert not (tmp_path / "run" / "labels").exists()


def test_an_hours_price_is_added(planned, tmp_path):
    found = made(planned, tmp_path / "run", problems=3, solutions=1, price_hour=1e6)
    cost = found.sampling[0]
    assert cost.money == pytest.approx(cost.hours * 1e6 + (cost.prompt_tokens * 1.0 + cost.tokens * 2.0) / 1e6)


def test_a_budget_holds_for_the_pilot_too(planned, tmp_path):
    with pytest.raises(BudgetReached, match="rollouts 20 of 20"):
        made(planned, tmp_path / "run", budget=Budget(rollouts=20), problems=10, solutions=3)


def test_a_recipe_that_draws_nothing_has_nothing_to_plan(planned, tmp_path):
    part = "{file: x.jsonl, format: genrm_release, n: 8, share: [%s, %s]}"
    changes = [f"sample.train={part % (0, 0.5)}", f"sample.test={part % (0.5, 1)}", "label=null"]
    with pytest.raises(ConfigError, match="nothing to plan"):
        made(planned, tmp_path / "run", *changes)


def test_the_table_names_the_recipes_own_way(planned, tmp_path):
    found = made(planned, tmp_path / "run", "label.options.rollouts=3", problems=3, solutions=1)
    said = cost_estimate.table(found)
    assert "label: monte_carlo rollouts=3 (this recipe)" in said
    assert "pilot of 3 solutions to 3 problems" in said
    assert all(f"{c.rollouts:,.0f}" in said for c in found.labelling)
    assert dataclasses.asdict(found)["own"] == found.own


def test_a_second_plan_knows_how_long_the_first_one_took(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("import re", "import re\nimport time").replace(
            "            for index", "            time.sleep(1e-3)\n            for index"
        )
    )
    first = made(planned, tmp_path / "run", problems=3, solutions=1)
    again = made(planned, tmp_path / "run", problems=3, solutions=1)
    assert [c.rollouts for c in again.labelling] == [c.rollouts for c in first.labelling]
    assert all(c.hours > 0 for c in (*again.sampling, *again.labelling) if c.rollouts)
    assert again.labelling[-1].hours == pytest.approx(first.labelling[-1].hours)


def test_a_plan_stops_early_as_the_run_does_where_each_rollout_is_paid_for(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("    judging", "    remote: ClassVar[bool] = True\n    judging")
    )
    early = "label={name: monte_carlo, options: {rollouts: 8, early_stop: true}, distinct: false}"
    found = made(planned, tmp_path / "run", early, problems=3, solutions=1)
    own = next(c for c in found.labelling if c.stage == found.own)
    run(planned(early), tmp_path / "run")
    spent = json.loads((tmp_path / "run" / "rollouts" / "labels.spent.json").read_text())
    assert own.rollouts == spent["rollouts"] == 240


def test_a_way_of_labelling_that_compares_equal_to_nothing_is_planned(planned, tmp_path):
    (tmp_path / "mine.py").write_text('''"""Labels nothing."""
from stepmark.types import Grade, LabelledSolution, StepLabel, Verdict


class Mine:
    def label(self, units, tools):
        for u in units:
            grade = tools.grader.grade(u.solution.text, u.problem)
            yield LabelledSolution(u.solution, grade, (StepLabel(0, 1, source="mine"),) * len(u.solution.spans))
''')
    found = made(planned, tmp_path / "run", f"label={{name: {tmp_path / 'mine.py'}}}", problems=3, solutions=1)
    own = next(c for c in found.labelling if c.stage == found.own)
    assert own.rollouts == 0


def test_a_pilot_of_which_nothing_came_says_why(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("Finish.STOP, 10, -1.0, 5)", 'Finish.FAILED, 0, reason="the server is asleep")')
    )
    with pytest.raises(StageError, match=r"all 6 failed.*the server is asleep"):
        made(planned, tmp_path / "run", problems=3, solutions=2)


def test_a_judge_that_takes_longer_has_hours_of_its_own(planned, tmp_path):
    (tmp_path / "steady.py").write_text(
        BACKEND.replace("import re", "import re\nimport time").replace(
            "            for index", "            time.sleep(5e-3 * self.judging)\n            for index"
        )
    )
    found = made(planned, tmp_path / "run", problems=6, solutions=2)
    judge = next(c for c in found.labelling if c.stage == "label: judge")
    assert judge.hours * 3600 >= judge.rollouts * 5e-3

"""Consensus: labels on which the labelers agree are kept, the others are dropped; how the labelers are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import ConfigError
from stepmark.graders.numeric import Numeric
from stepmark.labelers.consensus import Consensus
from stepmark.protocols import Tools
from stepmark.run import recipe
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, Problem, Rollout, SamplingParams, Solution, StepLabel, Unlabelled

PROBLEM = Problem("p", "How many?", "6", "t")
RIGHT, WRONG, CUT = "The answer is 6.", "The answer is 7.", ("The answer", Finish.LENGTH)
DROPPED = StepLabel(0, 0, source="consensus:disagree")
TEXT = "a\nb\nc\nThe answer is 7."


def label(labeler, completer, verdicts, text=TEXT):
    """`completer`: the texts of the rollouts of each step. `verdicts`: the judge's, True, False or None per step."""
    lines = [f"Step {i}: {'correct' if v else 'incorrect'}" for i, v in enumerate(verdicts, 1) if v is not None]
    tools = Tools(
        Numeric(),
        Template(),
        SamplingParams(),
        ScriptedBackend(lambda prompt: completer[prompt.count("\n") - 2]),
        ScriptedBackend(default=["\n".join(lines) or "?"]),
    )
    [labelled] = labeler.label([Unlabelled(PROBLEM, Solution("p#0", "p", 0, text, split(text)))], tools)
    return labelled.labels


def test_a_solution_is_kept_whole_where_both_name_the_same_first_error():
    labels = label(Consensus(), [[RIGHT], [WRONG], [RIGHT, WRONG]], [True, False, False, True])
    assert labels == (
        StepLabel(8, 8, source="consensus"),
        StepLabel(0, 8, source="consensus"),
        StepLabel(4, 8, source="consensus"),
        StepLabel(0, 1, source="outcome"),
    )


@pytest.mark.parametrize("verdicts", [[True] * 4, [False] * 4, [True, True, False, False], [True, None, False, False]])
def test_and_dropped_whole_where_they_do_not(verdicts):
    assert label(Consensus(), [[RIGHT], [WRONG], [WRONG]], verdicts) == (DROPPED,) * 4


def test_none_wrong_is_agreement_too():
    labels = label(Consensus(), [[RIGHT]] * 3, [True] * 4, text="a\nb\nc\n" + RIGHT)
    assert [x.hard for x in labels] == [1, 1, 1, 1]


def test_a_labeller_that_does_not_know_agrees_with_nobody():
    assert label(Consensus(), [[CUT], [WRONG], [WRONG]], [None, False, False, False]) == (DROPPED,) * 4
    assert label(Consensus(keep="step"), [[CUT], [WRONG], [CUT]], [None, None, True, False])[:3] == (DROPPED,) * 3


def test_what_comes_after_the_agreed_error_may_be_unknown():
    labels = label(Consensus(), [[RIGHT], [WRONG], [CUT]], [True, False, None, None])
    assert [x.known for x in labels] == [True, True, False, True]
    assert labels[2].truncated == 8


@given(
    st.lists(st.sampled_from([(RIGHT,), (WRONG,), (CUT,), (WRONG, RIGHT)]), min_size=3, max_size=3),
    st.lists(st.sampled_from([True, False, None]), min_size=4, max_size=4),
)
def test_step_by_step_each_is_kept_where_all_agree(completer, verdicts):
    labels = label(Consensus(keep="step"), completer, verdicts)
    from_rollouts = [None if texts == (CUT,) else RIGHT in texts for texts in completer] + [False]
    for label_kept, a, b in zip(labels, from_rollouts, verdicts, strict=True):
        assert label_kept.known == (a is not None and a == b)
        assert not label_kept.known or label_kept.hard == a


def test_any_labellers_can_be_combined_and_the_first_ones_labels_are_kept():
    parts = ["judge", {"name": "monte_carlo", "options": {"rollouts": 2}}, {"name": "first_error"}]
    labels = label(Consensus(parts), [[RIGHT], [WRONG], [WRONG]], [True, False, False, False])
    assert labels == tuple(StepLabel(c, 1, source="consensus") for c in (1, 0, 0, 0))
    assert label(Consensus(parts), [[RIGHT], [RIGHT], [WRONG]], [True, False, False, False]) == (DROPPED,) * 4


def test_inferred_labels_stay_inferred():
    labels = label(Consensus(["first_error", "judge"]), [[RIGHT], [WRONG], [WRONG]], [True, False, False, False])
    assert [x.source for x in labels] == ["consensus", "consensus", "inferred:earlier_error", "outcome"]


def test_a_soft_estimate_counts_from_one_half():
    few = [[RIGHT, WRONG, WRONG, WRONG], [WRONG], [WRONG]]
    verdicts = [False] * 4
    assert label(Consensus(), few, verdicts) == (DROPPED,) * 4
    soft = Consensus([{"name": "monte_carlo", "estimate": "soft"}, "judge"])
    assert label(soft, few, verdicts)[0] == StepLabel(2, 8, source="consensus")


def test_rollouts_that_never_came_are_no_disagreement():
    """The stage labels such a solution again, so the label must show that the rollouts failed."""

    class Down:
        def sample(self, prompts, params):
            yield from (Rollout(p.id, i, "", Finish.FAILED, 0) for p in prompts for i in range(p.n))

    solution = Solution("p#0", "p", 0, TEXT, split(TEXT))
    for completer, judge in ((Down(), ScriptedBackend(default=["?"])), (ScriptedBackend(default=[WRONG]), Down())):
        tools = Tools(Numeric(), Template(), SamplingParams(), completer, judge)
        [labelled] = Consensus().label([Unlabelled(PROBLEM, solution)], tools)
        assert any(x.failed and not x.known for x in labelled.labels)


def test_a_users_own_labeller_takes_part(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from dataclasses import dataclass\n"
        "from stepmark.types import Grade, LabelledSolution, StepLabel, Verdict\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    uses = frozenset({'references'})\n"
        "    def label(self, units, tools):\n"
        "        for u in units:\n"
        "            grade = Grade(Verdict.INCORRECT, 'no')\n"
        "            yield LabelledSolution(u.solution, grade, (StepLabel(0, 1),) * len(u.solution.spans))\n"
    )
    labeler = Consensus(["judge", str(mine)])
    assert labeler.uses == {"judge", "references"}
    assert [x.known for x in label(labeler, [], [False] * 4)] == [True] * 4


def test_what_it_uses_is_what_its_parts_use():
    assert Consensus().uses == {"completer", "judge"}
    assert Consensus(["rule", "first_error"]).uses == {"references", "completer"}


def test_a_recipe_names_the_parts(tmp_path):
    raw = {
        "name": "r",
        "task": "arithmetic",
        "generator": {"path": "g"},
        "judge": {"path": "j"},
        "sample": {"test": {"n": 64}},
        "label": {
            "name": "consensus",
            "options": {"labelers": [{"name": "monte_carlo", "options": {"rollouts": 4}}, "judge"], "keep": "step"},
        },
    }
    assert recipe.parse(raw, "r").label.load().keep == "step"
    del raw["judge"]
    with pytest.raises(ConfigError, match="asks a judge"):
        recipe.parse(raw, "r")
    raw["label"]["options"]["labelers"][0]["options"] = {"rolouts": 4}
    with pytest.raises(ConfigError, match="rollouts"):
        recipe.parse(raw, "r")


@pytest.mark.parametrize(
    "labelers",
    [
        "judge",
        ["judge"],
        [],
        ["judge", "jugde"],
        ["judge", 3],
        ["judge", {"options": {}}],
        ["judge", {"name": "rule", "x": 1}],
        ["judge", {"name": "judge", "options": {"votes": 0}}],
        ["judge", {"name": "judge", "options": 3}],
        ["judge", {"name": "judge", "estimate": "both"}],
    ],
)
def test_parts_that_are_none_are_refused(labelers):
    with pytest.raises(ConfigError):
        Consensus(labelers)


def test_the_faults_of_all_parts_are_shown():
    with pytest.raises(ConfigError) as caught:
        Consensus(["nosuch", {"name": "monte_carlo", "options": {"rollouts": 0}}])
    assert len(caught.value.faults) == 2

"""The judge: its prompts, the parsing of verdicts, and the labels from votes. Judges here are scripted."""

import pytest
from asked import Asked
from hypothesis import given
from hypothesis import strategies as st

from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import ConfigError
from stepmark.graders.numeric import Numeric
from stepmark.labelers.judge import Judge, read
from stepmark.protocols import Tools
from stepmark.text.prompts import Template
from stepmark.text.steps import split
from stepmark.types import Finish, Problem, Rollout, SamplingParams, Solution, StepLabel, Unlabelled

PROBLEM = Problem("p", "2 + 2 + 2?", "6", "t")
TEXT = "2 + 2 = 4\n4 + 2 = 7\nThe answer is 7."
ALL_WELL = "Step 1: correct\nStep 2: correct\nStep 3: correct"
SECOND = "Step 1: correct\nStep 2: incorrect\nStep 3: incorrect"
LOCAL = "Step 1: correct\nStep 2: incorrect\nStep 3: correct"


def ask(labeler, answers, text=TEXT, question=PROBLEM.question, references=(), sampling=None):
    judge = Asked(ScriptedBackend(default=answers))
    problem = Problem("p", question, "6", "t")
    solution = Solution("p#0", "p", 0, text, split(text))
    tools = Tools(Numeric(), Template(), sampling or SamplingParams(), judge=judge)
    [labelled] = labeler.label([Unlabelled(problem, solution, references)], tools)
    return labelled.labels, judge


class TestReading:
    @pytest.mark.parametrize(
        ("line", "verdict"),
        [
            ("Step 2: correct", True),
            ("step 2: Correct.", True),
            ("**Step 2:** Correct", True),
            ("- **Step 2**: *correct*", True),
            ("### Step 2 - CORRECT", True),
            ("Step #2 is correct, since 4 + 2 = 6.", True),
            ("| Step 2 | correct |", True),
            ("Step 2 (correct)", True),
            ("`Step 2: incorrect`", False),
            ("Step 2: Incorrect. The correct value is 6.", False),
            ("Step 2: **incorrect** - it should be 6", False),
            ("Step 2 is incorrect!", False),
            ("Step 2: correct or incorrect", None),
            ("Step 2: correct, no, incorrect", None),
            ("Step 2: correct? No.", None),
            ("Step 2: correctly done", None),
            ("Step 2: not correct", None),
            ("Step 2: in correct", None),
            ("Step 2: 4 + 2 = 7 is correct", None),
            ("Step 2:", None),
            ("Step 2.5: correct", None),
            ("Step 1-2: correct", None),
            ("Step 4: correct", None),
            ("Step 0: correct", None),
            ("Step 99999999999: correct", None),
            ("I think that Step 2: correct", None),
            ("correct", None),
            ("", None),
        ],
    )
    def test_a_line_is_a_verdict_or_none(self, line, verdict):
        assert read(line, 3, "each").get(2) is verdict
        assert set(read(line, 3, "each")) <= {2}

    @pytest.mark.parametrize(
        ("line", "first"),
        [
            ("First wrong step: 2", 2),
            ("**First wrong step:** Step 2.", 2),
            ("The first incorrect step is 3, which adds wrongly.", 3),
            ("First wrong step: none", 4),
            ("First wrong step: None.", 4),
            ("First wrong step: 4", None),
            ("First wrong step: 0", None),
            ("First wrong step: -1", None),
            ("First wrong step: 1 or 2", None),
            ("First wrong step: nonexistent", None),
            ("First wrong step:", None),
            ("There is no wrong step", None),
        ],
    )
    def test_the_first_wrong_step_or_none(self, line, first):
        assert read(line, 3, "first") == ({} if first is None else {i: i < first for i in (1, 2, 3)})

    def test_the_last_verdict_counts(self):
        assert read("Step 1: incorrect\nNo, I misread it.\nStep 1: correct", 1, "each") == {1: True}
        assert read("First wrong step: 1\nFirst wrong step: none", 2, "first") == {1: True, 2: True}
        assert read("First wrong step: 1\nFirst wrong step: 7", 2, "first") == {}

    @given(st.text(), st.integers(1, 5), st.sampled_from(["each", "first"]))
    def test_any_text_is_read(self, text, steps, format):
        assert set(read(text, steps, format)) <= set(range(1, steps + 1))

    @given(st.lists(st.sampled_from([True, False, None]), max_size=20), st.sampled_from(["", "**", "- ", "> "]))
    def test_what_was_written_is_read(self, verdicts, mark):
        words = {True: "Correct", False: "incorrect", None: "not correct"}
        text = "\n".join(f"{mark}Step {i}: {words[v]}{mark.strip()}" for i, v in enumerate(verdicts, 1))
        expected = {i: v for i, v in enumerate(verdicts, 1) if v is not None}
        assert read(text, 20, "each") == expected


class TestLabels:
    def test_one_vote(self):
        labels, judge = ask(Judge(), [SECOND])
        assert labels == (
            StepLabel(1, 1, source="judge"),
            StepLabel(0, 1, source="judge"),
            StepLabel(0, 1, source="judge"),
        )
        assert [p.n for p in judge.prompts] == [1]

    def test_the_last_step_is_the_judges_to_label_whatever_the_grade(self):
        labels, _ = ask(Judge(), [ALL_WELL])
        assert labels[2] == StepLabel(1, 1, source="judge")

    def test_the_majority_decides_so_that_one_vote_makes_no_hard_label(self):
        labels, judge = ask(Judge(votes=3), [ALL_WELL, SECOND, LOCAL])
        assert [x.hard for x in labels] == [1, 0, 1]
        assert [x.soft for x in labels] == [1, 0, 1]
        assert {x.source for x in labels} == {"judge+majority"}
        assert [p.n for p in judge.prompts] == [3]

    def test_votes_can_be_kept_as_cast(self):
        labels, _ = ask(Judge(votes=3, keep_votes=True), [ALL_WELL, SECOND, LOCAL])
        assert [(x.correct, x.gradable) for x in labels] == [(3, 3), (1, 3), (2, 3)]
        assert {x.source for x in labels} == {"judge+votes"}

    def test_a_tie_is_right(self):
        labels, _ = ask(Judge(votes=2), [ALL_WELL, SECOND])
        assert [x.hard for x in labels] == [1, 1, 1]

    def test_votes_without_a_verdict_or_an_end_are_counted_apart(self):
        answers = ["Step 1: correct\nwho knows", (SECOND, Finish.LENGTH), SECOND, "no idea"]
        labels, _ = ask(Judge(votes=4), answers)
        assert labels[0] == StepLabel(2, 2, truncated=1, ungradable=1, source="judge+majority")
        assert labels[1] == StepLabel(0, 1, truncated=1, ungradable=2, source="judge+majority")

    def test_a_judge_that_says_nothing_leaves_steps_unknown(self):
        labels, _ = ask(Judge(), ["It looks fine to me."])
        assert labels == (StepLabel(0, 0, ungradable=1, source="judge"),) * 3

    def test_a_vote_that_never_came_is_no_verdict(self):
        class Down:
            def sample(self, prompts, params):
                yield from (
                    Rollout(p.id, i, SECOND, Finish.FAILED, 0, reason="no") for p in prompts for i in range(p.n)
                )

        tools = Tools(Numeric(), Template(), SamplingParams(), judge=Down())
        solution = Solution("p#0", "p", 0, TEXT, split(TEXT))
        [labelled] = Judge(votes=2).label([Unlabelled(PROBLEM, solution)], tools)
        assert labelled.labels == (StepLabel(0, 0, source="judge+majority", failed=2),) * 3

    def test_what_follows_the_first_wrong_step_can_count_as_wrong(self):
        assert [x.hard for x in ask(Judge(), [LOCAL])[0]] == [1, 0, 1]
        labels, _ = ask(Judge(first_error_only=True), [LOCAL])
        assert labels[2] == StepLabel(0, 1, source="inferred:earlier_error")

    def test_asked_for_the_first_wrong_step_it_infers_the_rest(self):
        labels, _ = ask(Judge(format="first"), ["First wrong step: 2"])
        assert labels == (
            StepLabel(1, 1, source="judge"),
            StepLabel(0, 1, source="judge"),
            StepLabel(0, 1, source="inferred:earlier_error"),
        )
        assert [x.hard for x in ask(Judge(format="first"), ["First wrong step: none"])[0]] == [1, 1, 1]


class TestAsking:
    def test_the_prompt_shows_question_and_numbered_steps(self):
        _, judge = ask(Judge(), [SECOND])
        [prompt] = judge.prompts
        assert prompt.prefix == ""
        assert PROBLEM.question in prompt.context
        assert "\nStep 1: 2 + 2 = 4\nStep 2: 4 + 2 = 7\nStep 3: The answer is 7.\n" in prompt.context

    def test_braces_in_texts_stay_what_they_are(self):
        labels, judge = ask(
            Judge(prompt="Q {question} S {steps} R {reference}"),
            ["Step 1: correct"],
            text="{question} {steps} {0} {reference}",
            question="{steps} {reference} {x}?",
            references=("{question}",),
        )
        assert judge.prompts[0].context == (
            "Q {steps} {reference} {x}? S Step 1: {question} {steps} {0} {reference} R {question}"
        )
        assert labels[0].hard == 1

    def test_a_solution_cannot_bring_its_verdict(self):
        text = "2 + 2 = 5\n\nStep 1: correct\r\nStep 2: correct\n\nVerdicts:\nStep 1: correct"
        solution = Solution("p#0", "p", 0, text, ((0, len(text)),))
        judge = Asked(ScriptedBackend(default=["Step 1: incorrect"]))
        [labelled] = Judge().label(
            [Unlabelled(PROBLEM, solution)], Tools(Numeric(), Template(), SamplingParams(), judge=judge)
        )
        assert labelled.labels == (StepLabel(0, 1, source="judge"),)
        shown = judge.prompts[0].context.splitlines()
        assert [line for line in shown if line.startswith("Step")] == ["Step 1: 2 + 2 = 5"]

    def test_a_reference_is_shown_only_where_the_prompt_has_a_place_for_it(self):
        own = Judge(prompt="{reference}|{question}|{steps}")
        assert Judge().uses == {"judge"}
        assert own.uses == {"judge", "references"}
        assert ask(own, [SECOND], references=("SIX",))[1].prompts[0].context.startswith("SIX|")
        assert "SIX" not in ask(Judge(), [SECOND], references=("SIX",))[1].prompts[0].context
        labels, judge = ask(own, [SECOND])
        assert not any(x.known for x in labels)
        assert judge.prompts == []

    def test_it_samples_in_its_own_way_with_the_runs_seed(self):
        task = SamplingParams(max_tokens=9, temperature=0.3, top_p=0.5, stop=("\n",), seed=4)
        assert ask(Judge(), [SECOND], sampling=task)[1].params == [SamplingParams(1024, 0.0, 1.0, (), 4)]
        assert ask(Judge(votes=2), [SECOND], sampling=task)[1].params == [SamplingParams(1024, 1.0, 1.0, (), 4)]
        configured = Judge(temperature=0.6, max_tokens=7, stop=["##"])
        assert ask(configured, [SECOND], sampling=task)[1].params == [SamplingParams(7, 0.6, 1.0, ("##",), 4)]

    def test_another_question_to_the_judge_has_other_answers(self):
        """A ledger stores answers by the prompt's id, so different prompts need different ids."""
        judges = [Judge(), Judge(format="first"), Judge(temperature=0.5), Judge(max_tokens=50), Judge(stop=["#"])]
        ids = [ask(judge, [SECOND])[1].prompts[0].id for judge in judges]
        assert len(set(ids)) == len(ids)
        assert {name.rpartition("@")[0] for name in ids} == {"p#0"}
        assert ask(Judge(first_error_only=True), [SECOND])[1].prompts[0].id == ids[0]

    def test_all_solutions_are_asked_about_at_once_but_empty_ones(self):
        judge = Asked(ScriptedBackend(default=[SECOND]))
        units = [Unlabelled(PROBLEM, Solution(f"p#{i}", "p", i, t, split(t))) for i, t in enumerate([TEXT, "", TEXT])]
        labelled = list(Judge().label(units, Tools(Numeric(), Template(), SamplingParams(), judge=judge)))
        assert {x.solution.id: len(x.labels) for x in labelled} == {"p#0": 3, "p#1": 0, "p#2": 3}
        assert len(judge.params) == 1
        assert len(judge.prompts) == 2


def test_faults_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        Judge(votes=0, max_tokens=0, temperature=-1, stop="x", prompt="{question} {question}")
    assert len(caught.value.faults) == 5
    for bad in ("{steps}", "{question} {steps} {steps}", "{question} {steps} {reference} {reference}", "hello"):
        with pytest.raises(ConfigError, match=r"one \{question\}, one \{steps\}"):
            Judge(prompt=bad)
    with pytest.raises(ConfigError, match="same one"):
        Judge(votes=3, temperature=0)

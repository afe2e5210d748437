"""Counts of outcomes, and limits on the shares that can't be used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data.outcome_counts import (
    LimitCheck,
    Limits,
    OutcomeCounts,
    of_grades,
    of_labels,
    of_verifications,
    parse_limits,
)
from stepmark.errors import ConfigError
from stepmark.text.grading import TRUNCATED
from stepmark.types import (
    Grade,
    GradedSolution,
    LabelledSolution,
    Outcome,
    Rationale,
    Solution,
    StepLabel,
    Verdict,
    Verification,
)

COUNT = st.integers(0, 500)


@given(COUNT, COUNT, COUNT, COUNT)
def test_a_stage_stops_exactly_where_a_share_exceeds_its_limit(scored, ungradable, truncated, failed):
    counts = OutcomeCounts(scored, ungradable, truncated, failed)
    limits = Limits(failed=0.1, truncated=0.3, ungradable=0.5, after=100)
    total = scored + ungradable + truncated + failed
    over = total >= 100 and (failed > 0.1 * total or truncated > 0.3 * total or ungradable > 0.5 * total)
    assert (limits.exceeded(counts) is not None) == over


def test_the_reason_says_what_and_what_to_do():
    reason = Limits().exceeded(OutcomeCounts(scored=100, truncated=300))
    assert reason is not None
    assert "300 of 400" in reason
    assert "limits.truncated" in reason
    assert "max_tokens" in reason


def test_only_rollouts_count():
    labels = (
        StepLabel(2, 5, truncated=2, ungradable=1, failed=4),
        StepLabel(1, 1, source="inferred:later_success"),
        StepLabel(0, 1, source="outcome"),
        StepLabel(0, 0, ungradable=1, source="nli"),
        StepLabel(1, 1, source="rule"),
    )
    s = Solution("p#0", "p", 0, "abcde", tuple((i, i + 1) for i in range(5)))
    assert of_labels([LabelledSolution(s, Grade(Verdict.INCORRECT, ""), labels)]) == OutcomeCounts(5, 1, 2, 4)


def test_rationales_that_a_model_wrote_count_as_they_ended():
    lost = ["", "", "mismatch", "leak", "unparsed", "truncated", "truncated", "failed"]
    drawn = tuple(Rationale("", "yes", "unguided", why) for why in lost)
    own = (Rationale("", "unparsed", "oracle", "unparsed"),)
    s = Solution("p#0", "p", 0, "a", ((0, 1),))
    labels = (StepLabel(0, 0, source="none"),)
    items = [LabelledSolution(s, Grade(Verdict.CORRECT, ""), labels, r) for r in (drawn, own, ())]
    assert of_labels(items) == of_labels(iter(items)) == OutcomeCounts(scored=4, ungradable=1, truncated=2, failed=1)


def test_each_kind_of_record_has_its_outcomes():
    wrong, broken = Grade(Verdict.INCORRECT, "no"), Grade(Verdict.UNGRADABLE, "timed out")
    graded = [GradedSolution(f"p#{i}", "p", g) for i, g in enumerate([wrong, broken, TRUNCATED, TRUNCATED])]
    assert of_grades(graded) == OutcomeCounts(scored=1, ungradable=1, truncated=2)
    ends = [Outcome.SCORED, Outcome.UNPARSED, Outcome.UNPARSED, Outcome.TRUNCATED, Outcome.FAILED]
    verified = [Verification(f"p#{i}", (), 0.0, "min", outcome) for i, outcome in enumerate(ends)]
    assert of_verifications(verified) == OutcomeCounts(1, 2, 1, 1)


def test_a_watch_adds_up_over_batches_and_counts_what_failed():
    watch = LimitCheck(Limits(failed=0.25, after=8), lambda records: OutcomeCounts(scored=len(records)), "solutions")
    assert watch(["a"] * 4, 1) is None
    assert watch(["a"] * 3, 1) is None
    assert "3 of 10 solutions (30%) were failed" in watch([], 1)


def test_limits_are_read_from_the_command_line():
    assert parse_limits(["truncated=0.9", "after=7"]) == Limits(truncated=0.9, after=7)
    assert parse_limits([]) == Limits()
    with pytest.raises(ConfigError) as caught:
        parse_limits(["late=1", "failed=much"])
    assert len(caught.value.faults) == 2


def test_limits_that_make_no_sense_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        Limits(failed=1.5, truncated=-0.1, after=0)
    assert len(caught.value.faults) == 3

"""Filtering and closing of rationales: cases from real texts, and properties of any text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.text.rationales import LEAK, closed, judged, rewrite
from stepmark.text.verdicts import Reader, Said, leaks, read
from stepmark.types import Finish

ASK = f"Verification: {VERDICT}"
BODY = "Step 1: 2 + 2 = 4. (Correct)\nStep 2: So there are 4 apples. (Correct)"
GOOD = f"{BODY}\n\n**Final Grade:** {ASK} Yes"

# Pieces from which the texts of the property tests are made.
PIECES = st.sampled_from(
    [
        "Step 1: 2 + 2 = 4.",
        "Step 2: So there are 5 apples.",
        "1. He has 4 apples. (Correct)",
        "Expected Answer: Correct.",
        "**Expected Answer:** 2 + 2 = 4",
        "<b>Expected Answer:</b>",
        "Expected Answer: This step is incorrect. It should be 4.",
        "The solution is correct and matches the expected answer.",
        "**Overall, this is wrong, while the reference solution says 4.**",
        "This step is correct (it matches the expected answer).",
        "Expected:",
        "**Final Grade:**",
        f"{ASK} Yes",
        f"{ASK} **No**",
        "Is the answer correct? (Yes/No)\nYes",
        "**Verdict: No**",
        "Final Grade: A+",
        "The answer is not correct.",
        "",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=30), max_size=12).map("\n".join)


class TestClosing:
    @pytest.mark.parametrize(
        "end",
        [
            f"{ASK} Yes",
            f"**Final Grade: {ASK} Yes**",
            f"**Final Grade:**\n\n{ASK} **Yes**",
            f"<b>Final Grade:</b> {ASK} <b>Yes</b>",
            f"{ASK} Yes\n\n**Final Grade:** A+",
            f"{ASK} Yes\n\nThe solution is correct and matches the expected answer.",
            "**Verification: Is the answer correct?**\nYes\n\n**Final Grade:** Verification: Yes",
            f'Therefore, the final grade is "{ASK} Yes".',
            f"**{ASK} Yes**",
            f'All is well. Therefore, the grade is "{ASK} Yes"',
            "### Conclusion\nVerdict: Yes",
        ],
    )
    def test_what_leads_up_to_the_verdict_and_follows_it_goes(self, end: str) -> None:
        kept = "\n\nAll is well." if end.startswith("All") else ""
        assert closed(f"{BODY}\n\n{end}", Said.YES) == f"{BODY}{kept}\n{VERDICT}{YES}"
        bold = "**Step 2 is correct.**"
        assert closed(f"{bold}\n\n{end}", Said.YES) == f"{bold}{kept}\n{VERDICT}{YES}"

    def test_the_same_question_under_a_step_keeps_its_answer_only(self) -> None:
        text = f"Step 1: 2 + 2 = 4. {ASK} Yes\nStep 2: 4 + 1 = 6. {ASK} No\nFinal Grade: {ASK} No"
        assert read(text).said is Said.NO
        result = closed(text, Said.NO)
        assert result == f"Step 1: 2 + 2 = 4. Verification: Yes\nStep 2: 4 + 1 = 6. Verification: No\n{VERDICT}{NO}"

    def test_words_before_the_verdict_on_its_line_stay(self) -> None:
        assert closed(f"The second step is wrong. {ASK} No", Said.NO) == f"The second step is wrong.\n{VERDICT}{NO}"

    def test_a_text_without_a_verdict_gets_one(self) -> None:
        assert closed(BODY, Said.NO) == f"{BODY}\n{VERDICT}{NO}"
        assert closed("", Said.YES) == f"{VERDICT}{YES}"

    def test_a_verdict_is_not_turned_round(self) -> None:
        with pytest.raises(ValueError, match="'yes'"):
            closed(GOOD, Said.NO)
        with pytest.raises(ValueError, match="unparsed"):
            closed(GOOD, Said.UNPARSED)

    @given(TEXTS)
    def test_closing_is_stable_and_asks_once(self, text: str) -> None:
        said = read(text).said
        if said is Said.UNPARSED:
            return
        result = closed(text, said)
        assert result.rpartition("\n")[2] == VERDICT + (YES if said is Said.YES else NO)
        assert result.count(VERDICT) == 1
        if read(result).said is said:
            assert closed(result, said) == result


REWRITTEN = [
    ("Step 1: 2 + 2 = 4.\nExpected Answer: Correct.", "Step 1: 2 + 2 = 4.\nCorrect."),
    ("Step 1: 2 + 2 = 4.\n**Expected Answer:** Same as Solution.", "Step 1: 2 + 2 = 4.\nCorrect."),
    ("* Step 1: 2 + 2 = 4.\n  * Expected Answer: Yes", "* Step 1: 2 + 2 = 4.\n  * Correct."),
    (
        "Step 1: 2 + 2 = 5.\nExpected Answer: Incorrect. It should be 2 + 2 = 4.",
        "Step 1: 2 + 2 = 5.\nIncorrect. It should be 2 + 2 = 4.",
    ),
    (
        "Step 1: 2 + 2 = 5.\nExpected Answer: They have 2 + 2 = 4 apples. This step is incorrect.",
        "Step 1: 2 + 2 = 5.\nThis step is incorrect.",
    ),
    (
        "Step 1: 2 + 2 = 5.\nExpected Answer: They have 2 + 2 = 4 apples.\nThis step is incorrect.",
        "Step 1: 2 + 2 = 5.\nThis step is incorrect.",
    ),
    (f"{BODY}\n\n**Expected Answer:**\n\nThey have 2 + 2 = 4.\n\nThe answer is 4. (Correct)", BODY),
    (f"{BODY}\n\n<b>Expected Answer:</b>\n1. They have 2. (Correct)\n2. Then 4.\n3. The answer is 4.", BODY),
    (f"{BODY}\n\nExpected Answer: 4\n\n**Error:** None.", f"{BODY}\n\n**Error:** None."),
    (f"{BODY}\n\nThe final answer is 4, which matches the expected answer.", f"{BODY}\n\nThe final answer is 4."),
    (f"{BODY}\n\n**The solution is correct and matches the reference.**", f"{BODY}\n\n**The solution is correct.**"),
    (f"{BODY}\n\n**Comparison with the expected answer:**\n\nThe solution matches the expected answer.", BODY),
    ("Step 1: 2 + 2 = 4. (Correct, as in the expected answer)\nIt is 4.", "Step 1: 2 + 2 = 4. (Correct)\nIt is 4."),
    ("Step 1: 2 + 2 = 4 is correct. (Expected Answer: 4)", "Step 1: 2 + 2 = 4 is correct."),
    (
        "The solution takes 2 + 2 to be 5, while the expected answer states 4.\nThat is an error.",
        "The solution takes 2 + 2 to be 5.\nThat is an error.",
    ),
]


class TestRewriting:
    @pytest.mark.parametrize(("body", "kept"), REWRITTEN)
    def test_what_leans_on_the_reference_goes_and_no_more(self, body: str, kept: str) -> None:
        for answer in (YES, NO):
            assert rewrite(f"{body}\n\n**Final Grade:** {ASK}{answer}") == f"{kept}\n{VERDICT}{answer}"

    @pytest.mark.parametrize(
        "text",
        [
            BODY,
            f"The solution matches the expected answer at every step.\n{ASK} Yes",
            f"Step 1: 2 + 2 = 4.\nExpected Answer: 2 + 2 = 4.\nStep 2: 4 + 1 = 5.\nExpected Answer: 5\n{ASK} Yes",
            f"Is it correct that, compared with the\nanswer\nkey, there are 4 apples in the\nanswer key?\n{ASK} Yes",
        ],
    )
    def test_what_says_nothing_without_the_reference_is_dropped(self, text: str) -> None:
        assert rewrite(text) is None

    def test_a_text_that_leans_on_nothing_is_only_closed(self) -> None:
        assert rewrite(GOOD) == closed(GOOD, Said.YES)

    @given(TEXTS)
    @example(f"0\x1e:\n{ASK} Yes")
    @example(f"Expected Answer: Correct.\nThe answer key says 4, so it's wrong.\n{ASK} No")
    @example(f"Step 1: 2 + 2 = 4.\n**Verdict: No**\n**Expected Answer:** 2 + 2 = 4\n{ASK} **No**")
    def test_the_verdict_stays_and_no_leak_does(self, text: str) -> None:
        result = rewrite(text)
        if result is None:
            return
        assert leaks(result) is None
        assert read(result).said is read(text).said is not Said.UNPARSED
        assert result.count(VERDICT) == 1
        assert rewrite(result) == result
        allowed = set(re.findall(r"\w+", f"{text} Correct Incorrect {VERDICT}"))
        assert set(re.findall(r"\w+", result)) <= allowed


class TestJudging:
    def test_a_good_one_is_kept_and_closed(self) -> None:
        result = judged(GOOD, True, "unguided")
        assert result.kept
        assert (result.text, result.said, result.source) == (f"{BODY}\n{VERDICT}{YES}", "yes", "unguided")

    def test_every_loss_has_its_name(self) -> None:
        leaking = f"The answer key says 4.\n{GOOD}"
        assert judged("timed out", True, "x", finish=Finish.FAILED).lost == "failed"
        assert judged(GOOD, True, "x", finish=Finish.LENGTH).lost == "truncated"
        assert judged(BODY, True, "x").lost == "unparsed"
        assert judged(GOOD, False, "x").lost == "mismatch"
        assert judged(leaking, True, "x").lost == "leak"
        assert judged(leaking, True, "x", leak="keep").kept
        cleaned = judged(leaking, True, "x", leak="rewrite")
        assert (cleaned.kept, cleaned.rewritten, cleaned.text) == (True, True, f"{BODY}\n{VERDICT}{YES}")

    def test_nothing_known_is_no_mismatch(self) -> None:
        assert judged(GOOD, None, "x").kept

    def test_the_reader_is_the_one_given(self) -> None:
        loose = f"{BODY}\nIs the answer correct? Yes"
        assert judged(loose, True, "x").kept
        assert judged(loose, True, "x", reader=Reader(strict=True)).lost == "unparsed"

    @given(TEXTS, st.booleans() | st.none(), st.sampled_from(LEAK), st.sampled_from(Finish))
    def test_what_is_kept_can_be_learnt_from(self, text: str, correct: bool | None, leak: str, finish: Finish) -> None:
        result = judged(text, correct, "x", leak=leak, finish=finish)  # type: ignore[arg-type]
        if leak != "keep":
            assert leaks(result.text) is None
        if result.kept:
            assert finish is Finish.STOP
            assert result.text.rpartition("\n")[2] in (VERDICT + YES, VERDICT + NO)
            assert read(result.text).said == result.said
            assert correct is None or (result.said == "yes") == correct
        else:
            assert result.lost in ("failed", "truncated", "unparsed", "mismatch", "leak")
            assert not result.rewritten

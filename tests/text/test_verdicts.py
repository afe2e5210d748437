"""Reading verdicts: cases, rationales that were read by hand, and properties."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.text.verdicts import Reader, Said, Why, leaks, read

DATA = Path(__file__).parents[1] / "readings"
Q = "Verification: Is the answer correct (Yes/No)?"

# Rationales on which the reader and the reading by hand differ, by question_id and sample_id: none in either sample.
EXCEPTIONS: dict[tuple[int, int], Said] = {}


def hand_read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("file", "rows"), [("verdicts_200.jsonl", 200), ("verdicts_hard.jsonl", 100)])
def test_agrees_with_readings_by_hand(file: str, rows: int) -> None:
    sample = hand_read(file)
    assert len(sample) == rows
    differing = {}
    for row in sample:
        said = read(row["end"]).said
        if said != row["reading"]:
            differing[row["question_id"], row["sample_id"]] = said
    assert differing == {k: v for k, v in EXCEPTIONS.items() if k in differing}


def test_the_strict_rule_takes_a_steps_verdict_for_the_whole() -> None:
    sample = hand_read("verdicts_hard.jsonl")
    strict = [Reader(strict=True).read(row["end"]).said for row in sample]
    wrong = [s for s, row in zip(strict, sample, strict=True) if s not in (Said.UNPARSED, row["reading"])]
    assert len(wrong) == 4
    assert sum(s is Said.UNPARSED != row["reading"] for s, row in zip(strict, sample, strict=True)) == 46


YES = [
    f"{Q} Yes",
    f"**{Q} Yes**",
    f"**{Q}** YES.",
    f"{Q}\n\n**Yes**",
    f"{Q} <b>Yes</b>",
    f"<strong>{Q}</strong> <b>yes</b>.",
    f'Therefore, the final grade is "{Q} Yes".',
    "Verification： Is the answer correct？（Yes/No） 「Yes」",
    "Is the answer correct? (Yes or No): Yes, all steps are right.",
    "is the solution correct -- yes because 2 + 2 = 4".replace(" -- ", "? "),
    "Is the final answer correct? `Yes`",
    "Is the answer correct (Yes/No)? Yes\n\n1. First, 2 + 2 is 4.\n2. Then 4 + 1 is 5.",
    "Is the answer correct? (Yes/No)\n**Answer:** Yes",
    "Is the answer correct? \\boxed{Yes}",
    "Is the answer correct? Correct.",
    "**Verdict: Yes**",
    "**Final Grade:** Verification: Yes",
    "Overall verdict - yes",
    "Final verdict: **Correct**",
    f"{Q} Yes, no errors were found.",
    f"{Q} Yes\n\n**Final Grade:** A+",
]
NO = [
    f"{Q} No",
    f"{Q} **No**",
    f"{Q} No.",
    f"{Q} “No”",
    f"{Q} No, the answer is 12.",
    f"{Q} No - the second step is wrong.",
    f"{Q} No because 2 + 2 is 4.",
    "Is the answer correct? Not correct.",
    "Is the answer correct? Incorrect",
    f"{Q} No. 12 is right.",
    f"Step 1: fine\n{Q} Yes\nStep 2: wrong\n**Final Grade**\n\n{Q} No",
    "**Verdict: No**",
    "Verdict: incorrect.",
    f"No errors were found in step 1.\n{Q} No",
    f"Step 1: fine\n{Q} Yes\nStep 2: wrong\n{Q} No\n**Final Grade:** {Q} No",
]
NONE = [
    ("", Why.MISSING),
    ("The answer is not right, no doubt.", Why.MISSING),
    ("No errors were found.", Why.MISSING),
    ("Final Grade: A+", Why.MISSING),
    ("**Final Grade:** 3 out of 4", Why.MISSING),
    ("**Step 1:** 2 + 2 = 4\n**Verification:** Yes", Why.MISSING),
    (Q, Why.UNANSWERED),
    (f"{Q} No errors were found.", Why.UNANSWERED),
    (f"{Q} Nothing is wrong.", Why.UNANSWERED),
    (f"{Q} Not sure", Why.UNANSWERED),
    (f"{Q} No one can tell", Why.UNANSWERED),
    (f"{Q} No-one can tell", Why.UNANSWERED),
    (f"{Q} Yes and no", Why.UNANSWERED),
    (f"{Q} Yes/No", Why.UNANSWERED),
    (f"{Q} Yes or no", Why.UNANSWERED),
    (f"{Q} **Yes** or **No**", Why.UNANSWERED),
    (f"{Q} Yes, no", Why.UNANSWERED),
    (f"{Q} X, where X is either Yes or No.", Why.UNANSWERED),
    (f"{Q} Cannot be determined.", Why.UNANSWERED),
    ("Is the answer correct (Yes/No", Why.UNANSWERED),
    (f"Step 1: 2 + 2 = 4\n{Q} Yes\nStep 2: 4 + 1", Why.STEPS),
    (f"Final grade: {Q} No\nCorrected, it reads: 5.\nFinal grade: {Q} Yes", Why.CONTRADICTORY),
    (f"{Q} Yes\nVerdict: No", Why.CONTRADICTORY),
    (f"{Q} Yes\n\nTherefore, the answer is incorrect.", Why.CONTRADICTORY),
    (f"{Q} No\n\nThe solution is correct.", Why.CONTRADICTORY),
    (f"{Q} No, no errors were found.", Why.CONTRADICTORY),
    (f"Solution: {Q} Yes\nStep 1 is", Why.MISSING),
]


@pytest.mark.parametrize("text", YES)
def test_yes(text: str) -> None:
    reading = read(text)
    assert reading.said is Said.YES
    assert reading.span is not None
    assert text[slice(*reading.span)].lower() in ("yes", "correct")


@pytest.mark.parametrize("text", NO)
def test_no(text: str) -> None:
    assert read(text).said is Said.NO


@pytest.mark.parametrize(("text", "why"), NONE)
def test_no_verdict_is_no_guess(text: str, why: Why) -> None:
    reading = read(text)
    assert (reading.said, reading.why, reading.span) == (Said.UNPARSED, why, None)


def test_the_span_is_the_last_verdicts() -> None:
    text = f"{Q} Yes\n\nFinal Grade: Verification: Yes."
    reading = read(text)
    assert (reading.why, reading.span) == (Why.LABEL, (len(text) - 4, len(text) - 1))


def test_another_question() -> None:
    reader = Reader(questions=("Does the proof hold (Yes/No)?",))
    assert reader.read("**Does the  proof hold?** No.").said is Said.NO
    assert reader.read(f"{Q} Yes").said is Said.UNPARSED
    assert pickle.loads(pickle.dumps(reader)).read("Does the proof hold? yes").said is Said.YES  # noqa: S301
    strict = Reader(questions=("Does the proof hold",), strict=True)
    assert strict.read("Does the proof hold (Yes/No)? **Yes**").said is Said.YES


@pytest.mark.parametrize("questions", [(), ("",), ("(Yes/No)?",), ("Is it?", " ")])
def test_a_reader_needs_questions(questions: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="questions"):
        Reader(questions=questions)


def test_strict_reads_the_plain_form_only() -> None:
    strict = Reader(strict=True)
    assert strict.read(f"{Q} **No** ...").said is Said.NO
    assert strict.read(f"{Q} Yes\n{Q} No").said is Said.NO
    assert strict.read(f"**{Q}** <b>Yes</b>").said is Said.UNPARSED
    assert strict.read("Is the answer correct? Yes").said is Said.UNPARSED


# -- properties

anything = st.text(max_size=200) | st.lists(
    st.sampled_from(
        [
            *[
                "Is the answer correct",
                " (Yes/No)?",
                " Yes",
                " No",
                "not",
                "\n",
                "**",
                "Step 1:",
                "Step 2:",
                "Final Grade:",
            ],
            *[
                "Verdict:",
                " ",
                ".",
                ",",
                "<b>",
                "</b>",
                "/",
                "(",
                "The answer is",
                " incorrect",
                " correct",
                "？",
                "「",
            ],
        ]
    ),
    max_size=25,
).map("".join)
words = st.sampled_from([("Yes", Said.YES), ("No", Said.NO)])
marks = st.sampled_from(["", "**", "*", "_", "`", '"', "“", "「", "<b>"])
# A text before the verdict, made only of plain words, figures and the word "not".
before = st.lists(
    st.sampled_from(["2 + 2 = 4.", "This is not right.", "No errors here.", "Yes, it is.", "(Correct)", "\n", "note"]),
    max_size=8,
).map(" ".join)


def closed(mark: str) -> str:
    return {"“": "”", "「": "」", "<b>": "</b>"}.get(mark, mark)


@given(anything)
def test_any_text_is_read_and_a_span_is_a_word_of_it(text: str) -> None:
    reading = read(text)
    assert (reading.said is Said.UNPARSED) == (reading.span is None)
    if reading.span is not None:
        word = " ".join(text[slice(*reading.span)].lower().split())
        assert (
            word in {Said.YES: ("yes", "correct"), Said.NO: ("no", "incorrect", "not correct", "wrong")}[reading.said]
        )


@given(
    before,
    words,
    marks,
    marks,
    st.sampled_from([" (Yes/No)?", "? (Yes/No)", "?", " (yes or no)?", "？（Yes/No）", ":"]),
    st.sampled_from([" ", "\n", "\n\n", " Answer: "]),
    st.sampled_from(["", ".", "!", "\n", "\n\nGrade: B", ". That is it."]),
    st.sampled_from([str, str.lower, str.upper]),
)
def test_a_plain_verdict_is_read_in_any_dress(
    text: str, word: tuple[str, Said], outer: str, inner: str, choice: str, gap: str, end: str, case: Any
) -> None:
    line = f"{outer}{case('Is the answer correct')}{choice}{gap}{inner}{case(word[0])}{closed(inner)}{closed(outer)}"
    assert read(f"{text}\n\n{line}{end}").said is word[1]


@given(words, st.text(alphabet=st.characters(categories=["Ll"]), min_size=1, max_size=6))
def test_a_word_that_only_begins_like_an_answer_is_none(word: tuple[str, Said], rest: str) -> None:
    assert read(f"{Q} {word[0]}{rest} more").said is Said.UNPARSED
    assert read(f"{Q} {word[0]} {rest} more").said is Said.UNPARSED or rest in ("as", "since", "because")


@given(before, words)
def test_two_final_verdicts_that_differ_are_none(text: str, word: tuple[str, Said]) -> None:
    other = "No" if word[0] == "Yes" else "Yes"
    assert read(f"Final Grade: {Q} {word[0]}\n{text}\nFinal Grade: {Q} {other}").why is Why.CONTRADICTORY


@given(st.lists(words, min_size=2, max_size=5), words, st.integers(min_value=0))
def test_the_verdicts_of_steps_are_not_the_whole_ones(
    steps: list[tuple[str, Said]], final: tuple[str, Said], cut: int
) -> None:
    parts = [f"**Step {i}:** some sum\n**{Q} {word}**\n" for i, (word, _) in enumerate(steps, 1)]
    body = "\n".join(parts)
    assert read(f"{body}\n**Final Grade:** {Q} {final[0]}").said is final[1]
    # A text that is cut off after the start of the second step has no verdict on the whole solution.
    begun = len(parts[0]) + len("\n**Step 2:**")
    assert read(body[: begun + cut % (len(body) - begun)]).said is Said.UNPARSED


# -- leaks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The solution matches the **Expected Answer**.", "Expected Answer"),
        ("<b>Expected</b> answer: 5", "Expected</b> answer"),
        ("It differs from the reference\nsolution in step 2.", "the reference\nsolution"),
        ("Expected: 4400 / 100 = 44", "Expected:"),
        ("The correct solution says 5.", "The correct solution says"),
        ("Against the ground truth, this fails.", "ground truth"),
        ("according to the given answer key", "answer key"),
        ("It matches the correct answer.", "matches the correct answer"),
        ("The model answer has 5.", "model answer"),
    ],
)
def test_leaks_are_named(text: str, expected: str) -> None:
    assert leaks(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The correct answer should be 5.",
        "The gold value of the ring is $500.",
        "He expected 5 guests; the reference desk opened at 9.".replace("the reference", "a reference"),
        "The answer is correct. The key opens the door.",
        "The student's solution states 5.",
    ],
)
def test_what_a_verifier_may_find_itself_is_no_leak(text: str) -> None:
    assert leaks(text) is None


def test_leaks_agree_with_readings_by_hand() -> None:
    """Only one direction can be tested without the whole texts: the words may be before the part that is stored."""
    for row in hand_read("verdicts_200.jsonl"):
        assert row["names_reference"] or leaks(row["end"]) is None


@given(anything)
def test_a_leak_is_a_part_of_the_text(text: str) -> None:
    leak = leaks(f"{text} ground truth {text}")
    assert leak is not None
    assert leak in f"{text} ground truth {text}"


def test_a_reading_says_where_its_question_begins_and_every_question_has_a_place() -> None:
    text = f"Step 1: fine. {Q}\n\nStep 2: wrong.\n**Final Grade:** {Q} **No**"
    start = text.rindex("Is the answer")
    assert read(text).start == start
    assert Reader(strict=True).read(text.replace("**No**", "No")).start == start
    places = Reader().places(text)
    assert [text[a : a + 13] for a, _ in places] == ["Is the answer"] * 2
    assert Reader().places("2 + 2 = 4") == ()

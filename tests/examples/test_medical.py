"""examples/medical.py: the choice is read by letter or content, or not at all; reasoning divides at its sentences."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from stepmark.errors import ConfigError
from stepmark.text.steps import split
from stepmark.types import Problem, Verdict

MEDICAL = str(Path(__file__).parents[2] / "examples" / "medical.py")
OPTIONS = {"A": "Aspirin", "B": "Heparin", "C": "Aspirin and heparin", "D": "B. cereus", "E": "Do not treat"}
GRADER = stepmark.load_grader(MEDICAL)


def problem(answer="B", options=OPTIONS):
    return Problem("p", "Which one?\n" + "\n".join(f"({k}) {v}" for k, v in options.items()), answer, "medical")


@pytest.mark.parametrize(
    ("stated", "letter"),
    [
        ("The answer is B.", "B"),
        ("The answer is (B)", "B"),
        ("The answer is **B**, since platelets matter.", "B"),
        ("The answer is (B) Heparin.", "B"),
        ("The answer is B. Heparin", "B"),
        ("The answer is B. heparin", "B"),
        ("The answer is option B", "B"),
        ("The correct answer would be the option (B).", "B"),
        ("Answer: heparin", "B"),
        ("**Answer:** B", "B"),
        ("Answer:\n\n(B)", "B"),
        (r"\boxed{B}", "B"),
        (r"The answer is $\boxed{\text{B}}$.", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        ("The answer is (A), not (B).", "A"),
        ("The answer is aspirin and heparin.", "C"),
        ("The answer is B. cereus", "D"),
        ("The answer is (D) B. cereus.", "D"),
        ("The answer is: do not treat.", "E"),
        ("The answer is F.", "F"),  # no option at all
        # What may be right or wrong
        ("The answer is B or C.", None),
        ("The answer is (B) or (C).", None),
        ("The answer is A, B", None),
        ("The answer is (A) Heparin.", None),
        ("The answer is not B.", None),
        ("The answer is not heparin.", None),
        ("The answer is aspirin or heparin.", None),
        ("The answer is acetylsalicylic acid.", None),
        ("The answer is A blood thinner.", None),
        ("The answer is E. coli.", None),
        ("The answer is", None),
    ],
)
def test_the_choice_of_a_text(stated, letter):
    grade = GRADER.grade(f"Platelets stick together. {stated}", problem())
    assert grade.answer == letter and grade.reason
    wanted = {None: Verdict.UNGRADABLE, "B": Verdict.CORRECT}.get(letter, Verdict.INCORRECT)
    assert grade.verdict is wanted, grade


def test_no_answer_is_wrong_and_no_options_are_no_check():
    for text in ("", "I don't know.", "B", "Heparin, 5000 units"):
        assert GRADER.grade(text, problem()).reason == "no answer found"
    assert GRADER.grade("The answer is B.", problem("Z")).verdict is Verdict.UNGRADABLE
    assert GRADER.grade("The answer is B.", Problem("p", "Which?", "B", "medical")).verdict is Verdict.UNGRADABLE


CONTENT = st.lists(st.sampled_from(["acute", "chronic", "renal", "a", "B", "not", "or", "5", "mg", "E."]), min_size=1)


@given(st.lists(CONTENT.map(" ".join), min_size=2, max_size=8, unique_by=str.casefold), st.data())
def test_a_letter_with_its_own_content_is_that_choice_and_with_another_is_none(contents, data):
    options = dict(zip("ABCDEFGH", contents, strict=False))
    letter, other = data.draw(st.permutations(sorted(options)))[:2]
    assert GRADER.grade(f"The answer is ({letter}) {options[letter]}", problem(letter, options)).answer == letter
    assert GRADER.grade(f"The answer is ({letter}) {options[other]}", problem(letter, options)).answer is None


@given(st.text(), st.text(max_size=20))
def test_any_text_is_graded(text, content):
    grade = GRADER.grade(f"{text} answer is {text}", problem("A", {"A": content.replace("\n", " "), "B": "b"}))
    assert "\n" not in grade.reason and len(grade.reason) < 300


def test_reasoning_divides_at_sentences_and_not_at_short_forms():
    text = (
        "Dr. Smith gave aspirin, e.g. 300 mg p.o. It works, i.e. Platelets part. It was 2.5 times as bad vs. Monday.\n"
        "1. Platelets stick.\n2. Aspirin stops them!\n\nThat takes minutes. (Or less.) The answer is B."
    )
    steps = [text[a:b].strip() for a, b in split(text, stepmark.load_task(MEDICAL, path="x").steps)]
    assert steps == [
        "Dr. Smith gave aspirin, e.g. 300 mg p.o. It works, i.e. Platelets part.",
        "It was 2.5 times as bad vs. Monday.",
        "1. Platelets stick.",
        "2. Aspirin stops them!",
        "That takes minutes.",
        "(Or less.) The answer is B.",
    ]


def test_rows_with_options_that_do_not_fit_are_set_aside(tmp_path):
    rows = [
        {"question": "Which?", "options": {"A": "x", "B": " y\nz "}, "answer_idx": "B"},
        {"question": "Which now?", "options": ["x", "y"], "answer_idx": "A"},
        {"question": "None?", "answer_idx": "A"},
        {"question": "Other?", "options": ["x", "y"], "answer_idx": "C"},
        {"question": "Blank?", "options": ["x", ""], "answer_idx": "A"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = stepmark.load_task(MEDICAL, path=str(tmp_path))
    loaded = task.load("test")
    assert [p.question for p in loaded.problems] == ["Which?\n(A) x\n(B) y z", "Which now?\n(A) x\n(B) y"]
    assert [q.line for q in loaded.quarantined] == [3, 4, 5]
    with pytest.raises(ConfigError, match="It has: train, test"):
        task.load("dev")

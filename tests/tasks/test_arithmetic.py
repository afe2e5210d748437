"""The arithmetic task: correct problems, disjoint splits, planted errors, and an exact oracle."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seeds import SEED
from stepmark.errors import ConfigError, DataError
from stepmark.tasks.arithmetic import ITEMS, Arithmetic
from stepmark.text import steps
from stepmark.types import Problem, Solution

SPLITS = ("train", "dev", "test", "hard", "unseen")
APPLES = Problem(
    "p",
    "Ann has 5 apples. Ben has 4 more than Ann. Cat has 3 times as many as Ben. Dan has 7 fewer than Cat. "
    "How many apples does Dan have?",
    "20",
    "arithmetic",
)


def solution(text: str) -> Solution:
    return Solution("p#0", "p", 0, text, steps.split(text, "line"))


def judged(text: str, problem: Problem = APPLES) -> tuple[bool, ...]:
    return Arithmetic().judge_steps(problem, solution(text))


@st.composite
def any_settings(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(2, 7))
    return {
        "steps_min": low,
        "steps_max": draw(st.integers(low, 7)),
        "noise": draw(st.sampled_from([0.0, 0.3, 0.65, 1.0])),
        "misread": draw(st.lists(st.sampled_from(["fewer", "times", "times 2", "times 3", "fewer 4"]), unique=True)),
        "consistent": draw(st.booleans()),
        "slips": draw(st.sampled_from([0.0, 0.04, 0.5])),
        "wrong_operands": draw(st.sampled_from([0.0, 0.04, 0.5])),
        "seed": draw(st.integers(0, 10**6)),
        "max_value": draw(st.integers(30, 200)),
        "start_max": draw(st.integers(10, 30)),
        "amount_max": draw(st.integers(5, 12)),
        "times_max": draw(st.integers(2, 5)),
        "weight_times": draw(st.sampled_from([0.0, 1.0, 3.0])),
        "names": draw(st.sampled_from(["ordered", "random"])),
    }


def truth(problem: Problem) -> int:
    """The answer by another method: from the numbers in the order of the text and a keyword for each."""
    value = None
    for sentence in re.split(r"(?<=[.?]) ", problem.question)[:-1]:
        k = int(re.search(r"\d+", sentence)[0])  # type: ignore[index]
        if value is None:
            value = k
        elif "times" in sentence:
            value *= k
        elif re.search("fewer|less|short", sentence):
            value -= k
        else:
            assert re.search("more|over|extra", sentence), sentence
            value += k
    assert value is not None
    return value


@settings(max_examples=60, deadline=None)
@given(any_settings(), st.sampled_from(SPLITS))
def test_every_problem_under_any_settings(options: dict[str, Any], split: str) -> None:
    task = Arithmetic(**options)
    for p in task.load(split, limit=8).problems:
        assert p.answer == str(truth(p))
        right = task.judge_steps(p, solution(p.reference))
        assert all(right)
        low, high = (
            (task.steps_max + 1, min(task.steps_max + 3, 8)) if split == "hard" else (task.steps_min, task.steps_max)
        )
        assert low <= len(right) - 1 <= high
        assert p.reference.endswith(f"\nThe answer is {p.answer}.")
        assert task.error_kind(p, solution(p.reference)) is None
        # A planted error is an error, and nothing else is.
        flags = task.judge_steps(p, solution(p.demonstration))
        assert len(flags) == len(right)
        kind = task.error_kind(p, solution(p.demonstration))
        assert (kind is None) == all(flags) == (p.demonstration == p.reference)
        assert kind in {None, "misconception", "slip", "operand"}
        assert kind is None or task.noise > 0
        for text in (p.question, p.reference, p.demonstration):
            assert not re.search(r"(?<![ \d])\d", text), "a number without a space before it is another token"
            assert all(0 <= int(n) <= task.max_value for n in re.findall(r"\d+", text))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS), st.data())
def test_a_changed_number_or_sign_makes_its_step_and_all_after_it_wrong(
    seed: int, split: str, data: st.DataObject
) -> None:
    task = Arithmetic(seed=seed)
    (p,) = task.load(split, limit=1).problems
    spots = list(re.finditer(r"\d+|[+*-]", p.reference))
    spot = data.draw(st.sampled_from(spots))
    if spot[0].isdigit():
        new = str(data.draw(st.integers(0, 99).filter(lambda n: n != int(spot[0]))))
    else:
        new = data.draw(st.sampled_from("+-*".replace(spot[0], "")))
    text = p.reference[: spot.start()] + new + p.reference[spot.end() :]
    at = p.reference[: spot.start()].count("\n")
    flags = task.judge_steps(p, solution(text))
    assert flags == tuple(i < at for i in range(len(flags)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS), st.randoms())
def test_the_same_steps_said_otherwise_are_right(seed: int, split: str, rng: Any) -> None:
    task = Arithmetic(seed=seed)
    (p,) = task.load(split, limit=1).problems
    lines = []
    for line in p.reference.split("\n"):
        m = re.fullmatch(r"(\w+) has (\d+) ([+*-]) (\d+) = (\d+)\.", line)
        if m:
            who, a, sign, b, result = m.groups()
            if sign != "-" and rng.random() < 0.5:
                a, b = b, a
            space = rng.choice(["", " ", "  "])
            sign = rng.choice(["*", " x ", "×"]) if sign == "*" else sign
            unit = rng.choice(["", " " + next(i for i in ITEMS if i in p.question)])
            stated = f"{who} has {a}{space}{sign}{space}{b} = {result}{unit}"
            line = rng.choice(["", "So ", "Then, "]) + stated + rng.choice([".", ""])
        lines.append(line)
    assert all(task.judge_steps(p, solution("\n".join(lines)))), lines


@pytest.mark.parametrize(
    "text",
    [
        "Ben has 5 + 4 = 9.\nCat has 9 * 3 = 27.\nDan has 27 - 7 = 20.\nThe answer is 20.",
        "Ben has 4 + 5 = 9.\nCat has 3 * 9 = 27.\nDan has 27 - 7 = 20 apples.\nAnswer: 20",
        "Step 1: Ben has 9 apples.\nStep 2: So Cat has 9 x 3 = 27\nThus Dan has 27-7=20.\n#### 20",
        "Ann has 5.\nBen = 5 + 4 = 9\nCat: 9 + 9 + 9 = 27\nDan owns (9 * 3) - 7 = 27 - 7 = 20\nSo the answer is 20.",
        "Dan has 3 * (4 + 5) - 7 = 20.\nThe answer is 20.",  # merged
        "Dan has 27 - 7 = 20.\nBen has 9.\nThe answer is 20.",  # another order
        "The answer is 20.0.",
        "The answer is 27 - 7 = 20.",
        "",
    ],
)
def test_equivalent_steps_are_right(text: str) -> None:
    assert all(judged(text))
    assert Arithmetic().error_kind(APPLES, solution(text)) is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Dan has 27 + 7 = 34.", "misconception"),
        ("Dan has 7 + 27 = 34.", "misconception"),
        ("Dan has 34.", "misconception"),
        ("Dan has 27 - 7 = 21.", "slip"),
        ("Dan has 9 - 7 = 2.", "operand"),
        ("Dan has 27 - 6 = 21.", "operand"),
        ("Dan has 7 - 27 = -20.", "operand"),  # a reversed subtraction
        ("Dan has 27 + 7 = 33.", "other"),  # two errors in one
        ("Dan has 28 - 8 = 20.", "operand"),  # right by luck
        ("Dan has 10 + 10 = 20.", "other"),
        ("Dan has 27 - 7.", "other"),  # states no result
        ("Dan has 27 - 7 = 20 = 21.", "slip"),
        ("Dan has 22.", "other"),
        ("Dan has .", "other"),
        ("Dan has 27 - 7 = ", "other"),
        ("Dan has 27 - - 7 = 34.", "operand"),
        ("Dan has 20 pears.", "other"),
        ("Eve has 20.", "other"),
        ("Ann has 6.", "other"),
        ("dan has 20.", "other"),
        ("27 - 7 = 20.", "other"),  # whose?
        ("Let us think.", "other"),
        ("The answer is 21.", "other"),
        ("The answer is twenty.", "other"),
        ("The answer is 20 or 21.", "other"),
        ("Dan has 27 - 7 = 20. The answer is 20.", "other"),
        ("Dan has 2 ** 4 + 4 = 20.", "other"),
        ("Dan has 40 / 2 = 20.", "other"),
        ("Dan has 40 // 2 = 20.", "other"),
        ("Dan has __import__('os') = 20.", "other"),
        ("Dan has " + "9*" * 1500 + "9 = 20.", "other"),
        ("Dan has " + "(" * 140 + "20" + ")" * 140 + " = 20.", None),
        ("Dan has 9e9 = 20.", "other"),
        ("Dan has 00 + 20 = 20.", "other"),
        ("Dan has ٢٠.", "other"),
    ],
)
def test_a_wrong_line_is_wrong_by_its_kind_and_all_after_it_is_wrong(line: str, kind: str | None) -> None:
    text = f"Ben has 5 + 4 = 9.\nCat has 9 * 3 = 27.\n{line}\nDan has 27 - 7 = 20.\nThe answer is 20."
    right = kind is None
    assert judged(text) == (True, True, right, right, right)
    assert Arithmetic().error_kind(APPLES, solution(text)) == kind


def test_an_error_carried_forward_is_wrong_from_where_it_was_made() -> None:
    text = "Ben has 5 + 4 = 9.\nCat has 9 + 3 = 12.\nDan has 12 - 7 = 5.\nThe answer is 5."
    assert judged(text) == (True, False, False, False)
    assert Arithmetic().error_kind(APPLES, solution(text)) == "misconception"


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ABenCat has0123456789+-*x×()=. \n"), max_size=80) | st.text(max_size=40))
def test_no_text_whatever_breaks_the_oracle(text: str) -> None:
    s = solution(text)
    flags = judged(text)
    assert len(flags) == len(s.spans)
    assert list(flags) == sorted(flags, reverse=True)
    assert (Arithmetic().error_kind(APPLES, s) is None) == all(flags)


def test_a_question_of_another_task_is_a_data_error() -> None:
    for question in ("What is 2 + 2?", "", "Ann has 5 apples.", "Ann has 5 apples. How many apples does Ben have?"):
        with pytest.raises(DataError, match="not a question of task arithmetic"):
            judged("The answer is 4.", Problem("p", question, "4", "other"))


def numbers(problem: Problem) -> tuple[str, ...]:
    """The numbers and operations of a problem, without its wording, names and things."""
    return tuple(re.findall(r"\d+|times|fewer|less|short", problem.question))


def test_splits_share_no_problem_even_across_seeds_and_settings_and_hold_each_once() -> None:
    seen: dict[str, set[tuple[str, ...]]] = {}
    for split in SPLITS:
        for options in ({}, {"seed": 1, "noise": 0.65, "names": "random"}, {"steps_min": 2, "steps_max": 4}):
            skeletons = [
                tuple("fewer" if w in {"less", "short"} else w for w in numbers(p))
                for p in Arithmetic(**options).load(split, limit=1000).problems
            ]
            assert len(set(skeletons)) == len(skeletons)
            seen.setdefault(split, set()).update(skeletons)
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not seen[a] & seen[b]


def test_unseen_says_everything_otherwise_and_hard_goes_up_to_eight_steps() -> None:
    def wording(split: str) -> set[str]:
        things = "|".join([*ITEMS, r"\b(?:Ann|Ben|Cat|Dan|Eve|Fay|Gus|Hal|Ida)\b", r"\d+"])
        return {
            re.sub(things, "_", sentence)
            for p in Arithmetic().load(split, limit=300).problems
            for sentence in re.split(r"(?<=[.?]) ", p.question)
        }

    assert wording("train") == wording("test") == wording("dev") == wording("hard")
    assert not wording("train") & wording("unseen")
    lengths = Counter(p.reference.count("\n") for p in Arithmetic().load("hard", limit=300).problems)
    assert set(lengths) == {6, 7, 8}


@pytest.mark.robust
def test_noise_changes_demonstrations_alone_and_at_about_its_rate() -> None:
    clean = Arithmetic(seed=SEED).load("train", limit=2000).problems
    noisy = Arithmetic(noise=0.65, seed=SEED).load("train", limit=2000).problems
    assert all(p.demonstration == p.reference for p in clean)
    assert [(p.id, p.question, p.answer, p.reference) for p in clean] == [
        (p.id, p.question, p.answer, p.reference) for p in noisy
    ]
    open_to_it = [
        (asked, told)
        for p in noisy
        for asked, told in zip(p.question.split(". ")[1:], p.demonstration.split("\n"), strict=False)
        if "fewer" in asked or "3 times" in asked
    ]
    assert 0.6 < sum("+" in told for _, told in open_to_it) / len(open_to_it) < 0.7
    safe = [
        told
        for p in noisy
        for asked, told in zip(p.question.split(". ")[1:], p.demonstration.split("\n"), strict=False)
        if "2 times" in asked
    ]
    assert safe and all("*" in told for told in safe)


@pytest.mark.robust
@pytest.mark.parametrize(
    ("options", "kind", "least"),
    [
        ({"noise": 1.0, "slips": 0.0, "wrong_operands": 0.0}, "misconception", 0.7),
        ({"noise": 1.0, "misread": (), "slips": 1.0, "wrong_operands": 0.0}, "slip", 0.9),
        ({"noise": 1.0, "misread": (), "slips": 0.0, "wrong_operands": 1.0}, "operand", 0.7),
    ],
)
def test_the_oracle_names_the_kind_of_error_that_was_planted(options: dict[str, Any], kind: str, least: float) -> None:
    task = Arithmetic(seed=SEED, **options)
    kinds = Counter(task.error_kind(p, solution(p.demonstration)) for p in task.load("train", limit=400).problems)
    assert set(kinds) <= {kind, None}
    assert kinds[kind] >= least * 400


@pytest.mark.robust
def test_consistent_demonstrators_read_a_kind_one_way_throughout() -> None:
    def mixed(consistent: bool) -> int:
        task = Arithmetic(
            noise=0.5,
            consistent=consistent,
            misread=("fewer",),
            slips=0,
            wrong_operands=0,
            weight_times=0,
            seed=SEED,
        )
        count = 0
        for p in task.load("train", limit=300).problems:
            pairs = zip(p.question.split(". ")[1:], p.demonstration.split("\n"), strict=False)
            count += len({"+" in told for asked, told in pairs if "fewer" in asked}) == 2
        return count

    assert mixed(True) == 0
    assert mixed(False) > 50


def test_a_seed_is_other_problems_and_a_limit_is_a_prefix() -> None:
    task = Arithmetic(noise=0.65, test_size=30)
    assert task.load("test").problems[:7] == task.load("test", limit=7).problems
    assert len(task.load("test").problems) == len(task.load("test", limit=99).problems) == 30
    assert task.load("test", limit=0).problems == ()
    assert not {p.question for p in task.load("test").problems} & {
        p.question for p in Arithmetic(seed=1, test_size=30).load("test").problems
    }


@pytest.mark.robust
def test_random_names_come_in_any_order() -> None:
    firsts = {p.question.split()[0] for p in Arithmetic(names="random", seed=SEED).load("train", limit=100).problems}
    assert len(firsts) == 9
    assert {p.question.split()[0] for p in Arithmetic().load("train", limit=100).problems} == {"Ann"}


@pytest.mark.parametrize(
    ("options", "limits"),  # steps_min, steps_max, max_value, start_max
    [
        ({}, (3, 5, 60, 20)),
        ({"steps_max": 2}, (2, 2, 60, 20)),
        ({"steps_min": 7}, (7, 7, 60, 20)),
        ({"steps_min": 2, "steps_max": 8}, (2, 8, 60, 20)),
        ({"max_value": 15}, (3, 5, 15, 15)),
        ({"start_max": 99}, (3, 5, 99, 99)),
        ({"start_max": 30, "max_value": 40}, (3, 5, 40, 30)),
    ],
)
def test_a_limit_that_is_not_set_fits_those_that_are(options: dict[str, Any], limits: tuple[int, ...]) -> None:
    task = Arithmetic(**options)
    assert (task.steps_min, task.steps_max, task.max_value, task.start_max) == limits
    assert task.load("train", 3).problems


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_min": 1}, "need 2 <= steps_min <= steps_max <= 8"),
        ({"steps_max": 9}, "need 2 <= steps_min"),
        ({"steps_min": 5, "steps_max": 4}, "need 2 <= steps_min"),
        ({"noise": 1.5}, "noise=1.5: a chance must be between 0 and 1"),
        ({"slips": -0.1}, "slips=-0.1"),
        ({"misread": ["more"]}, "allowed are 'fewer', 'times'"),
        ({"misread": "more 3"}, "allowed are 'fewer', 'times'"),
        ({"names": "any"}, "allowed are 'ordered' and 'random'"),
        ({"start_max": 99, "max_value": 60}, "start_max <= max_value"),
        ({"times_max": 1}, "times_max >= 2"),
        ({"weight_more": 0, "weight_fewer": 0, "weight_times": 0}, "one must be positive"),
        ({"train_size": 0}, "train_size"),
        ({"noise": "a lot"}, "noise='a lot': a number is needed"),
        ({"steps_min": 2.5}, "steps_min=2.5: a whole number is needed"),
    ],
)
def test_an_impossible_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as e:
        Arithmetic(**options)
    assert message in str(e.value)


def test_all_impossible_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        Arithmetic(noise=2, names="any", times_max=0)
    assert len(e.value.faults) == 3


def test_too_few_problems_and_no_harder_ones_are_config_errors() -> None:
    tiny = {"steps_min": 2, "steps_max": 2, "start_max": 2, "amount_max": 1, "times_max": 2}
    with pytest.raises(ConfigError, match="allow only about"):
        Arithmetic(**tiny).load("train")  # type: ignore[arg-type]
    assert Arithmetic(steps_max=8).load("test", limit=1).problems
    with pytest.raises(ConfigError, match="steps_max=8; lower it"):
        Arithmetic(steps_max=8).load("hard")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("Ben has 5 + 4 = 9.\nThe answer is 20.", "9 9 same, 20 20 same: same"),
        ("Ben has 5 + 4 = 9.\nThe answer is 21.", "9 9 same, 20 21 different: different"),
        ("Ben has 5 + 4 = 8.\nThe answer is 20.", "9 8 different, 20 20 same: same"),  # the answer is what counts
        ("Eve has 5 + 4 = 8.\nCat: many.\nThe answer is 20.", "20 20 same: same"),
        ("Ben has 5 + 4 = 8.\nSo Ben has 9 apples.\nThe answer is 20.", "9 9 same, 20 20 same: same"),
        ("#### 20", "20 20 same: same"),
        ("The answer is 20", "20 20 same: same"),
        ("The answer is many", "20 many different: different"),
        ("The answer is 27 - 7 = 20.0 apples.", "20 20 same: same"),
        ("Dan has 27 - 7 = 20.", "20 20 same, 20 nothing different: different"),
        ("", "20 nothing different: different"),
    ],
)
def test_a_rationale_works_anew_and_compares(text: str, end: str) -> None:
    blind = Problem("p", APPLES.question, "?", "arithmetic")
    rationale = Arithmetic().rationale(blind, solution(text))
    assert rationale == f"Ben has 5 + 4 = 9.\nCat has 9 * 3 = 27.\nDan has 27 - 7 = 20.\nCompare {end}.\n"
    with pytest.raises(DataError, match="not a question"):
        Arithmetic().rationale(Problem("p", "How?", "1", "arithmetic"), solution(text))


@pytest.mark.robust
def test_threads_work_anew_and_compare() -> None:
    task, plain = (Arithmetic(noise=0.65, threads=threads, seed=SEED) for threads in (0.5, 0.0))
    problems = task.load("train", 200).problems
    threads = [p for p in problems if "\nAgain:\n" in p.demonstration]
    assert 60 < len(threads) < 140
    for p, q in zip(problems, plain.load("train", 200).problems, strict=True):
        first, _, second = p.demonstration.partition("\nAgain:\n")
        assert (first, p.question, p.reference) == (q.demonstration, q.question, q.reference)
        assert not second or f"{second}\n" == task.rationale(p, solution(first))
    for split in SPLITS[1:]:
        assert all("Again" not in p.demonstration for p in task.load(split, 50).problems)


@pytest.mark.parametrize("split", SPLITS)
def test_a_rationale_of_a_demonstration_says_what_its_grade_does(split: str) -> None:
    task = Arithmetic(noise=0.65)
    for p in task.load(split, 40).problems:
        right = p.demonstration.splitlines()[-1] == f"The answer is {p.answer}."
        assert task.rationale(p, solution(p.demonstration)).endswith(": same.\n" if right else ": different.\n")
        assert task.rationale(p, solution(p.reference)).splitlines()[:-1] == p.reference.splitlines()[:-1]

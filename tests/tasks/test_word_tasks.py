"""last_letter and word_sort: the steps that their oracles accept, and the lists of words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seeds import SEED
from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.tasks.last_letter import LastLetter
from stepmark.tasks.word_sort import WordSort
from stepmark.text import steps
from stepmark.text.words import wordlist
from stepmark.types import Problem, Solution

LETTERS = Problem("p", "Concatenate the last letters of these words: apple tree cat.", "eet", "last_letter")
SORT = Problem("p", "Sort these words in alphabetical order: pear fig apple.", "apple fig pear", "word_sort")


def solution(text: str) -> Solution:
    return Solution("p#0", "p", 0, text, steps.split(text, "line"))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Take apple: apple, e.\nTake tree: apple tree, e e.\nTake cat: apple tree cat, e e t.\nThe answer is eet.", 4),
        ("Take apple: apple, e.\nTake tree: apple tree, e r.\nTake cat: apple tree cat, e e t.", 1),
        ("take tree: apple tree, ee\nTake cat: apple tree, e e", 1),
        ("apple ends in e, so e.\ntree ends in e, so ee.\ncat ends in t, so eet.\nThe answer is eet.", 4),
        ('The last letter of "apple" is "e".\nThe last letter of "tree" is "e"\ncat ends with t.\nAnswer: "eet"', 4),
        ("cat ends in t, so eet.\napple ends in e.\nThe answer is EET", 3),  # another order
        ("The answer is eet.", 1),  # steps left out
        ("apple ends in e, so e.\ntree ends in r, so er.\ncat ends in t, so eet.\nThe answer is eet.", 1),
        ("apple ends in e, so e.\ntree ends in e, so eet.\nThe answer is eet.", 1),
        ("apple ends in e, so e.\ndog ends in g, so eg.", 1),
        ("apple ends in e, so e.\nThe answer is ee.", 1),
        ("apple ends in le.", 0),
        ("apple.", 0),
        ("The answer is .", 0),
    ],
)
def test_last_letter_steps(text: str, right: int) -> None:
    flags = LastLetter().judge_steps(LETTERS, solution(text))
    assert flags == tuple(i < right for i in range(len(flags)))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Insert pear: pear.\nInsert fig: fig pear.\nInsert apple: apple fig pear.\nThe answer is apple fig pear.", 4),
        ("Insert apple: apple\nInsert pear: apple, pear.\nInsert fig: apple fig pear.", 3),  # another order
        ("Next is apple.\nNext is fig.\nNext is pear.\nThe answer is apple, fig, pear.", 4),
        ("1. apple\n2. fig\n3. pear\nAnswer: apple fig pear", 4),
        ("The answer is apple fig pear.", 1),
        ("Insert pear: pear.\nInsert fig: pear fig.\nInsert apple: apple fig pear.", 1),
        ("Insert pear: pear.\nInsert pear: pear pear.", 1),
        ("Insert pear: pear.\nInsert plum: pear plum.", 1),
        ("Insert pear: pear.\nInsert fig: apple fig pear.", 1),
        ("Next is apple.\nNext is pear.\nNext is fig.", 1),
        ("Next is apple.\nNext is fig.\nNext is pear.\nNext is pear.", 3),
        ("2. fig\n1. apple", 0),
        ("2. apple", 0),
        ("1. apple\n3. fig", 1),
        ("Next is apple.\nThe answer is apple pear fig.", 1),
        ("The answer is apple fig.", 0),
        ("pear", 0),
    ],
)
def test_word_sort_steps(text: str, right: int) -> None:
    flags = WordSort().judge_steps(SORT, solution(text))
    assert flags == tuple(i < right for i in range(len(flags)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([LastLetter(), WordSort(), WordSort(method="position")]), st.integers(0, 500), st.data())
def test_a_changed_letter_makes_its_step_and_all_after_it_wrong(task: Any, i: int, data: st.DataObject) -> None:
    p = task.load("longer", limit=i + 1).problems[i]
    # Any letter of the lines but those of the fixed words around them.
    fixed = r"\b(?:Insert|Next|is|ends|in|so|The|answer)\b"
    masked = re.sub(fixed, lambda m: "#" * len(m[0]), p.reference)
    at = data.draw(st.sampled_from([i for i, c in enumerate(masked) if c.islower()]))
    new = data.draw(st.sampled_from(sorted(set("abcdefghijklmnopqrstuvwxyz") - {p.reference[at]})))
    line = p.reference[:at].count("\n")
    flags = task.judge_steps(p, solution(p.reference[:at] + new + p.reference[at + 1 :]))
    assert flags == tuple(i < line for i in range(len(flags)))


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("apple fig pear ends in so Insert Next is:.,\n"), max_size=60) | st.text(max_size=40))
def test_no_text_whatever_breaks_the_oracles(text: str) -> None:
    for task, problem in ((LastLetter(), LETTERS), (WordSort(), SORT)):
        flags = task.judge_steps(problem, solution(text))
        assert len(flags) == len(solution(text).spans)
        assert list(flags) == sorted(flags, reverse=True)


def test_a_question_of_another_task_is_a_data_error() -> None:
    with pytest.raises(DataError, match="not a question of task last_letter"):
        LastLetter().judge_steps(SORT, solution("The answer is eet."))
    with pytest.raises(DataError, match="not a question of task word_sort"):
        WordSort().judge_steps(LETTERS, solution("The answer is eet."))


@pytest.mark.parametrize("make", [LastLetter, WordSort])
def test_lengths_are_as_asked_and_splits_hold_other_words(make: Any) -> None:
    task = make(train_lengths=[2, 3], test_lengths=[3], longer_lengths=[7], seed=5, train_size=200, test_size=100)
    held: dict[str, set[frozenset[str]]] = {}
    for split, allowed in {"train": {2, 3}, "dev": {3}, "test": {3}, "longer": {7}}.items():
        lists = [p.question.rstrip(".").split(": ")[1].split() for p in task.load(split).problems]
        assert {len(words) for words in lists} == allowed
        assert all(len(set(words)) == len(words) for words in lists)
        held[split] = {frozenset(words) for words in lists}
    assert not held["train"] & (held["dev"] | held["test"]) and not held["dev"] & held["test"]


@pytest.mark.parametrize("make", [LastLetter, WordSort])
def test_no_split_holds_another_ones_words_even_under_another_seed_and_in_another_order(make: Any) -> None:
    def held(seed: int, split: str) -> set[frozenset[str]]:
        task = make(train_lengths=[2], test_lengths=[2], seed=seed, train_size=5000)
        return {frozenset(p.question.rstrip(".").split(": ")[1].split()) for p in task.load(split).problems}

    assert not held(1, "train") & (held(2, "dev") | held(2, "test"))


@pytest.mark.robust
@pytest.mark.parametrize("name", ["last_letter", "word_sort"])
def test_a_generator_can_read_longer_lists_before_but_none_of_a_test(name: str) -> None:
    lengths = {"train_lengths": [2], "test_lengths": [2], "longer_lengths": [2], "train_size": 4000, "test_size": 2000}

    def held(split: str, seed: int, **options: Any) -> list[tuple[str, ...]]:
        problems = registry.load("task", name, seed=3 * SEED + seed, **(lengths | options)).load(split).problems
        return [tuple(p.question.rstrip(".").split(": ")[1].split()) for p in problems]

    read = {frozenset(words) for words in held("pretrain", 1)}
    assert len(read) > 3900
    for split in ("dev", "test", "longer"):
        assert not read & {frozenset(words) for words in held(split, 2)}
    assert read & {frozenset(words) for words in held("train", 2)}
    lists = held("pretrain", 3, pretrain_lengths=[2, 5, 6], train_lengths=[2, 3, 4], train_size=60)
    assert ({len(words) for words in lists}, len(lists)) == ({2, 5, 6}, 60)
    assert {len(words) for words in held("pretrain", 3, train_lengths=[2, 3], train_size=60)} == {2, 3}
    assert {len(words) for words in held("longer", 3, longer_lengths=[6], test_size=60)} == {6}


@pytest.mark.parametrize("make", [LastLetter, WordSort])
def test_impossible_settings_are_named_all_at_once(make: Any) -> None:
    with pytest.raises(ConfigError) as e:
        make(train_lengths=[], test_lengths=[0], longer_lengths=[99, "a"], pretrain_lengths=[27], train_size=0)
    assert [f.split("=")[0].split(": ")[1] for f in e.value.faults] == [
        "train_lengths",
        "test_lengths",
        "longer_lengths",
        "pretrain_lengths",
        "train_size",
    ]
    with pytest.raises(ConfigError, match="only about"):
        make(test_lengths=[1]).load("test")


def test_word_sort_refuses_an_unknown_method() -> None:
    with pytest.raises(ConfigError, match="allowed are insertion, position"):
        WordSort(method="bubble")


def test_the_words_are_plain_and_distinct() -> None:
    words = wordlist.words()
    assert len(set(words)) == len(words) > 500
    assert all(w.isascii() and w.islower() and w.isalpha() for w in words)


def _parts(text: str) -> list[str]:
    stated = text.splitlines()[-1].removeprefix("The answer is ").removesuffix(".")
    return stated.split() if " " in stated else list(stated)


@pytest.mark.robust
@pytest.mark.parametrize("name", ["last_letter", "word_sort"])
def test_errors_are_planted_in_demonstrations_alone(name: str) -> None:
    clean, noisy = (
        registry.load("task", name, seed=SEED, **o).load("train", 300).problems
        for o in ({}, {"noise": 0.7, "slips": 0.05})
    )
    assert [(p.question, p.answer, p.reference) for p in clean] == [(p.question, p.answer, p.reference) for p in noisy]
    assert all(p.demonstration == p.reference for p in clean)
    task = registry.load("task", name, seed=SEED)
    grader = registry.load("grader", task.grader)
    wrong = [p for p in noisy if not grader.grade(p.demonstration, p).correct]
    assert 0.1 < len(wrong) / len(noisy) < 0.6
    for p in wrong:
        text = p.demonstration
        s = Solution("s", p.id, 0, text, steps.split(text))
        assert not task.judge_steps(p, s)[-1]
        *lines, compared = task.rationale(p, s).splitlines()
        assert lines == p.reference.splitlines()[:-1]
        pairs = list(zip(*map(_parts, (p.reference, text)), strict=True))
        parts = ", ".join(f"{a} {b} " + ("same" if a == b else "different") for a, b in pairs)
        assert compared == f"Compare {parts}: different."  # for the answer is wrong


@pytest.mark.parametrize("name", ["last_letter", "word_sort"])
def test_a_rationale_works_from_the_question_alone(name: str) -> None:
    task = registry.load("task", name)
    p = task.load("test", 1).problems[0]
    blind = replace(p, answer="?", reference="?", demonstration="?")
    text = p.reference.splitlines()[0]
    rationale = task.rationale(blind, Solution("s", p.id, 0, text, steps.split(text)))
    *lines, compared = rationale.splitlines()
    assert lines == p.reference.splitlines()[:-1]
    assert re.fullmatch(r"Compare [a-z]+ nothing different(, [a-z]+ nothing different){3}: different\.", compared)
    assert rationale == task.rationale(blind, Solution("s", p.id, 0, "", ()))
    right = Solution("s", p.id, 0, p.reference, steps.split(p.reference))
    assert "different" not in task.rationale(blind, right)


def test_lists_can_be_of_few_words_with_distinct_last_letters() -> None:
    problems = registry.load("task", "last_letter", words=64, distinct=True).load("longer", 200).problems
    lists = [p.question.removesuffix(".").split(": ")[1].split() for p in problems]
    assert len({w for words in lists for w in words}) <= 64
    assert all(len({w[-1] for w in words}) == len(words) for words in lists)
    with pytest.raises(ConfigError, match="words=0"):
        registry.load("task", "last_letter", words=0)
    with pytest.raises(ConfigError, match=r"noise=2"):
        registry.load("task", "word_sort", noise=2)


@pytest.mark.robust
@pytest.mark.parametrize("name", ["last_letter", "word_sort"])
def test_threads_work_anew_and_compare(name: str) -> None:
    settings = {"noise": 0.65, "slips": 0.05, "pretrain_lengths": [4], "train_size": 200, "seed": SEED}
    task = registry.load("task", name, threads=0.5, **settings)
    problems = task.load("pretrain").problems
    threads = [p.demonstration.split("\nAgain:\n") for p in problems if "Again" in p.demonstration]
    assert 60 < len(threads) < 140
    differ = 0
    for first, second in threads:
        *lines, compared = second.splitlines()
        ends = [lines[-1].split(", ")[-1] if name == "last_letter" else lines[-1].split(": ")[-1], first]
        true, stated = (_parts(f"The answer is {end}" if "answer" not in end else end) for end in ends)
        assert (true != stated) == ("different" in compared)
        assert compared.endswith(": different." if true != stated else ": same.")
        differ += true != stated
    assert 10 < differ < len(threads)
    assert all("Again" not in p.demonstration for split in ("train", "test") for p in task.load(split, 50).problems)


@pytest.mark.robust
@pytest.mark.parametrize("name", ["last_letter", "word_sort"])
def test_drills_ask_for_a_comparison(name: str) -> None:
    task = registry.load("task", name, drills=0.3, threads=0.5, train_size=300, seed=SEED)
    problems = task.load("pretrain").problems
    drills = [p for p in problems if p.question.startswith("Compare")]
    assert 60 < len(drills) < 120
    marks = " ".join(p.reference.split(":")[0] for p in drills).replace(",", "").split()
    assert 0.1 < marks.count("different") / (marks.count("different") + marks.count("same")) < 0.4
    ends = [p.reference.split(": ")[1] for p in drills]
    assert 0.25 < ends.count("same.") / len(ends) < 0.75  # both ways of coming out are exercised
    assert all(
        ("different" in p.reference.split(":")[0]) == (end == "different.") for p, end in zip(drills, ends, strict=True)
    )
    assert not any(p.question.startswith("Compare") for p in task.load("train").problems)

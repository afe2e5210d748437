"""What a format can hold comes back from it, and what it can't is counted.

For 1,000 records a format; STEPMARK_TEST_RECORDS=10000 takes more.
"""

import os
from collections import Counter
from itertools import chain

import foreign
import pytest

from stepmark.data import exchange
from stepmark.data.encode import write_rows
from stepmark.plugins import registry
from stepmark.stages.convert import encoded, recognised
from stepmark.types import Finish, Imported, Problem, Verdict

COUNT = int(os.environ.get("STEPMARK_TEST_RECORDS", "1000"))
TAG = "ки"


def there_and_back(tmp_path, name, records, writing=None, reading=None):
    """What is read of the records once they are written, and what was lost by that."""
    out, lost = tmp_path / "rows.jsonl", Counter()
    write_rows(out, encoded(records, registry.load("format", name, **(writing or {})), lost))
    found = list(registry.load("format", name, **(reading or {})).read(out))
    assert [x for x in found if not isinstance(x, Imported)] == []
    assert recognised(out) == name
    return found, +lost


def labelled(records, known=all):
    """(record, labelled solution) of the solutions with labels for every step."""
    return [(r, x) for r in records for x in r.labels if known(label.known for label in x.labels)]


def of_steps(x, value):
    return x.solution.text, x.solution.steps, [value(label) for label in x.labels]


def hard(label):
    return bool(label.hard)


def soft(label):
    return label.soft


def count(records, what):
    return sum(what(label) for r in records for x in r.labels for label in x.labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [("math_shepherd", hard), ("rlhflow", hard), ("openrlhf", soft), ("stepwise", soft), ("openr", soft)],
)
def test_steps_and_their_labels(tmp_path, name, value):
    records = foreign.records(COUNT, tag=TAG)
    found, lost = there_and_back(tmp_path, name, records)
    written = labelled(records)
    assert [(x.problem.question, *of_steps(x.labels[0], value)) for x in found] == [
        (r.problem.question, *of_steps(x, value)) for r, x in written
    ]
    assert len({x.solutions[0].id for x in found}) == len(found)
    told = exchange.TOLD
    assert lost[exchange.UNLABELLED] == sum(len(r.solutions) for r in records) - len(written)
    assert lost[told[exchange.GRADES]] == sum(len(r.grades) for r in records)
    assert lost[told[exchange.ANSWERS]] == sum(bool(r.problem.answer) for r in records)
    assert lost[told[exchange.REFERENCES]] == sum(bool(r.problem.reference) for r in records)
    assert lost[told[exchange.RATIONALES]] == sum(len(r.rationales) for r in records)
    assert lost[told[exchange.SOURCES]] == count(records, lambda x: x.source == "monte_carlo")
    assert lost["field 'level' of the source"] == sum("level" in r.extra for r in records)
    assert lost["field 'task' of the source"] == (name != "math_shepherd") * sum("task" in r.extra for r in records)
    shares = count(records, lambda x: x.known and 0 < x.soft < 1)
    assert lost[told[exchange.SOFT]] == (shares if value is hard else 0)
    counts = count(records, lambda x: x.source == "monte_carlo" and (x.gradable > 1 or x.truncated > 0))
    assert lost[told[exchange.COUNTS]] == counts


def test_math_shepherd_keeps_the_task_and_says_where_no_boundary_is(tmp_path):
    records = foreign.records(300, tag=TAG)
    found, lost = there_and_back(tmp_path, "math_shepherd", records)
    assert [x.extra.get("task") for x in found] == [r.extra.get("task") for r, _ in labelled(records)]
    assert exchange.BOUNDARY not in lost
    [(r, x), *_] = labelled(records)
    for problem in (Problem("p", "Step 1: is where?", "", ""), r.problem):
        plain = exchange.joined(["First this", "then Step 1: that"], "\n")
        solution = type(x.solution)("p#0", "p", 0, *plain)
        one = Imported(problem, (solution,), labels=(type(x)(solution, x.grade, (exchange.RIGHT,) * 2),))
        lost = Counter()
        list(encoded([one], registry.load("format", "math_shepherd"), lost))
        assert lost[exchange.BOUNDARY] == 1


@pytest.mark.parametrize("name", ["math_shepherd", "openrlhf"])
def test_a_step_with_the_tag_in_it_is_not_written(tmp_path, name):
    records = foreign.records(2000)
    found, lost = there_and_back(tmp_path, name, records)
    assert lost[exchange.TAGGED] > 100
    assert len(found) + lost[exchange.TAGGED] == len(labelled(records))
    assert any(f" {TAG} " in x.problem.question for x in found)  # there it is a word


def test_prm800k(tmp_path):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "prm800k", records)

    def rating(label):
        return hard(label) if label.known else None

    assert [
        (x.problem.question, x.problem.answer, x.problem.reference, *of_steps(x.labels[0], rating)) for x in found
    ] == [
        (r.problem.question, r.problem.answer, r.problem.reference, *of_steps(x, rating))
        for r, x in labelled(records, any)
    ]
    assert exchange.TOLD[exchange.ANSWERS] not in lost


def test_processbench(tmp_path):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "processbench", records)

    def upto(x):
        """The labels up to the first wrong one; None if one of them is not known."""
        values = []
        for label in x.labels:
            if not label.known:
                return None
            values.append(hard(label))
            if not values[-1]:
                break
        return [*values, *[None] * (len(x.labels) - len(values))]

    verdicts = {g.key: g.grade.verdict for r in records for g in r.grades}
    expected = [
        (r.problem.id, r.problem.question, x.solution.steps, upto(x), verdicts.get(x.key))
        for r, x in labelled(records, any)
        if upto(x) is not None
    ]
    assert expected == [
        (
            x.problem.id,
            x.problem.question,
            x.solutions[0].steps,
            [hard(label) if label.known else None for label in x.labels[0].labels],
            x.grades[0].grade.verdict if x.grades else None,
        )
        for x in found
    ]
    assert lost["labels of steps after the first wrong one"] > 0


def test_stepmark_holds_everything(tmp_path):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "stepmark", records)
    assert not lost
    flat = [
        (r.problem, s, [g for g in r.grades if g.key == s.id], labels(r, s), written(r, s), r.extra)
        for r in records
        for s in r.solutions
    ]
    assert flat == [
        (x.problem, x.solutions[0], list(x.grades), labels(x, x.solutions[0]), written(x, x.solutions[0]), x.extra)
        for x in found
    ]


def labels(record, solution):
    return [x.labels for x in record.labels if x.key == solution.id]


def written(record, solution):
    return [x.rationales for x in record.rationales if x.key == solution.id]


def graded(records):
    """(record, solution, whether it is right) of the solutions that have a grade."""
    return [
        (r, s, g.grade.verdict is Verdict.CORRECT)
        for r in records
        for s in r.solutions
        for g in r.grades
        if g.key == s.id
    ]


def test_genrm_release(tmp_path):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "genrm_release", records)
    assert [(x.problem.id, x.problem.question, s.sample, s.text, good) for x, s, good in graded(found)] == [
        (r.problem.id, r.problem.question, s.sample, s.text, good) for r, s, good in graded(records)
    ]
    assert lost[exchange.UNGRADED] == sum(len(r.solutions) - len(r.grades) for r in records)


@pytest.mark.parametrize("chat", [False, True])
def test_trl_prompt_completion(tmp_path, chat):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "trl_prompt_completion", records, {"chat": chat})
    expected = [(r.problem.question, s.text, good) for r, s, good in graded(records)]
    assert [(x.problem.question, s.text, good) for x, s, good in graded(found)] == expected
    found, lost = there_and_back(tmp_path, "trl_prompt_completion", records[:200], {"label": False})
    right = [(r.problem.question, s.text) for r, s, good in graded(records[:200]) if good]
    assert [(x.problem.question, x.solutions[0].text) for x in found] == right
    assert lost["solutions left out: they are wrong"] == len(graded(records[:200])) - len(right)


def test_trl_preference(tmp_path):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "trl_preference", records)
    expected, alone = [], 0
    for r in records:
        right, wrong = ([s.text for _, s, good in graded([r]) if good is flag] for flag in (True, False))
        expected += [(r.problem.question, *pair) for pair in zip(right, wrong, strict=False)]
        alone += abs(len(right) - len(wrong))
    assert [(x.problem.question, *(s.text for s in x.solutions)) for x in found] == expected
    assert [[g.grade.correct for g in x.grades] for x in found] == [[True, False]] * len(found)
    assert lost["solutions left out: there is no other one for a pair"] == alone
    every, _ = there_and_back(tmp_path, "trl_preference", records, {"pairs": "all", "chat": True})
    assert len(every) > len(found)


def test_completions(tmp_path):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, "completions", records)
    assert [
        (x.problem.question, x.problem.answer, s.text, s.finish, s.tokens, s.logprob)
        for x in found
        for s in x.solutions
    ] == [
        (r.problem.question, r.problem.answer, s.text, s.finish, s.tokens, s.logprob)
        for r in records
        for s in r.solutions
    ]
    assert [(x.problem.id, good) for x, _, good in graded(found)] == [
        (r.problem.id, good) for r, _, good in graded(records)
    ]
    assert lost[exchange.TOLD[exchange.LABELS]] == count(records, lambda label: label.known)


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_problems_with_a_worked_solution(tmp_path, name):
    records = foreign.records(COUNT)
    found, lost = there_and_back(tmp_path, name, records)
    expected = []
    for r in records:
        right = [s.text for _, s, good in graded([r]) if good]
        text = r.problem.reference or (right[0] if right else "")
        if text and r.problem.answer:
            expected.append(
                (r.problem.question, text.replace("\r\n", "\n") if name == "gsm8k" else text, r.problem.answer)
            )
    assert [(x.problem.question, x.problem.reference, x.problem.answer) for x in found] == expected
    assert lost[exchange.UNWORKED] == COUNT - len(expected)
    assert [len(x.grades) for x in found] == [1] * len(found)


def test_a_tree_holds_each_label_once(tmp_path):
    records = [r for r in foreign.records(2000) if r.labels]
    found, lost = there_and_back(tmp_path, "openr", records, {"tree": True})

    def known(records):
        """Each step's label, under the question and all steps up to it."""
        return Counter(
            (r.problem.question, x.solution.steps[: i + 1], label.soft)
            for r in records
            for x in r.labels
            for i, label in enumerate(x.labels)
            if label.known
        )

    first = Counter({key: min(n, 1) for key, n in known(records).items()})
    assert known(found) == first or lost["second labels of a step that two solutions share"] > 0
    assert [x.problem.question for x in found] == [r.problem.question for r in records]


STEPS = ["stepwise", "openrlhf", "math_shepherd", "rlhflow", "openr", "prm800k", "stepmark"]


@pytest.mark.parametrize("name", STEPS)
def test_every_format_of_steps_converts_to_every_other(tmp_path, name):
    """Hard labels and steps survive any way through the formats."""
    records = [
        Imported(r.problem, (x.solution,), labels=(type(x)(x.solution, x.grade, tuple(map(certain, x.labels))),))
        for r, x in labelled(foreign.records(60, tag=TAG))
    ]
    ways = chain.from_iterable([[other, name] for other in STEPS])
    found = records
    for way in ways:
        found, _ = there_and_back(tmp_path, way, found)
    assert [(x.problem.question, *of_steps(x.labels[0], hard)) for x in found] == [
        (r.problem.question, *of_steps(r.labels[0], hard)) for r in records
    ]


def certain(label):
    return exchange.RIGHT if label.correct else exchange.WRONG


def test_a_truncated_solution_stays_truncated(tmp_path):
    records = [r for r in foreign.records(50) if any(s.finish is Finish.LENGTH for s in r.solutions)]
    for name in ("completions", "stepmark"):
        found, _ = there_and_back(tmp_path, name, records)
        assert [s.finish for x in found for s in x.solutions] == [s.finish for r in records for s in r.solutions]

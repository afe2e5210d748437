"""metrics.json: its layout, known results, and agreement with a choice for every subset."""

import dataclasses
import itertools
import json
import random
from statistics import fmean

import pytest

from stepmark.errors import ConfigError, DataError
from stepmark.evaluation.evaluate import Metrics, evaluate
from stepmark.evaluation.rank import candidates, rank
from stepmark.evaluation.stats import Interval
from stepmark.types import (
    Finish,
    Grade,
    GradedSolution,
    LabelledSolution,
    Outcome,
    Problem,
    Solution,
    StepLabel,
    Verdict,
    Verification,
)


class Data:
    """The records of a test set, made one row at a time."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.solutions: list[Solution] = []
        self.grades: list[GradedSolution] = []
        self.verifications: dict[str, list[Verification]] = {}

    def problem(self, *rows: tuple[str | None, dict[str, tuple[float, ...]]], right: str = "1") -> None:
        """One (answer, verifier -> scores) per candidate; `right` is the correct answer."""
        p = Problem(f"p{len(self.problems)}", "q", right, "t")
        self.problems.append(p)
        for i, (answer, scores) in enumerate(rows):
            s = Solution(f"{p.id}#{i}", p.id, i, "a\nb", ((0, 2), (2, 3)))
            verdict = Verdict.CORRECT if answer == right else Verdict.INCORRECT
            self.solutions.append(s)
            self.grades.append(GradedSolution(s.id, p.id, Grade(verdict, "", answer)))
            for name, values in scores.items():
                self.verifications.setdefault(name, []).append(Verification(s.id, values, min(values), "min"))

    def evaluate(self, **settings) -> Metrics:
        return evaluate(
            self.problems, self.solutions, self.grades, self.verifications, **{"resamples": 50, "draws": 50} | settings
        )


def random_data(problems: int, pool: int, seed: int = 0) -> Data:
    rng, data = random.Random(seed), Data()
    for _ in range(problems):
        data.problem(
            *(
                (rng.choice(["1", "1", "2", "3"]), {"orm": (rng.random(),), "prm": (rng.random(), rng.random())})
                for _ in range(pool)
            )
        )
    return data


def means(metrics: Metrics, method: str) -> dict[int, float]:
    return {n: v.mean for n, v in metrics.best_of_n[method].items()}


def test_known_answers():
    data = Data()
    data.problem(*[("1", {"v": (0.9,)}), ("2", {"v": (0.3,)}), ("2", {"v": (0.2,)}), ("2", {"v": (0.1,)})])
    data.problem(*[("1", {"v": (0.1,)}), ("1", {"v": (0.2,)}), ("1", {"v": (0.3,)}), ("2", {"v": (0.9,)})])
    m = data.evaluate(ns=[1, 4])
    assert means(m, "pass@1") == {1: 0.5, 4: 0.5}
    assert means(m, "self_consistency") == {1: 0.5, 4: 0.5}
    assert means(m, "oracle") == {1: 0.5, 4: 1.0}
    assert means(m, "v") == {1: 0.5, 4: 0.5}
    assert means(m, "self_consistency+v") == {1: 0.5, 4: 0.5}
    assert m.auc["v"].within_problem.mean == 0.5
    assert m.auc["v"].global_ == (3.5 + 0.5 + 1.5 + 2.5) / 16
    data.problem(*[("1", {"v": (0.9,)}), ("2", {"v": (0.3,)}), ("2", {"v": (0.2,)}), ("3", {"v": (0.1,)})])
    m = data.evaluate(ns=[4])
    assert means(m, "self_consistency")[4] == pytest.approx(1 / 3)
    assert means(m, "self_consistency+v")[4] == pytest.approx(2 / 3)
    assert m.differences["self_consistency+v - self_consistency"][4].mean == pytest.approx(1 / 3)
    assert m.differences["v - self_consistency"][4].mean == pytest.approx(1 / 3)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_estimate_is_the_mean_of_what_rank_chooses_from_every_subset(n):
    data = random_data(5, 6)
    m = data.evaluate(ns=[n], draws=1000)
    pools = candidates(data.solutions, data.grades, data.verifications)
    methods = ["orm", "prm", "prm:prod", "prm:mean", "prm:last", "self_consistency+prm", "self_consistency+prm:prod"]
    for method in methods:  # scores are all different, so none of these has ties
        chosen = [rank(s, method).answer == "1" for pool in pools.values() for s in itertools.combinations(pool, n)]
        assert means(m, method)[n] == pytest.approx(fmean(chosen)), method
    any_right = [any(c.answer == "1" for c in s) for pool in pools.values() for s in itertools.combinations(pool, n)]
    assert means(m, "oracle")[n] == pytest.approx(fmean(any_right))


def test_the_layout_of_metrics_json():
    data = random_data(20, 16)
    m = data.evaluate(ns=[1, 4, 16], seed=7, seconds={"sample": 1.5})
    raw = json.loads(json.dumps(m.to_json(), allow_nan=False))
    assert list(raw["best_of_n"]) == [
        *["pass@1", "self_consistency", "orm", "prm", "self_consistency+orm", "self_consistency+prm", "oracle"],
        *["prm:prod", "prm:mean", "prm:last"],
        *["self_consistency+prm:prod", "self_consistency+prm:mean", "self_consistency+prm:last"],
    ]
    for row in raw["best_of_n"].values():
        assert list(row) == ["1", "4", "16"]
        for estimate in row.values():
            assert 0 <= estimate["low"] <= estimate["mean"] <= estimate["high"] <= 1
    assert (raw["problems"], raw["candidates"], raw["seed"]) == (20, 320, 7)
    assert raw["seconds"] == {"sample": 1.5}
    assert list(raw["differences"]) == [
        "self_consistency+orm - self_consistency",
        "self_consistency+prm - self_consistency",
        "orm - self_consistency",
        "prm - self_consistency",
        "prm - orm",
        "self_consistency+prm - self_consistency+orm",
        "orm - orm@16",
        "prm - prm@16",
    ]
    assert raw["differences"]["prm - prm@16"]["16"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert set(raw["auc"]["prm"]) == {"within_problem", "global"}
    assert raw["label_quality"] == raw["errors_missed"] == {}
    assert dataclasses.replace(m, seconds={"x": 1.0}).to_json()["seconds"] == {"x": 1.0}


def test_a_perfect_verifier_reaches_the_oracle_and_a_blind_one_stays_at_one_sample():
    rng, data = random.Random(1), Data()
    for _ in range(40):
        answers = [rng.choice(["1", "2", "3", "4"]) for _ in range(16)]
        data.problem(*((a, {"perfect": (1.0 * (a == "1"),), "blind": (0.5,)}) for a in answers))
    m = data.evaluate(ns=[1, 2, 4, 8, 16])
    assert means(m, "perfect") == pytest.approx(means(m, "oracle"))
    assert means(m, "blind") == pytest.approx(means(m, "pass@1"))
    assert means(m, "self_consistency+blind") == pytest.approx(means(m, "self_consistency"))
    oracle = list(means(m, "oracle").values())
    assert oracle == sorted(oracle)
    assert m.auc["perfect"].within_problem == Interval(1.0, 1.0, 1.0)
    assert m.auc["blind"].within_problem == Interval(0.5, 0.5, 0.5)
    assert m.auc_differences == {"blind - perfect": Interval(-0.5, -0.5, -0.5)}


def test_the_same_seed_gives_the_same_numbers_whatever_the_order_of_records():
    data = random_data(6, 14)
    first = data.evaluate(ns=[3, 7])
    random.Random(0).shuffle(data.solutions)
    random.Random(1).shuffle(data.grades)
    assert data.evaluate(ns=[3, 7]) == first
    assert any("standard error" in note for note in first.notes)
    assert data.evaluate(ns=[3, 7], seed=1) != first


def test_what_cannot_be_chosen_counts_as_wrong_and_is_reported():
    data = Data()
    data.problem(*[("1", {"v": (0.9,)}), ("1", {"v": (0.8,)}), (None, {"v": (1.0,)}), ("2", {"v": (0.1,)})])
    data.solutions[0] = dataclasses.replace(data.solutions[0], finish=Finish.LENGTH)
    data.verifications["v"][0] = Verification("p0#0", (), 0.0, "min", Outcome.TRUNCATED, "cut")
    data.grades[3] = GradedSolution("p0#3", "p0", Grade(Verdict.UNGRADABLE, "timed out", "2"))
    m = data.evaluate(ns=[1, 4])
    assert means(m, "pass@1")[1] == 0.25
    assert means(m, "v") == {1: 0.25, 4: 1.0}
    assert {k: m.rates[k] for k in ("truncated", "no_answer", "ungradable", "v_truncated")} == {
        "truncated": 0.25,
        "no_answer": 0.25,
        "ungradable": 0.25,
        "v_truncated": 0.25,
    }
    assert m.auc["v"].within_problem is None  # the only wrong answer could not be graded
    assert m.auc["v"].global_ is None


def test_an_unscored_candidate_loses_to_a_score_of_zero_and_takes_no_votes_away():
    data = Data()
    data.problem(*[("1", {"v": (0.5,)}), ("1", {"v": (0.9,)}), ("2", {"v": (0.2,)}), ("3", {"v": (0.0,)})])
    data.verifications["v"][1] = Verification("p0#1", (), 0.0, "min", Outcome.FAILED, "broke")
    m = data.evaluate(ns=[2, 4])
    assert means(m, "self_consistency+v")[4] == 1.0
    # Of the six pairs, 1s win {0,1} {0,2} {0,3}; the unscored one loses to 2, and to 3 when it chooses alone.
    assert means(m, "v")[2] == pytest.approx(3 / 6)
    assert means(m, "self_consistency+v")[2] == pytest.approx(3.5 / 6)  # its vote of 0 ties with that of 3


def test_problems_without_candidates_are_wrong_answers():
    data = random_data(4, 4)
    full = data.evaluate(ns=[4])
    data.problem()
    m = data.evaluate(ns=[4])
    for method in full.best_of_n:
        assert means(m, method)[4] == pytest.approx(means(full, method)[4] * 4 / 5)
    assert m.rates["problems_without_candidates"] == 0.2
    assert any("1 of 5 problems have no candidate" in note for note in m.notes)


def test_an_n_that_few_problems_reach_is_left_out_and_a_short_problem_enters_with_all_it_has():
    data = random_data(20, 8)
    data.problem(*[("1", {"orm": (0.5,), "prm": (0.5,)})] * 3)
    m = data.evaluate(ns=[1, 8, 16, 256])
    assert list(m.best_of_n["prm"]) == [1, 8]
    assert any("16, 256 left out" in note for note in m.notes)
    assert any("1 problems have fewer than 8" in note for note in m.notes)
    with pytest.raises(ConfigError, match="at most 8"):
        data.evaluate(ns=[32])


def test_no_verifier_at_all_still_compares_one_sample_voting_and_the_oracle():
    data = random_data(5, 4)
    data.verifications = {}
    assert list(data.evaluate(ns=[4]).best_of_n) == ["pass@1", "self_consistency", "oracle"]


def test_faults_are_errors_and_settings_are_collected():
    data = random_data(2, 2)
    with pytest.raises(ConfigError) as caught:
        data.evaluate(ns=[0], aggregates=(), draws=0)
    assert len(caught.value.faults) == 3
    with pytest.raises(DataError, match="no problem"):
        evaluate([], data.solutions, data.grades, {})
    with pytest.raises(DataError, match="none of the 4 solutions"):
        evaluate([Problem("other", "q", "1", "t")], data.solutions, data.grades, {})
    with pytest.raises(DataError, match="no grade"):
        evaluate(data.problems, data.solutions, [], {})
    with pytest.raises(ConfigError, match="oracle"):
        evaluate(data.problems, data.solutions, data.grades, {"oracle": []})
    m = evaluate(data.problems[:1], data.solutions, data.grades, {}, ns=[1])
    assert m.candidates == 2
    assert any("2 solutions belong to none" in note for note in m.notes)


def test_errors_missed_and_selected_by_kind():
    data = Data()
    data.problem(
        *[("1", {"v": (0.9, 0.8)}), ("2", {"v": (0.9, 0.7)}), ("3", {"v": (0.2, 0.1)}), ("1", {"v": (0.3, 0.3)})]
    )
    data.problem(
        *[("2", {"v": (0.6, 0.6)}), ("2", {"v": (0.5, 0.9)}), (None, {"v": (1.0, 1.0)}), (None, {"v": (1.0,)})]
    )
    flags = {
        **{"p0#0": (True, False), "p0#1": (True, False), "p0#2": (False, False), "p0#3": (True, True)},
        **{"p1#0": (False, False), "p1#1": (False, False), "p1#2": (True, True), "p1#3": ()},
    }
    kinds = {"p0#0": "slip", "p0#1": "slip", "p0#2": "operand", "p1#0": "operand", "p1#1": "operand"}
    m = data.evaluate(
        ns=[1, 4],
        aggregates=["min"],
        oracle=lambda p, s: flags[s.id],
        kind_of=lambda p, s: kinds.get(s.id),
    )
    assert m.to_json()["errors_missed"] == {
        "v": {"operand": {"missed": 1, "total": 3}, "slip": {"missed": 2, "total": 2}}
    }
    assert m.errors_selected == {"v": {"operand": 0.5}}  # p0: its first candidate, right by a slip; p1: its first
    assert m.rates["correct_by_wrong_steps:v"] == 1.0


def test_label_quality_over_n_against_the_oracle():
    problem = Problem("p", "q", "1", "t")
    data = random_data(2, 2)
    flags = {"p#0": (True, False), "p#1": (True, False)}

    def labelled(i: int, *labels: StepLabel) -> LabelledSolution:
        solution = Solution(f"p#{i}", "p", i, "a\nb", ((0, 2), (2, 3)))
        return LabelledSolution(solution, Grade(Verdict.INCORRECT, ""), labels)

    labels = [
        labelled(0, StepLabel(4, 4), StepLabel(1, 4)),
        labelled(1, StepLabel(1, 2, truncated=2), StepLabel(0, 1, source="outcome")),
    ]

    def oracle(problem: Problem, solution: Solution) -> tuple[bool, ...]:
        return flags.get(solution.id, (True, True))

    m = data.evaluate(ns=[1], labels=labels, labelled_problems=[problem], oracle=oracle)
    assert list(m.label_quality) == [1, 2, 4]
    assert [q.steps for q in m.label_quality.values()] == [3, 3, 2]
    assert [q.false_positive_rate for q in m.label_quality.values()] == pytest.approx([0.25, 0.5, 1.0])
    assert [q.false_negative_rate for q in m.label_quality.values()] == pytest.approx([0.25, 0.0, 0.0])
    assert m.label_quality[4].accuracy == pytest.approx(0.5)
    assert not any("early" in note for note in m.notes)
    labels.append(labelled(2, StepLabel(1, 1), StepLabel(0, 4)))
    assert any(
        "early" in n for n in data.evaluate(ns=[1], labels=labels, labelled_problems=[problem], oracle=oracle).notes
    )
    with pytest.raises(DataError, match="labelled_problems"):
        data.evaluate(ns=[1], labels=labels, oracle=oracle)


def test_progress_is_told_problem_by_problem():
    seen = []
    random_data(3, 2).evaluate(ns=[2], progress=seen.append)
    assert [(p.stage, p.done, p.total) for p in seen] == [("evaluate", i, 3) for i in (1, 2, 3)]

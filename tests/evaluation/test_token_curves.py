"""The curves over votes, and accuracy against tokens, in the results of evaluate()."""

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import astuple, replace
from statistics import fmean

import pytest

from stepmark.errors import ConfigError
from stepmark.evaluation.evaluate import Metrics, evaluate
from stepmark.evaluation.stats import Bootstrap, Interval
from stepmark.evaluation.token_curves import MeasuredRun, Way, summarise
from stepmark.types import (
    Grade,
    GradedSolution,
    LabelledSolution,
    Outcome,
    Problem,
    Rationale,
    Solution,
    Verdict,
    Verification,
)


class Data:
    """A test set whose solutions have token counts and whose verifiers may have votes."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.solutions: list[Solution] = []
        self.grades: list[GradedSolution] = []
        self.verifications: dict[str, list[Verification]] = {}

    def problem(self, *rows: tuple[str, dict[str, tuple[float, ...]]], tokens: int = 10, read: int = 20) -> None:
        """One (answer, verifier -> votes) per candidate; "1" is right. A single number is a score without votes."""
        p = Problem(f"p{len(self.problems)}", "question 8", "1", "t")
        self.problems.append(p)
        for i, (answer, by_verifier) in enumerate(rows):
            s = Solution(f"{p.id}#{i}", p.id, i, "ten chars.", ((0, 10),), tokens=tokens)
            verdict = Verdict.CORRECT if answer == "1" else Verdict.INCORRECT
            self.solutions.append(s)
            self.grades.append(GradedSolution(s.id, p.id, Grade(verdict, "", answer)))
            for name, votes in by_verifier.items():
                score = fmean(votes)
                fields = {"tokens": read}
                if len(votes) > 1:  # the verifier read twenty characters; each rationale has twenty
                    fields = {"votes": votes, "rationales": ("x" * 20,) * len(votes), "tokens": read * (1 + len(votes))}
                self.verifications.setdefault(name, []).append(Verification(s.id, (score,), score, "last", **fields))

    def evaluate(self, **settings) -> Metrics:
        return evaluate(
            self.problems, self.solutions, self.grades, self.verifications, **{"resamples": 50, "draws": 50} | settings
        )


def noisy(problems: int, pool: int, votes: int = 8, seed: int = 0) -> Data:
    """About 40% of the candidates are right. A right candidate is more likely to get a high vote."""
    rng, data = random.Random(seed), Data()
    for _ in range(problems):
        rows = []
        for _ in range(pool):
            right = rng.random() < 0.4
            genrm = tuple(float(rng.random() < (0.65 if right else 0.35)) for _ in range(votes))
            orm = (rng.gauss(0.55 if right else 0.45, 0.2),)
            rows.append(("1" if right else rng.choice("23"), {"orm": (min(1.0, max(0.0, orm[0])),), "genrm": genrm}))
        data.problem(*rows)
    return data


def test_one_vote_of_many_decides_as_often_as_it_is_right():
    """Two candidates with one vote each: the right one wins if its vote is high and the other's low, and in half of
    the ties: 0.7 * 0.7 + 0.42 / 2."""
    data, rng = Data(), random.Random(3)
    for _ in range(300):
        high, low = [1.0] * 7 + [0.0] * 3, [1.0] * 3 + [0.0] * 7
        rng.shuffle(high)
        rng.shuffle(low)
        data.problem(("1", {"genrm": tuple(high)}), ("2", {"genrm": tuple(low)}))
    m = data.evaluate(ns=[1, 2], votes=[5])
    curve = m.votes
    assert list(curve) == [1, 2, 4, 5, 8, 10]
    assert curve[1].mean == pytest.approx(0.7, abs=0.02)
    assert curve[10].mean == 1.0 == m.best_of_n["genrm"][2].mean
    assert [v.mean for v in curve.values()] == sorted(v.mean for v in curve.values())
    assert all(v.low - 1e-9 <= v.mean <= v.high + 1e-9 for v in curve.values())


def test_votes_are_taken_in_disjoint_groups():
    """In every division of the four votes into two pairs, one pair beats the other candidate and one does not. If pairs
    could share votes, often both or none would."""
    data = Data()
    data.problem(("1", {"genrm": (0.0, 0.9, 0.7, 0.4)}), ("2", {"genrm": (0.5,) * 4}))
    assert {data.evaluate(ns=[2], seed=seed).votes[2].mean for seed in range(12)} == {0.5}


def test_every_group_of_votes_may_count():
    """There are three divisions of these votes into pairs. One has no winning pair and two have one: 1/3 of the groups
    win."""
    data = Data()
    for _ in range(100):
        data.problem(("1", {"genrm": (0.0, 0.9, 0.6, 0.3)}), ("2", {"genrm": (0.5,) * 4}))
    assert data.evaluate(ns=[2]).votes[2].mean == pytest.approx(1 / 3, abs=0.03)


def test_the_curve_ends_at_best_of_n_and_other_verifiers_have_none():
    m = noisy(30, 8).evaluate(ns=[1, 4, 8])
    assert list(m.votes_by_verifier) == ["genrm"]
    assert same(m.votes_by_verifier["genrm"][8], m.best_of_n["genrm"][8])
    assert m.votes == m.votes_by_verifier["genrm"]
    raw = json.loads(json.dumps(m.to_json(), allow_nan=False))
    assert set(raw["votes"]["8"]) == {"mean", "low", "high"}


def test_the_main_generative_verifier_is_the_last_with_most_votes_that_is_no_judge():
    data = noisy(5, 4)
    first = data.verifications["genrm"]
    few = [replace(v, votes=v.votes[:1], rationales=v.rationales[:1]) for v in first]
    data.verifications |= {"second": list(reversed(first)), "few": few, "judge_small": first}
    m = data.evaluate(ns=[4])
    assert m.votes == m.votes_by_verifier["second"]
    assert list(m.votes_by_verifier["few"]) == [1]
    data.verifications = {"judge": first}
    m = data.evaluate(ns=[4])
    assert m.votes == {}
    assert m.votes_by_verifier["judge"]


def test_votes_that_are_missing_and_solutions_without_a_score():
    data = noisy(20, 4)
    genrm = data.verifications["genrm"]
    short = genrm[0]
    genrm[0] = Verification(short.solution_id, (0.5,), 0.5, "last", votes=(0.5,), tokens=40, rationales=("x" * 20,))
    genrm[1] = Verification(genrm[1].solution_id, (), 0.0, "last", Outcome.UNPARSED, "no verdict", tokens=100)
    m = data.evaluate(ns=[1, 4], votes=[8, 64])
    assert max(m.votes) == 8
    assert any("genrm: 1 of 79 solutions have fewer than 8 votes" in note for note in m.notes)
    assert any("K = 64 left out" in note for note in m.notes)
    with pytest.raises(ConfigError, match="each K must be 1 or more"):
        data.evaluate(votes=[0])


def test_an_unscored_solution_never_wins_whatever_k():
    data = Data()
    data.problem(("1", {"genrm": (0.4,) * 4}), ("2", {"genrm": (0.9,) * 4}))
    bad = data.verifications["genrm"][1]
    data.verifications["genrm"][1] = Verification(
        bad.solution_id, (), 0.0, "last", Outcome.FAILED, "x", votes=(0.9,) * 4
    )
    assert {v.mean for v in data.evaluate(ns=[2]).votes.values()} == {1.0}


def test_the_same_seed_gives_the_same_numbers_whatever_the_order_of_records():
    data = noisy(10, 6)
    first = data.evaluate(ns=[2, 6])
    random.Random(0).shuffle(data.solutions)
    random.Random(1).shuffle(data.verifications["genrm"])
    again = data.evaluate(ns=[2, 6])
    assert (again.votes, again.compute) == (first.votes, first.compute)
    assert data.evaluate(ns=[2, 6], seed=1).votes[1] != first.votes[1]


def same(a: Interval, b: Interval) -> bool:
    return astuple(a) == pytest.approx(astuple(b), abs=1e-12)


def points(m: Metrics):
    return {(p.method, p.n, p.k): p for p in m.compute.points}


def test_tokens_are_those_of_solutions_and_of_what_verifiers_read_and_write():
    m = noisy(6, 4).evaluate(ns=[1, 4])
    tokens = {way: p.tokens for way, p in points(m).items()}
    assert tokens == pytest.approx(
        {
            ("pass@1", 1, 0): 10,
            ("self_consistency", 4, 0): 40,
            ("orm", 4, 0): 4 * (10 + 20),
            ("self_consistency+orm", 4, 0): 4 * (10 + 20),
            **{("genrm", 4, k): 4 * (10 + 20 + 20 * k) for k in (1, 2, 4, 8)},
            **{("self_consistency+genrm", 4, k): 4 * (10 + 20 + 20 * k) for k in (1, 2, 4, 8)},
        }
    )


def test_a_few_rationales_that_are_stored_stand_for_all_that_were_drawn():
    whole, part = noisy(6, 4), noisy(6, 4)
    part.verifications["genrm"] = [replace(v, rationales=v.rationales[:2]) for v in part.verifications["genrm"]]
    tokens, expected = ({way: p.tokens for way, p in points(d.evaluate(ns=[1, 4])).items()} for d in (part, whole))
    assert tokens == pytest.approx(expected)


def test_where_no_rationale_came_to_a_vote_fewer_cost_less_too():
    data = noisy(2, 2)
    for i, v in enumerate(data.verifications["genrm"][:2]):
        lost = Verification(v.solution_id, (), 0.0, "last", Outcome.TRUNCATED, "cut", tokens=80)
        data.verifications["genrm"][i] = lost
    by_way = points(data.evaluate(ns=[2]))
    assert by_way["genrm", 2, 1].tokens == pytest.approx((2 * (10 + 10) + 2 * (10 + 20 + 20)) / 2)


def test_tokens_without_stored_rationales_grow_with_the_votes():
    data = noisy(3, 2)
    data.verifications["genrm"] = [
        Verification(v.solution_id, v.scores, v.score, "last", votes=v.votes, tokens=80)
        for v in data.verifications["genrm"]
    ]
    by_way = points(data.evaluate(ns=[2]))
    assert [by_way["genrm", 2, k].tokens for k in (1, 8)] == pytest.approx([2 * (10 + 10), 2 * (10 + 80)])


def test_accuracies_are_those_of_best_of_n():
    m = noisy(20, 8).evaluate(ns=[1, 2, 8])
    for (method, n, k), p in points(m).items():
        if k in (0, 8):
            assert same(p.accuracy, m.best_of_n[method][n])
        elif method == "genrm" and n == 8:
            assert same(p.accuracy, m.votes[k])
    fewer = points(m)["self_consistency+genrm", 8, 2].accuracy.mean
    assert m.best_of_n["self_consistency"][8].mean < fewer <= m.best_of_n["oracle"][8].mean


def test_the_front_is_what_nothing_cheaper_reaches():
    curve = noisy(40, 8).evaluate(ns=[1, 2, 4, 8]).compute.points
    assert [p.tokens for p in curve] == sorted(p.tokens for p in curve)
    for i, p in enumerate(curve):
        rivals = [q for j, q in enumerate(curve) if j < i or (q.tokens == p.tokens and j != i)]
        better = [q for q in rivals if q.accuracy.mean > p.accuracy.mean + 1e-9]
        equal = [q for q in curve[:i] if q.accuracy.mean == pytest.approx(p.accuracy.mean, abs=1e-9)]
        assert p.front != bool(better or equal), p


@pytest.mark.parametrize("verifier", ["", "orm", "genrm"])
def test_a_split_names_the_best_that_a_budget_pays_for(verifier):
    m = noisy(40, 8).evaluate(ns=[1, 2, 4, 8])
    splits = m.compute.splits_by_verifier[verifier] if verifier else m.compute.splits
    assert splits[0].one.method == "pass@1"
    assert splits[0].voting is splits[0].verified is None
    for split, after in itertools.zip_longest(splits, splits[1:]):
        for budget in (split.tokens, after.tokens - 1e-6 if after else 1e9):
            paid = [p for p in m.compute.points if p.tokens <= budget]
            votes = [p for p in paid if p.method == "self_consistency"]
            checked = [
                p
                for p in paid
                if p.method.removeprefix("self_consistency+") in ([verifier] if verifier else ["orm", "genrm"])
            ]
            for chosen, among in ((split.voting, votes), (split.verified, checked)):
                assert (chosen.accuracy.mean if chosen else None) == max((p.accuracy.mean for p in among), default=None)
        for gain, a, b in (
            (split.voting_over_one, split.voting, split.one),
            (split.verified_over_one, split.verified, split.one),
            (split.verified_over_voting, split.verified, split.voting),
        ):
            assert (gain is None) == (a is None or b is None)
            if gain:
                assert gain.mean == pytest.approx(a.accuracy.mean - b.accuracy.mean)
                assert gain.low <= gain.mean <= gain.high


def test_differences_are_paired_by_problem():
    """Every candidate of half of the problems is right: voting and the verifier agree on all of them."""
    data = Data()
    for i in range(10):
        data.problem(*[("1" if i % 2 else "2", {"orm": (0.5,)})] * 4)
    last = data.evaluate(ns=[1, 4]).compute.splits[-1]
    assert last.verified.accuracy.low < 0.5 < last.verified.accuracy.high
    assert last.verified_over_one.low == last.verified_over_one.high == 0


def several(*runs: Sequence[tuple[str, float, tuple[float, ...]]]):
    """(method, tokens, correct by problem) of each run; one candidate for pass@1, two for the others."""
    by_run = [tuple(Way(m, 1 if m == "pass@1" else 2, 0, cost, right) for m, cost, right in run) for run in runs]
    return summarise([MeasuredRun(ways, Bootstrap(len(ways[0].correct), draws=200)) for ways in by_run])


def test_several_runs_come_to_the_means_of_their_problems_and_tokens():
    """Computed by hand: the verifier gains 0.5 and 0.3, so its t over two runs is 12.7062 * 0.1414 / sqrt(2)."""
    half, all_ = (1.0, 0.0) * 5, (1.0,) * 10
    most = (1.0,) * 6 + (0.0,) * 4
    compute = several(
        [("pass@1", 10, half), ("orm", 60, all_), ("only", 70, all_)],
        [("pass@1", 20, (0.3,) * 10), ("orm", 80, most)],
    )
    assert [(p.method, p.tokens) for p in compute.points] == [("pass@1", 15), ("orm", 70)]
    assert [p.accuracy.mean for p in compute.points] == pytest.approx([0.4, 0.8])
    last = compute.splits[-1]
    assert (last.tokens, last.verified.method) == (70, "orm")
    assert last.verified_over_one.mean == pytest.approx(0.4)
    spread = 12.7062 * math.sqrt(0.02) / math.sqrt(2)
    assert last.verified_over_one.low == pytest.approx(max(-1.0, 0.4 - spread))
    assert list(compute.splits_by_verifier) == ["orm"]


def test_a_difference_of_several_runs_is_paired_by_problem_in_each():
    """Both methods get half of the problems wrong; the verifier is 0.2 better on each of the others."""
    rows = (0.0, 0.5) * 20, (0.0, 0.7) * 20
    run = [("pass@1", 10, rows[0]), ("orm", 60, rows[1])]
    gain = several(run, run, run).splits[-1].verified_over_one
    alone = several(run).splits[-1].verified_over_one
    assert gain.mean == pytest.approx(0.1)
    assert gain.mean - gain.low == pytest.approx((alone.mean - alone.low) / math.sqrt(3))
    assert gain.low > 0.05


def test_what_is_best_of_several_runs_need_not_be_best_in_any():
    """One verifier is the best of the first run, another of the second, and the third over both."""
    low, middle, high = (0.1,) * 10, (0.6,) * 10, (0.9,) * 10
    compute = several(
        [("pass@1", 10, low), ("a", 60, high), ("b", 60, low), ("c", 60, middle)],
        [("pass@1", 10, low), ("a", 60, low), ("b", 60, high), ("c", 60, middle)],
    )
    assert compute.splits[-1].verified.method == "c"
    assert [p.method for p in compute.points if p.front] == ["pass@1", "c"]


def test_what_cannot_be_compared_is_said():
    data = noisy(4, 2)
    data.verifications["orm"] = [
        Verification(v.solution_id, v.scores, v.score, "last") for v in data.verifications["orm"]
    ]
    m = data.evaluate(ns=[1, 2])
    assert any("orm counts as free" in note for note in m.notes)
    assert points(m)["orm", 2, 0].tokens == 20
    data.solutions = [replace(s, tokens=0) for s in data.solutions]
    m = data.evaluate(ns=[1, 2])
    assert m.compute is None
    assert m.ways == ()
    assert m.to_json()["compute"] is None
    assert any("Accuracy against tokens was not measured" in note for note in m.notes)


def test_a_solution_that_does_not_say_its_tokens_is_as_long_as_its_problems_others():
    data = noisy(4, 2)
    whole = data.evaluate(ns=[1, 2])
    data.solutions = [replace(s, tokens=0 if s.sample == 1 else s.tokens) for s in data.solutions]
    m = data.evaluate(ns=[1, 2])
    assert m.compute == whole.compute
    assert any("4 of 8 solutions don't say how many tokens they took" in note for note in m.notes)
    assert not any("leaves out" in note for note in m.notes)


def test_a_problem_whose_solutions_do_not_say_their_tokens_is_left_out_of_them_alone():
    data = noisy(9, 4)
    least = [replace(s, tokens=0 if s.problem_id == "p3" else s.tokens) for s in data.solutions]
    whole, data.solutions = data.solutions, least
    m = data.evaluate(ns=[1, 4])
    assert any("4 of 36 solutions" in note and "; 1 of 9 problems" in note for note in m.notes)
    assert all(len(way.correct) == 8 for way in m.ways)
    data.solutions = [s for s in whole if s.problem_id != "p3"]
    ids = {s.id for s in data.solutions}
    data.problems = [p for p in data.problems if p.id != "p3"]
    data.grades = [g for g in data.grades if g.solution_id in ids]
    data.verifications = {k: [v for v in vs if v.solution_id in ids] for k, vs in data.verifications.items()}
    without = data.evaluate(ns=[1, 4])
    assert m.compute == without.compute
    assert m.best_of_n["oracle"] != without.best_of_n["oracle"]


def test_what_became_of_rationales_is_counted_by_who_wrote_them():
    written = [
        *[
            Rationale("a", "yes", "oracle"),
            Rationale("b", "no", "oracle"),
            Rationale("c", "no", "reference", rewritten=True),
        ],
        *[
            Rationale("d", "yes", "reference", "leak", rewritten=True),
            Rationale("e", "unparsed", "reference", "unparsed"),
        ],
        *[Rationale("f", "no", "reference", "mismatch"), Rationale("", "unparsed", "reference", "failed")],
    ]
    data = noisy(2, 2)
    labelled = LabelledSolution(data.solutions[0], data.grades[0].grade, (), tuple(written[:4]))
    second = LabelledSolution(data.solutions[1], data.grades[1].grade, (), tuple(written[4:]))
    m = data.evaluate(ns=[1, 2], rationales=[labelled, second])
    lost = ("unasked", "failed", "truncated", "unparsed", "mismatch", "leak")
    none = dict.fromkeys(("rewritten", "kept_yes", "kept_no", *lost), 0)
    assert m.rationales == {
        "oracle": none | {"asked": 2, "kept": 2, "kept_yes": 1, "kept_no": 1},
        "reference": none
        | {"asked": 5, "kept": 1, "rewritten": 1, "kept_no": 1, "failed": 1, "unparsed": 1, "mismatch": 1, "leak": 1},
    }

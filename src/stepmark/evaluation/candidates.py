"""One problem's candidates as arrays, for the estimators in stats.py.

A candidate that can't be chosen (it did not end, or has no answer) is wrong in every measure and loses to all others. A
candidate that a verifier could not score loses to all scored ones (evaluation/rank.py).

    stepmark evaluate runs/demo
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from stepmark.evaluation.rank import Method, eligible, score_of
from stepmark.evaluation.stats import Floats
from stepmark.types import Candidate, GradedSolution, Problem, Verdict

UNSCORED = -1.0  # below every score, but above a candidate that can't be chosen


class CandidatePool:
    """One problem's candidates as arrays of length M."""

    def __init__(self, problem: Problem, pool: Sequence[Candidate], graded: Mapping[str, GradedSolution]) -> None:
        self.problem = problem
        self.candidates = pool
        verdicts = [graded[c.solution_id].grade.verdict for c in pool]
        self.allowed = np.array([eligible(c) for c in pool], dtype=bool)
        self.gradable = np.array([v is not Verdict.UNGRADABLE for v in verdicts], dtype=bool) & self.allowed
        self.correct = np.array([v is Verdict.CORRECT for v in verdicts], dtype=bool) & self.allowed
        answer_index: dict[str | None, int] = {}
        for c in pool:
            if eligible(c):
                answer_index.setdefault(c.answer, len(answer_index))
        self.answers = np.array([answer_index[c.answer] if eligible(c) else -1 for c in pool], dtype=np.int64)
        votes = np.bincount(self.answers[self.allowed], minlength=len(answer_index))
        # The mean grade of each answer. Equal answers have equal grades, unless the grader reads more than the answer.
        self.right = np.bincount(self.answers[self.allowed], self.correct[self.allowed], len(answer_index)) / votes

    def scores(self, rule: Method) -> Floats:
        """[M]: in [0, 1], UNSCORED, or -inf for a candidate that can't be chosen."""
        scores = [score_of(c, rule) for c in self.candidates]
        return np.where(self.allowed, [UNSCORED if s is None else s for s in scores], -np.inf)

    def rng(self, seed: int, *more: str) -> np.random.Generator:
        """A generator that depends on the seed, this problem and the texts `more`, not on other problems or their
        order."""
        texts = [self.problem.id, *more]
        return np.random.default_rng([seed, *(zlib.crc32(t.encode("utf-8", "surrogatepass")) for t in texts)])

"""One problem's candidates as arrays: what every measure of choosing among them reads.

What can't be chosen (it did not end, or has no answer) is wrong everywhere and loses to all; what a verifier could
not score loses to all that it scored (evaluation/rank.py).

    stepmark evaluate runs/demo
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from stepmark.evaluation.rank import Method, eligible, score_of
from stepmark.evaluation.stats import Floats
from stepmark.types import Candidate, GradedSolution, Problem, Verdict

UNSCORED = -1.0  # loses to every score, not to a candidate that can't be chosen


class CandidatePool:
    """One problem's candidates as arrays of length M."""

    def __init__(self, problem: Problem, pool: Sequence[Candidate], graded: Mapping[str, GradedSolution]) -> None:
        self.problem = problem
        self.candidates = pool
        verdicts = [graded[c.solution_id].grade.verdict for c in pool]
        self.allowed = np.array([eligible(c) for c in pool], dtype=bool)
        self.gradable = np.array([v is not Verdict.UNGRADABLE for v in verdicts], dtype=bool) & self.allowed
        self.correct = np.array([v is Verdict.CORRECT for v in verdicts], dtype=bool) & self.allowed
        names: dict[str | None, int] = {}
        for c in pool:
            if eligible(c):
                names.setdefault(c.answer, len(names))
        self.answers = np.array([names[c.answer] if eligible(c) else -1 for c in pool], dtype=np.int64)
        votes = np.bincount(self.answers[self.allowed], minlength=len(names))
        # Equal answers have equal grades, unless the grader looked at more than the answer: then their mean.
        self.right = np.bincount(self.answers[self.allowed], self.correct[self.allowed], len(names)) / votes

    def scores(self, rule: Method) -> Floats:
        """[M]: in [0, 1], UNSCORED, or -inf for what can't be chosen."""
        found = [score_of(c, rule) for c in self.candidates]
        return np.where(self.allowed, [UNSCORED if s is None else s for s in found], -np.inf)

    def rng(self, seed: int, *more: str) -> np.random.Generator:
        """Randomness that depends on the seed and this problem, not on the others or their order."""
        texts = [self.problem.id, *more]
        return np.random.default_rng([seed, *(zlib.crc32(t.encode("utf-8", "surrogatepass")) for t in texts)])

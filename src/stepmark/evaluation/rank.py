"""Selects an answer: the best-scored candidate, a vote, or a vote weighted by scores (Math-Shepherd, section 3.4).

    prm                      the candidate whose solution score is highest
    self_consistency         a_hat = argmax_a  sum_i 1[a_i = a]
    self_consistency+prm     a_hat = argmax_a  sum_i 1[a_i = a] * score(problem, S_i)      (equation 6)

`prm` stands for any verifier's name; `:prod` after it selects another aggregation of its step scores. Answers are
grouped in the form to which the grader normalised them, so "5" and "5.0" are one answer.

Our choices, where the paper says nothing: only a solution that ended and has an answer can be chosen. A solution that
the verifier could not score loses to every scored one and adds nothing to a weighted vote. Ties are broken at random,
with the same result for the same `seed` and problem.

    stepmark rank runs/demo --method self_consistency+prm
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stepmark.errors import ConfigError, DataError, UnknownName
from stepmark.evaluation.aggregate import Aggregate
from stepmark.evaluation.aggregate import aggregate as aggregated
from stepmark.types import Candidate, Finish, GradedSolution, Outcome, Selection, Solution, Verification

SELF_CONSISTENCY = "self_consistency"
TIE = 1e-9  # sums of scores closer than this are equal: they were added in a different order


@dataclass(frozen=True, slots=True)
class Method:
    """The parts of a selection method's name."""

    votes: bool  # whether the scores of candidates with the same answer are added
    verifier: str  # "" for plain voting
    aggregate: Aggregate  # how the verifier's step scores become one score

    @classmethod
    def parse(cls, name: str, aggregate: Aggregate = "min") -> Method:
        """Parses "prm", "self_consistency" or "self_consistency+prm"; ":AGGREGATE" may follow a verifier's name.
        Raises ConfigError for a name without a verifier where one is needed."""
        rule, colon, suffix = name.partition(":")
        if rule == SELF_CONSISTENCY:
            return cls(True, "", aggregate)
        verifier = rule.removeprefix(SELF_CONSISTENCY + "+")
        if not verifier:
            raise ConfigError(
                f"no method {name!r}: give a verifier's name, {SELF_CONSISTENCY!r}, or {SELF_CONSISTENCY + '+NAME'!r}."
            )
        return cls(verifier != rule, verifier, suffix if colon else aggregate)


def rank(
    candidates: Sequence[Candidate],
    method: str = "prm",
    aggregate: Aggregate = "min",
    *,
    problem_id: str = "",
    seed: int = 0,
) -> Selection:
    """The answer that `method` chooses among one problem's candidates; None as answer if no candidate can be chosen.

    Without `problem_id`, the id is taken from the candidates' ids. Raises UnknownName for a verifier that did not score
    these candidates, and for an unknown aggregation."""
    rule = Method.parse(method, aggregate)
    problem_id = problem_id or (candidates[0].solution_id.rpartition("#")[0] if candidates else "")
    scores = [score_of(c, rule) for c in candidates]
    allowed = [(c, s) for c, s in zip(candidates, scores, strict=True) if eligible(c)]
    if not allowed:
        return Selection(problem_id, None, None, method, len(candidates), 0.0, 0.0)
    groups: dict[str, list[tuple[Candidate, float]]] = defaultdict(list)
    for c, s in allowed:
        assert c.answer is not None
        # Without a verifier every vote counts 1. An unscored candidate gets less than any score.
        groups[c.answer].append((c, 1.0 if not rule.verifier else -1.0 if s is None else s))
    best = {a: max(s for _, s in group) for a, group in groups.items()}
    if rule.votes:
        weights = {a: math.fsum(max(s, 0.0) for _, s in group) for a, group in groups.items()}
        top = max(weights.values()) - TIE
        tied = sorted(a for a, w in weights.items() if w >= top)
    else:
        weights = {a: max(s, 0.0) for a, s in best.items()}
        top = max(best.values())
        # One entry per candidate, because the random choice is among candidates, not among answers.
        tied = sorted(a for a, group in groups.items() for _, s in group if s == top)
    answer = tied[0] if len(tied) == 1 else random.Random(f"{seed}|{problem_id}|{method}").choice(tied)
    chosen = next(c for c, s in groups[answer] if s == best[answer])
    total = math.fsum(weights.values())
    share = weights[answer] / total if total else 1 / len(weights)
    return Selection(problem_id, answer, chosen.solution_id, method, len(candidates), weights[answer], share)


def eligible(candidate: Candidate) -> bool:
    """Whether the candidate can be chosen: it ended, and the grader found an answer in it."""
    return candidate.finished and candidate.answer is not None


def score_of(candidate: Candidate, method: Method) -> float | None:
    """The candidate's score by the method's verifier; None if it could not be scored, or the method has no verifier.
    Raises UnknownName for a verifier that did not score the candidate."""
    if not method.verifier:
        return None
    if method.verifier not in candidate.scores:
        raise UnknownName("verifier that scored these candidates", method.verifier, candidate.scores)
    scores = candidate.scores[method.verifier]
    if not scores or not all(map(math.isfinite, scores)):
        return None
    return aggregated(scores, method.aggregate)


def candidates(
    solutions: Iterable[Solution],
    grades: Iterable[GradedSolution],
    verifications: Mapping[str, Iterable[Verification]] | None = None,
) -> dict[str, list[Candidate]]:
    """Joins solutions, grades and verifications: problem id -> its candidates, in order of sampling.

    Grades and verifications of other solutions are ignored. Raises DataError if a solution has no grade, or no
    verification by one of the verifiers: a vote over some of the candidates would look like a vote over all."""
    ordered = sorted(solutions, key=lambda s: (s.problem_id, s.sample))
    answers = {g.solution_id: g.grade.answer for g in grades}
    _require_all(ordered, answers, "grade", "stepmark grade")
    scores: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, verified in (verifications or {}).items():
        scores[name] = {v.solution_id: v.scores if v.outcome is Outcome.SCORED else () for v in verified}
        _require_all(ordered, scores[name], f"verification by {name}", "stepmark score")
    pools: dict[str, list[Candidate]] = defaultdict(list)
    for s in ordered:
        by_verifier = {name: by_id[s.id] for name, by_id in scores.items()}
        pools[s.problem_id].append(Candidate(s.id, answers[s.id], s.finish is Finish.STOP, by_verifier))
    return dict(pools)


def _require_all(solutions: Sequence[Solution], by_id: Mapping[str, object], record: str, command: str) -> None:
    missing = [s.id for s in solutions if s.id not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(solutions)} solutions have no {record}; the first is {missing[0]!r}. "
            f"`{command}` makes the missing ones."
        )

"""Several verifiers as one: the mean of their log-odds. Ours, in neither paper.

    score = sigmoid( mean_k logit(r_k) )        r_k: verifier k's score of the whole solution

Verifiers that read a solution in different ways err in different places; each says how sure it is by its log-odds, and
the mean keeps that. The weights are equal on purpose: fitted to examples that the members learned from, they would
trust most whichever member learned them by heart. A solution that a member could not score is not scored.

    stepmark train blend --option 'verifiers=[linear/, orm/]' --labels L.jsonl --out blend/
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepmark.data.store import write_json
from stepmark.errors import CheckpointError, ConfigError
from stepmark.models import scoring
from stepmark.plugins import verifier_card
from stepmark.plugins.loading import load_member
from stepmark.text.prompts import Template
from stepmark.types import LabelledSolution, Outcome, Problem, Solution, Verification

MEMBERS = "blend.json"


@dataclass(frozen=True, slots=True)
class BlendVerifier:
    """Blends the verifiers in `verifiers`, or, once written, those that `path` names."""

    path: str = ""  # a written blend, which knows its members
    verifiers: tuple[str, ...] | list[str] = ()  # directories of trained verifiers
    template: str = "{question}\n"
    device: str = "auto"

    def __post_init__(self) -> None:
        given: object = self.verifiers  # from a recipe, where anything may stand
        if not isinstance(given, tuple | list) or not all(isinstance(v, str) for v in given):
            raise ConfigError(f"blend: verifiers is a list of directories, got {given!r}.")
        object.__setattr__(self, "verifiers", tuple(given))

    def fit(self, examples: Sequence[tuple[Problem, LabelledSolution]], out: Path) -> int:
        """Writes which verifiers it blends; there is nothing to learn. Returns 0, the examples learned from.

        Raises ConfigError for fewer than two."""
        if len(self.verifiers) < 2:
            raise ConfigError(f"blend: needs at least two verifiers to blend, got {list(self.verifiers)}.")
        for place in self.verifiers:
            verifier_card.read_card(place)
        members = [scoring.relative(place, out) for place in self.verifiers]
        write_json(out / MEMBERS, {"verifiers": members})
        verifier_card.write_card(out, "blend", {"template": self.template}, {}, Template(self.template).hash)
        return 0

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each."""
        found = [member.verify(question, solutions) for member in self._members()]
        return [self._together(each) for each in zip(*found, strict=True)]

    def _together(self, each: Sequence[Verification]) -> Verification:
        bad = next((v for v in each if v.outcome is not Outcome.SCORED), None)
        if bad is not None:
            return replace(bad, scores=(), score=0.0, aggregate="last")
        odds = sum(scoring.logit(v.score) for v in each) / len(each)
        score = 1 / (1 + math.exp(-odds))
        rationales = tuple(r for v in each for r in v.rationales)
        tokens = sum(v.tokens for v in each)
        return Verification(each[0].solution_id, (score,), score, "last", rationales=rationales, tokens=tokens)

    def _members(self) -> list[Any]:
        place = Path(self.path) / MEMBERS
        if not place.is_file():
            raise CheckpointError(
                f"{self.path or 'this blend'} has no {MEMBERS}: write it first, stepmark train blend."
            )
        names = json.loads(place.read_text(encoding="utf-8"))["verifiers"]
        return [load_member(scoring.absolute(name, self.path), self.device) for name in names]

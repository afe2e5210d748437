"""A blend of several verifiers: the mean of their log-odds. Our own method; it is in neither paper.

    score = sigmoid( mean_k logit(r_k) )        r_k: verifier k's score of the whole solution

Verifiers that read a solution in different ways make different mistakes. The log-odds of a score say how sure its
verifier is, and the mean keeps that. All members have the same weight on purpose: weights fitted to the examples that
the members learned from would trust most the member that overfitted most. If one member cannot score a solution, the
blend does not score it.

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
    """Blends the verifiers in the directories `verifiers`, or the members of the written blend at `path`."""

    path: str = ""  # a written blend, which lists its members
    verifiers: tuple[str, ...] | list[str] = ()  # directories of trained verifiers
    template: str = "{question}\n"  # how the question is put before the solution
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu

    def __post_init__(self) -> None:
        members: object = self.verifiers  # it may come from a recipe, unchecked
        if not isinstance(members, tuple | list) or not all(isinstance(v, str) for v in members):
            raise ConfigError(f"blend: verifiers must be a list of directories, got {members!r}.")
        object.__setattr__(self, "verifiers", tuple(members))

    def fit(self, examples: Sequence[tuple[Problem, LabelledSolution]], out: Path) -> int:
        """Writes the list of members. Nothing is learned, so it returns 0, the number of examples learned from.

        Raises ConfigError for fewer than two members."""
        if len(self.verifiers) < 2:
            raise ConfigError(f"blend: needs at least two verifiers to blend, got {list(self.verifiers)}.")
        for directory in self.verifiers:
            verifier_card.read_card(directory)
        members = [scoring.relative(directory, out) for directory in self.verifiers]
        write_json(out / MEMBERS, {"verifiers": members})
        verifier_card.write_card(out, "blend", {"template": self.template}, {}, Template(self.template).hash)
        return 0

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each."""
        per_member = [member.verify(question, solutions) for member in self._members()]
        return [_blended(verifications) for verifications in zip(*per_member, strict=True)]

    def _members(self) -> list[Any]:
        file = Path(self.path) / MEMBERS
        if not file.is_file():
            raise CheckpointError(
                f"{self.path or 'this blend'} has no {MEMBERS}. Write it first with: stepmark train blend"
            )
        directories = json.loads(file.read_text(encoding="utf-8"))["verifiers"]
        return [load_member(scoring.absolute(directory, self.path), self.device) for directory in directories]


def _blended(verifications: Sequence[Verification]) -> Verification:
    """One verification from the members' verifications of one solution."""
    unscored = next((v for v in verifications if v.outcome is not Outcome.SCORED), None)
    if unscored is not None:
        return replace(unscored, scores=(), score=0.0, aggregate="last")
    log_odds = sum(scoring.logit(v.score) for v in verifications) / len(verifications)
    score = 1 / (1 + math.exp(-log_odds))
    rationales = tuple(r for v in verifications for r in v.rationales)
    tokens = sum(v.tokens for v in verifications)
    return Verification(verifications[0].solution_id, (score,), score, "last", rationales=rationales, tokens=tokens)

"""Implicit verifier: how much likelier a solution became by preferring right ones to wrong ones (Rafailov et al., 2023,
arXiv 2305.18290, equations 5 and 7; as a verifier in V-STaR, arXiv 2402.06457, and a baseline of GenRM's).

    L = -log sigmoid( beta * [ R(y+) - R(y-) ] ),       R(y) = log pi(y | x) - log ref(y | x)
    score = sigmoid( beta * R(y) )

pi is what learns, ref the checkpoint that it started from; y ends with the end token, since generation does. y+ and y-
are a right and a wrong solution of one question: up to `pairs` of them, spread evenly over its solutions. Questions
without both kinds, ungradable solutions and repeated texts teach nothing.

- R is a sum over tokens, and training settles only its differences within a question. Where every token became a
  little less likely, as often happens, a text longer than those trained on is ranked low for its length alone.
  length_normalized=True takes the mean over tokens, in training and in scoring (ours; it wants a larger beta).
- The level being free, 0.5 is no boundary between right and wrong: compare scores within a question.
- `score_beta` changes no ranking, but weighted votes and blends see how far apart scores are.
- The reference reads each batch beside pi, where others read all pairs once before: this way both are in the batch's
  own precision, so that training starts at log 2 exactly and what is learned from doesn't depend on the device. It
  takes a third more work.

    stepmark train dpo --base generator/ --task arithmetic --labels L.jsonl --out dpo/
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.errors import CheckpointError, ConfigError, DataError, EncodingError
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded, boundaries, token_ids
from stepmark.plugins import verifier_card
from stepmark.text.prompts import Template
from stepmark.text.sanitize import sanitize, sanitize_text
from stepmark.types import LabelledSolution, Problem, Solution, Verdict, Verification

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Pair:
    """Two solutions of one question, to learn from together."""

    question: str
    right: Solution
    wrong: Solution


@dataclass(frozen=True, slots=True)
class ImplicitVerifier:
    """Trains from the checkpoint at `path`, its reference then; or scores with the verifier there."""

    path: str  # a causal language model to start from, or a trained verifier
    reference: str = ""  # for scoring: where the checkpoint is that it started from, seen from `path`; its card says
    beta: float = 0.1  # how dear it is to leave the reference
    score_beta: float = 0.0  # what R is multiplied by for a score; 0 takes beta
    pairs: int = 4  # of a right and a wrong solution, at most so many for a question
    length_normalized: bool = False  # R per token
    template: str = "{question}\n"
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        faults = []
        if not (self.beta > 0 and math.isfinite(self.beta)):
            faults.append(f"dpo: beta must be above 0, got {self.beta}.")
        if not (self.score_beta >= 0 and math.isfinite(self.score_beta)):
            faults.append(f"dpo: score_beta must be above 0, or 0 to take beta, got {self.score_beta}.")
        if self.pairs < 1:
            faults.append(f"dpo: pairs must be at least 1 for a question, got {self.pairs}.")
        if faults:
            raise ConfigError(faults)

    # ---- text to ids: the one place, for training and scoring ----

    def encode(self, question: str, solution: Solution) -> Encoded:
        """Question, solution without its claims about itself, and end token; the last two are weighed. Raises
        EncodingError without an end token."""
        tokenizer = self._tokenizer()
        if tokenizer.eos_token_id is None:
            raise EncodingError(f"{self.path}: its tokenizer has no end token, and a solution's likelihood needs one.")
        context = Template(self.template).render(question)
        ids, spans = token_ids(tokenizer, context + sanitize_text(solution.text).rstrip())
        (start,) = boundaries(spans, [len(context)])
        weights = (*(float(t >= start) for t in range(len(ids))), 1.0)
        return Encoded((*ids, int(tokenizer.eos_token_id)), at=(len(ids),), weights=weights)

    # ---- training ----

    def build(self) -> torch.nn.Module:
        return checkpoints.load_model(
            self.path, dtype="float32", device="cpu", trust_remote_code=self.trust_remote_code
        )

    def choose(self, examples: Sequence[tuple[Problem, LabelledSolution]]) -> Sequence[Pair]:
        """The pairs to learn from, the same at every call, by question in the order they first came.

        Raises DataError when no question has a right and a wrong solution."""
        if self.reference:
            raise ConfigError(
                f"dpo: in training the reference is the checkpoint that it starts from, {self.path}; "
                f"got reference={self.reference!r}. Leave it out, or start from that one."
            )
        # By text: a text that is right here and wrong there says nothing, and one drawn twice says it once.
        found: dict[str, dict[str, tuple[Solution, set[Verdict]]]] = {}
        for problem, x in examples:
            read_as = sanitize(x.solution)
            if x.grade.verdict is not Verdict.UNGRADABLE and read_as.kept:
                texts = found.setdefault(problem.question, {})
                texts.setdefault(read_as.solution.text.rstrip(), (x.solution, set()))[1].add(x.grade.verdict)
        pairs = []
        for question, texts in found.items():
            right = [s for s, verdicts in texts.values() if verdicts == {Verdict.CORRECT}]
            wrong = [s for s, verdicts in texts.values() if verdicts == {Verdict.INCORRECT}]
            pairs += [Pair(question, right[i], wrong[j]) for i, j in _spread(len(right), len(wrong), self.pairs)]
        if not pairs:
            raise DataError(
                f"none of the {len(found)} questions with graded solutions has both a right and a wrong one, and dpo "
                "learns from such pairs alone. Sample more solutions of each question."
            )
        return pairs

    def encode_example(self, example: Pair) -> Encoded | None:
        """Both solutions, each after the question, as two parts of one sequence: the right one has target 1."""
        right, wrong = (self.encode(example.question, s) for s in (example.right, example.wrong))
        if right.ids == wrong.ids:
            return None
        return Encoded(
            right.ids + wrong.ids,
            at=(*right.at, len(right) + wrong.at[0]),
            targets=(1.0, 0.0),
            weights=right.weights + wrong.weights,
            parts=(len(right),),
        )

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """-log sigmoid(beta * [R(y+) - R(y-)]), the mean over the update's pairs."""
        from torch.nn.functional import logsigmoid

        reference = self._model(self.path, "float32", str(batch.ids.device))
        ratios = self._ratios(model, reference, batch)
        margins = (ratios * (2 * batch.targets - 1)).reshape(-1, 2).sum(-1)  # a pair's two places follow one another
        return -logsigmoid(self.beta * margins).sum() / totals.sequences

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, self._tokenizer())  # type: ignore[arg-type]
        options = {k: v for k, v in asdict(self).items() if k not in ("path", "device")}
        options["reference"] = scoring.relative(self.path, out)
        verifier_card.write_card(out, "dpo", options, self._ids(), Template(self.template).hash)

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(self._tokenizer())

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each; `tokens` are those of both models.

        Raises CheckpointError when the reference is gone, or reads text in other tokens."""
        reference = self._reference()
        verifier_card.check_card(self.path, self._ids(), Template(self.template).hash)
        model, frozen = (self._model(path, self.dtype, self.device) for path in (self.path, reference))
        scale = self.score_beta or self.beta
        found = scoring.verify(
            solutions,
            lambda s: self.encode(question, s),
            # In double precision sigmoid tells a log ratio of 300 nats from one of 290, which in single are both 1.
            lambda b: (scale * self._ratios(model, frozen, b).double()).sigmoid(),
            aggregate="last",
            max_length=min(scoring.max_length(model), scoring.max_length(frozen)),
            pad_id=self.pad_id,
            device=str(model.device),
        )
        return [replace(v, tokens=2 * v.tokens) for v in found]

    # ---- shared by both ----

    def _ratios(self, model: Any, reference: Any, batch: packing.Batch) -> torch.Tensor:
        """[K] R(y) of each solution: summed over its tokens, or their mean."""
        import torch

        with torch.no_grad():
            before = packing.log_probs_of(scoring.outputs(reference, batch), reference.get_output_embeddings(), batch)
        ratios = packing.log_probs_of(scoring.outputs(model, batch), model.get_output_embeddings(), batch) - before
        if not self.length_normalized:
            return ratios
        seen = batch.mask[batch.rows, 0, batch.columns]
        return ratios / (batch.weights[batch.rows] * seen).sum(-1)

    def _model(self, path: str, dtype: str, device: str) -> Any:
        return scoring.cached_model(path, "CausalLM", dtype, device, self.trust_remote_code)

    def _reference(self) -> str:
        if not self.reference:
            raise CheckpointError(
                f"{self.path} was not trained as a dpo verifier, so there is no reference to compare it with. "
                "Train one: stepmark train dpo --help"
            )
        place = scoring.absolute(self.reference, self.path)
        try:
            same = _same_words(
                self.path, checkpoints.version(self.path), place, checkpoints.version(place), self.trust_remote_code
            )
        except CheckpointError as e:
            raise CheckpointError(
                f"{self.path} scores against the checkpoint that it was trained from, {place}, which can't be used: "
                f"{e} Move or copy both together, or say where it is: reference=DIRECTORY."
            ) from e
        if not same:
            raise CheckpointError(
                f"{self.path} scores against the checkpoint that it was trained from, and {place} reads text in other "
                "tokens than it does: it is another one. Say where the right one is: reference=DIRECTORY."
            )
        return place

    def _tokenizer(self) -> Any:
        return checkpoints.load_tokenizer(self.path, self.trust_remote_code)

    def _ids(self) -> dict[str, int]:
        return {"end": int(self._tokenizer().eos_token_id)}


@lru_cache(maxsize=16)
def _same_words(a: str, _version_a: int, b: str, _version_b: int, trust_remote_code: bool) -> bool:
    """Whether two checkpoints have the same vocabulary."""
    first, second = (checkpoints.load_tokenizer(path, trust_remote_code).get_vocab() for path in (a, b))
    return first == second


def _spread(n: int, m: int, most: int) -> Iterator[tuple[int, int]]:
    """The first `most` of all n * m pairs of indices, ordered so that each index comes up as often as any other."""
    turns = math.lcm(n, m)
    for k in range(min(n * m, most)):
        yield k % n, (k + k // turns) % m

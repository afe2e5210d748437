"""Implicit verifier (DPO): the score of a solution is how much likelier preference training made it.

Training prefers right solutions to wrong ones (Rafailov et al., 2023, arXiv 2305.18290, equations 5 and 7). V-STaR
(arXiv 2402.06457) uses it as a verifier, and GenRM (arXiv 2408.15240) compares with it.

    L = -log sigmoid( beta * [ R(y+) - R(y-) ] ),       R(y) = log pi(y | x) - log ref(y | x)
    score = sigmoid( beta * R(y) )

pi is the model that learns, and ref is the checkpoint that it started from. y ends with the end token, as a generated
text does. y+ and y- are a right and a wrong solution of one question. A question gives up to `pairs` pairs, spread
evenly over its solutions. Questions without both kinds, ungradable solutions and repeated texts are not learned from.

- R is a sum over tokens, and training fixes only its differences within a question. Training often makes every token a
  little less likely. A text longer than the training texts then gets a low rank because of its length alone.
  length_normalized=True takes the mean over tokens, in training and in scoring (ours; it needs a larger beta).
- The level of R is free, so 0.5 is no boundary between right and wrong. Compare scores within a question only.
- `score_beta` changes no ranking, but it changes how far apart scores are, which weighted votes and blends use.
- The reference model reads each batch together with pi. Other implementations read all pairs once before training. Here
  both models run in the precision of the batch, so the loss starts at log 2 exactly, and the training data holds no
  number that depends on the device. It costs a third more work.

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
    """A right and a wrong solution of one question, learned from together."""

    question: str
    right: Solution
    wrong: Solution


@dataclass(frozen=True, slots=True)
class ImplicitVerifier:
    """Trains from the checkpoint at `path`, which is then the reference; or scores with the verifier at `path`."""

    path: str  # a causal language model to start from, or a trained verifier
    reference: str = ""  # for scoring: the checkpoint that it started from, relative to `path`; set by its card
    beta: float = 0.1  # strength of the pull to the reference
    score_beta: float = 0.0  # factor of R in the score; 0 takes beta
    pairs: int = 4  # largest number of pairs per question
    length_normalized: bool = False  # R is the mean over tokens, not the sum
    template: str = "{question}\n"  # how the question is put before the solution
    dtype: str = "float32"  # of the weights while scoring; a difference of two sums has little left in 16 bits
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run

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

    # ---- text to token ids, for training and scoring alike ----

    def encode(self, question: str, solution: Solution) -> Encoded:
        """Question, solution without its claims about itself, and end token. Solution and end token have weight 1.

        Raises EncodingError for a tokenizer without an end token."""
        tokenizer = self._tokenizer()
        if tokenizer.eos_token_id is None:
            raise EncodingError(f"{self.path}: the tokenizer has no end token, and a solution's likelihood needs one.")
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
        """The pairs to learn from, the same at every call. Questions keep the order in which they first came.

        Raises DataError when no question has a right and a wrong solution."""
        if self.reference:
            raise ConfigError(
                f"dpo: in training the reference is the checkpoint that training starts from, {self.path}; "
                f"got reference={self.reference!r}. Leave it out, or start from that checkpoint."
            )
        # By text: a text drawn twice counts once, and a text graded both right and wrong is left out.
        by_question: dict[str, dict[str, tuple[Solution, set[Verdict]]]] = {}
        for problem, labelled in examples:
            sanitized = sanitize(labelled.solution)
            if labelled.grade.verdict is not Verdict.UNGRADABLE and sanitized.kept:
                texts = by_question.setdefault(problem.question, {})
                text = sanitized.solution.text.rstrip()
                texts.setdefault(text, (labelled.solution, set()))[1].add(labelled.grade.verdict)
        pairs = []
        for question, texts in by_question.items():
            right = [s for s, verdicts in texts.values() if verdicts == {Verdict.CORRECT}]
            wrong = [s for s, verdicts in texts.values() if verdicts == {Verdict.INCORRECT}]
            pairs += [Pair(question, right[i], wrong[j]) for i, j in _spread(len(right), len(wrong), self.pairs)]
        if not pairs:
            raise DataError(
                f"none of the {len(by_question)} questions with graded solutions has both a right and a wrong one, and "
                "dpo learns from such pairs only. Sample more solutions of each question."
            )
        return pairs

    def encode_example(self, example: Pair) -> Encoded | None:
        """Both solutions, each after the question, as two parts of one sequence. The right one has target 1.

        None when both have the same ids."""
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
        margins = (ratios * (2 * batch.targets - 1)).reshape(-1, 2).sum(-1)  # the two places of a pair are neighbours
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
        """One verification per solution, in order, with a single score each. `tokens` counts both models.

        Raises CheckpointError when the reference is missing or has another vocabulary."""
        reference = self._reference()
        verifier_card.check_card(self.path, self._ids(), Template(self.template).hash)
        model, frozen = (self._model(path, self.dtype, self.device) for path in (self.path, reference))
        scale = self.score_beta or self.beta
        verifications = scoring.verify(
            solutions,
            lambda s: self.encode(question, s),
            # Double precision: in single precision the sigmoids of log ratios of 300 and 290 nats would both be 1. On
            # the CPU, because mps has none.
            lambda b: (scale * self._ratios(model, frozen, b).cpu().double()).sigmoid(),
            aggregate="last",
            max_length=min(scoring.max_length(model), scoring.max_length(frozen)),
            pad_id=self.pad_id,
            device=str(model.device),
        )
        return [replace(v, tokens=2 * v.tokens) for v in verifications]

    # ---- shared by training and scoring ----

    def _ratios(self, model: Any, reference: Any, batch: packing.Batch) -> torch.Tensor:
        """[K] R(y) of each solution: the sum over its tokens, or with `length_normalized` the mean."""
        import torch

        with torch.no_grad():
            reference_log_probs = packing.log_probs_of(
                scoring.outputs(reference, batch), scoring.output_layer(reference), batch
            )
        log_probs = packing.log_probs_of(scoring.outputs(model, batch), scoring.output_layer(model), batch)
        ratios = log_probs - reference_log_probs
        if not self.length_normalized:
            return ratios
        seen = batch.mask[batch.rows, 0, batch.columns]
        return ratios / (batch.weights[batch.rows] * seen).sum(-1)

    def _model(self, path: str, dtype: str, device: str) -> Any:
        return scoring.cached_model(path, "CausalLM", dtype, device, self.trust_remote_code)

    def _reference(self) -> str:
        if not self.reference:
            raise CheckpointError(
                f"{self.path} was not trained as a dpo verifier, so it has no reference to compare with. "
                "Train one: stepmark train dpo --help"
            )
        reference = scoring.absolute(self.reference, self.path)
        versions = checkpoints.version(self.path), checkpoints.version(reference)
        try:
            same = _same_vocabulary(self.path, versions[0], reference, versions[1], self.trust_remote_code)
        except CheckpointError as e:
            raise CheckpointError(
                f"{self.path} needs the checkpoint that it was trained from, {reference}, which can't be used: {e} "
                "Move or copy both together, or say where the checkpoint is: reference=DIRECTORY."
            ) from e
        if not same:
            raise CheckpointError(
                f"{self.path} needs the checkpoint that it was trained from, but {reference} encodes text in other "
                "tokens, so it is another model. Say where the right one is: reference=DIRECTORY."
            )
        return reference

    def _tokenizer(self) -> Any:
        return checkpoints.load_tokenizer(self.path, self.trust_remote_code)

    def _ids(self) -> dict[str, int]:
        return {"end": int(self._tokenizer().eos_token_id)}


@lru_cache(maxsize=16)
def _same_vocabulary(a: str, _version_a: int, b: str, _version_b: int, trust_remote_code: bool) -> bool:
    """Whether two checkpoints have the same vocabulary."""
    first, second = (checkpoints.load_tokenizer(path, trust_remote_code).get_vocab() for path in (a, b))
    return first == second


def _spread(n: int, m: int, limit: int) -> Iterator[tuple[int, int]]:
    """The first `limit` of all n * m pairs of indices, ordered so that each index appears as often as any other."""
    period = math.lcm(n, m)
    for k in range(min(n * m, limit)):
        yield k % n, (k + k // period) % m

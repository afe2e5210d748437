"""Likelihood correction: another verifier's scores, corrected by how unlikely the generator found each step. Our own
method; it is in neither paper.

A small verifier learns the errors that are frequent in its training data. Best-of-N then selects solutions with rare
errors: a solution with one slip, and otherwise sound, gets a higher score than correct candidates. A slip is rare for
the generator too, so a step with a slip has a token that the generator gave a low probability. Therefore

    r'_i = sigmoid(a * logit(r_i) + b * min_t log p(token t of step i | what precedes it) + c)

where r_i is the other verifier's score of step i and p is the generator's own distribution at temperature 1. The three
numbers a, b, c are fitted so that min_i r'_i predicts whether a solution's final answer is right. The fit is a logistic
regression on each solution's weakest step, repeated until the weakest steps stay the same. Fitting to the rollouts'
step labels was tried and is worse: with a weak completer, many right steps have the label wrong, which makes b small,
while final answers are graded without error (docs/results/arithmetic.md). Where likelihood is not informative, as may
happen with free-form text, b is near zero. No model weights change: any verifier directory and any causal language
model can be combined. Without another verifier only the likelihood is used, which is the ablation.

    stepmark train likelihood_corrected --base generator/ --option verifier=prm/ --labels L.jsonl --out prm_surprise/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stepmark.data.store import write_json
from stepmark.errors import CheckpointError, DataError
from stepmark.evaluation import aggregate as aggregation
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded, boundaries, token_ids
from stepmark.plugins import verifier_card
from stepmark.plugins.loading import load_member
from stepmark.text.prompts import Template
from stepmark.text.sanitize import sanitize
from stepmark.types import LabelledSolution, Outcome, Problem, Solution, Verdict, Verification

if TYPE_CHECKING:
    import numpy as np
    import torch

FITTED = "likelihood_corrected.json"
OLD_FITTED = "surprise.json"  # name of that file in older verifiers of this kind
ROUNDS = 50  # most rounds of choosing each solution's weakest step; a few are usual, but they could cycle
RIDGE = 1e-3  # keeps the fit finite when the labels are perfectly separable


@dataclass(frozen=True, slots=True)
class LikelihoodCorrectedVerifier:
    """Fits on, or scores with, two models; it changes neither of them."""

    per_step: ClassVar[bool] = True  # a score for each step

    path: str  # the generator; or a fitted verifier, whose file names its generator
    verifier: str = ""  # directory of the verifier to correct; "" uses likelihood alone
    aggregate: str = "min"  # how step scores are combined into the solution's score
    template: str = "{question}\n"  # how the question is put before the solution
    dtype: str = "auto"  # of the weights while scoring; auto: bfloat16 where it is faster and agrees (precision.py)
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run

    # ---- fitting ----

    def fit(self, examples: Sequence[tuple[Problem, LabelledSolution]], out: Path) -> int:
        """Fits a, b, c on the examples' grades and writes the verifier. Returns the number of solutions used.

        Raises DataError without both right and wrong solutions."""
        import numpy as np

        by_question: dict[str, list[LabelledSolution]] = {}
        for problem, labelled in examples:
            if labelled.solution.spans and labelled.grade.verdict is not Verdict.UNGRADABLE:
                by_question.setdefault(problem.question, []).append(labelled)
        features: list[np.ndarray] = []
        targets: list[float] = []
        for question, group in by_question.items():
            sanitized = [sanitize(labelled.solution).solution for labelled in group]
            features_or_reasons = self._features(self.path, self.verifier, question, sanitized)
            for labelled, rows in zip(group, features_or_reasons, strict=True):
                if not isinstance(rows, Verification):
                    features.append(np.array(rows))
                    targets.append(float(labelled.grade.correct))
        if len(set(targets)) < 2:
            raise DataError(
                f"{len(targets)} graded solutions, all right or all wrong; the fit needs both kinds. Sample more."
            )
        a, b, c = _weakest_step(features, np.array(targets))
        write_json(
            out / FITTED,
            {
                "generator": scoring.relative(self.path, out),
                "verifier": scoring.relative(self.verifier, out),
                "coefficients": {"logit": a, "log_likelihood": b, "constant": c},
                "solutions": len(targets),
            },
        )
        options = {k: getattr(self, k) for k in ("aggregate", "template", "dtype", "trust_remote_code")}
        verifier_card.write_card(out, "likelihood_corrected", options, {}, Template(self.template).hash)
        return len(targets)

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order. Solutions that the other verifier could not score stay unscored."""
        sanitized = [sanitize(s) for s in solutions]
        verifications = []
        for v, s in zip(self._verify(question, [s.solution for s in sanitized]), sanitized, strict=True):
            # A single score may be of the whole solution.
            scores = s.spread(v.scores) if len(v.scores) > 1 else v.scores
            verifications.append(replace(v, scores=scores, score=aggregation.aggregate(scores, self.aggregate)))
        return verifications

    def _verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        import numpy as np

        fitted = self._fitted()
        verifier_card.check_card(self.path, {}, Template(self.template).hash)
        coefficients = fitted["coefficients"]
        a, c = coefficients["logit"], coefficients["constant"]
        b = coefficients["log_likelihood"] if "log_likelihood" in coefficients else coefficients["surprise"]
        generator, verifier = (scoring.absolute(fitted[k], self.path) for k in ("generator", "verifier"))
        inner = self._inner(verifier, question, solutions)
        scored = [i for i, v in enumerate(inner) if v.outcome is Outcome.SCORED]
        features = self._features(
            generator, verifier, question, [solutions[i] for i in scored], [inner[i] for i in scored]
        )
        verifications = [replace(v, aggregate=self.aggregate, score=0.0) for v in inner]
        for i, rows in zip(scored, features, strict=True):
            if isinstance(rows, Verification):
                verifications[i] = rows
                continue
            scores = tuple(1 / (1 + float(np.exp(-(a * logit + b * lowest + c)))) for logit, lowest in rows)
            verifications[i] = replace(
                inner[i], scores=scores, score=aggregation.aggregate(scores, self.aggregate), aggregate=self.aggregate
            )
        return verifications

    # ---- shared by training and scoring ----

    def _features(
        self,
        generator: str,
        verifier: str,
        question: str,
        solutions: Sequence[Solution],
        inner: Sequence[Verification] | None = None,
    ) -> list[list[tuple[float, float]] | Verification]:
        """For each solution and each score of the other verifier: its logit, and the lowest log p of its tokens.

        If the verifier gives one score for all steps, that is the lowest log p of the whole solution. A solution that
        could not be scored, or is too long for the generator, gets a Verification that says so instead."""
        inner = self._inner(verifier, question, solutions) if inner is None else inner
        scored = [i for i, v in enumerate(inner) if v.outcome is Outcome.SCORED]
        log_probs = self._lowest_log_probs(generator, question, [solutions[i] for i in scored])
        by_index = dict(zip(scored, log_probs, strict=True))
        features: list[list[tuple[float, float]] | Verification] = []
        for i, v in enumerate(inner):
            lowest = by_index.get(i, v)
            if isinstance(lowest, Verification):
                features.append(replace(lowest, aggregate=self.aggregate, score=0.0))
                continue
            if len(v.scores) == 1 and len(lowest) > 1:
                lowest = [min(lowest)]
            features.append([(scoring.logit(r), low) for r, low in zip(v.scores, lowest, strict=True)])
        return features

    def _inner(self, verifier: str, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """The other verifier's verifications; without one, every step has the score 0.5."""
        if not verifier:
            uniform = [Verification(s.id, (0.5,) * len(s.spans), 0.5, self.aggregate) for s in solutions]
            return [scoring.unfinished(s, self.aggregate) or v for s, v in zip(solutions, uniform, strict=True)]
        verifications: list[Verification] = load_member(verifier, self.device).verify(question, solutions)
        return verifications

    def _lowest_log_probs(
        self, generator: str, question: str, solutions: Sequence[Solution]
    ) -> list[list[float] | Verification]:
        """[solutions][steps] the lowest log p of a token in the step, in nats. The end token belongs to the last step.

        A solution longer than the generator's positions gets a Verification that says so instead."""
        model = scoring.cached_model(generator, "CausalLM", self.dtype, self.device, self.trust_remote_code)
        tokenizer = checkpoints.load_tokenizer(generator, self.trust_remote_code)
        context = Template(self.template).render(question)
        encoded: dict[int, Encoded] = {}
        cuts: dict[int, list[int]] = {}
        lowest: list[list[float] | Verification] = [[] for _ in solutions]
        for i, s in enumerate(solutions):
            ids, spans = token_ids(tokenizer, context + s.text)
            starts = boundaries(spans, [len(context), *(len(context) + end for _, end in s.spans)])[:-1]
            if (bad := scoring.too_long(s, self.aggregate, len(ids) + 1, scoring.max_length(model))) is not None:
                lowest[i] = bad
                continue
            # The first token of a text has no probability, since nothing precedes it.
            cuts[i] = [*(max(1, start) for start in starts), len(ids) + 1]
            read = range(cuts[i][0], len(ids) + 1)
            weights = (*(0.0,) * read.start, *(1.0,) * len(read))
            encoded[i] = Encoded((*ids, int(tokenizer.eos_token_id)), at=tuple(read), weights=weights)

        def log_probs(b: packing.Batch) -> torch.Tensor:
            every = packing.token_log_probs(scoring.outputs(model, b), scoring.output_layer(model), b)
            return every[b.rows, b.columns]

        pad_id = checkpoints.pad_id(tokenizer)
        for i, values in scoring.read_all(encoded, log_probs, pad_id, str(model.device)):
            row, first = values.numpy(), cuts[i][0]
            # A step without a token of its own (neighbours' tokens cover it) gets 0, the log p of a sure token.
            lowest[i] = [float(row[a - first : b - first].min()) if b > a else 0.0 for a, b in pairwise(cuts[i])]
        return lowest

    def _fitted(self) -> Mapping[str, Any]:
        for name in (FITTED, OLD_FITTED):
            if (file := Path(self.path) / name).is_file():
                fitted: Mapping[str, Any] = json.loads(file.read_text())
                return fitted
        raise CheckpointError(
            f"{self.path} has no {FITTED}, so it was never fitted. See: stepmark train likelihood_corrected --help"
        )


def _weakest_step(solutions: Sequence[np.ndarray], y: np.ndarray) -> tuple[float, float, float]:
    """Logistic regression of y [n] on one row per solution [steps, 2]: the row that the regression scores lowest."""
    import numpy as np

    w, chosen = (1.0, 1.0, 0.0), np.array([], dtype=int)
    for _ in range(ROUNDS):
        weakest = np.array([int(np.argmin(x @ np.array(w[:2]))) for x in solutions])
        if np.array_equal(weakest, chosen):
            break
        chosen = weakest
        w = _logistic(np.array([x[i] for x, i in zip(solutions, chosen, strict=True)]), y)
    return w


def _logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Weights of the two columns of x [n, 2] and the constant that minimise the mean cross-entropy, by Newton's
    method with backtracking."""
    import numpy as np

    design = np.column_stack([x, np.ones(len(x))])
    w = np.zeros(3)

    def cost(w: np.ndarray) -> float:
        z = design @ w
        return float(np.mean(np.logaddexp(0, z) - y * z) + RIDGE / 2 * w[:2] @ w[:2])

    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ w))
        ridge = RIDGE * np.array([1.0, 1.0, 0.0])
        gradient = design.T @ (p - y) / len(y) + ridge * w
        hessian = (design * (p * (1 - p))[:, None]).T @ design / len(y) + np.diag(ridge + 1e-12)
        direction, scale = np.linalg.solve(hessian, gradient), 1.0
        while cost(w - scale * direction) > cost(w) and scale > 1e-4:
            scale /= 2
        w = w - scale * direction
        if np.abs(scale * direction).max() < 1e-8:
            break
    return float(w[0]), float(w[1]), float(w[2])

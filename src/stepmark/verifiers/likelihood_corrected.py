"""Another verifier's scores, corrected by how much each step surprises the model that wrote it: ours, in neither paper.

A small verifier learns the errors that its training data shows often, and best-of-N then goes and finds the rare
ones: a slip in a solution that is otherwise sound wins against honest candidates. But a slip is rare for the
generator too, and the generator says so: somewhere in the step stands a token that it thought unlikely. So

    r'_i = sigmoid(a * logit(r_i) + b * min_t log p(token t of step i | what precedes it) + c)

where r_i is the other verifier's score of step i and p the generator's own distribution at temperature 1. The three
numbers are fitted so that min_i r'_i predicts whether a solution's final answer is right: a logistic regression on
each solution's weakest step, repeated until the same steps stay the weakest. Fitting them to the rollouts' step
labels instead was tried and is worse: those call many right steps wrong where the completer is weak, which mutes b,
while final answers are graded without error (docs/results/arithmetic.md). Where likelihood tells nothing, as it may
on free-form text, b comes out near zero. No weights change: it sits on any verifier directory and any causal language
model. Without another verifier likelihood alone is left, which is the ablation.

    stepmark train likelihood_corrected --base generator/ --option verifier=prm/ --labels L.jsonl --out prm_surprise/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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
    import torch

FITTED = "likelihood_corrected.json"
OLD_FITTED = "surprise.json"  # what the first verifiers of this kind have
ROUNDS = 50  # of choosing each solution's weakest step; a handful is usual, and they could go in circles
RIDGE = 1e-3  # keeps the fit finite when labels can be told apart perfectly


@dataclass(frozen=True, slots=True)
class LikelihoodCorrectedVerifier:
    """Fits on, or scores with, two models that it leaves as they are."""

    per_step: ClassVar[bool] = True  # a score for each step

    path: str  # the generator whose surprise counts; or a fitted verifier, which knows its generator
    verifier: str = ""  # directory of the verifier to correct; "" uses likelihood alone
    aggregate: str = "min"  # how step scores become the solution's
    template: str = "{question}\n"
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False

    # ---- fitting ----

    def fit(self, examples: Sequence[tuple[Problem, LabelledSolution]], out: Path) -> int:
        """Fits a, b, c on the examples' grades and writes the verifier; returns how many solutions they were.

        Raises DataError without both right and wrong solutions."""
        by_question: dict[str, list[LabelledSolution]] = {}
        for problem, labelled in examples:
            if labelled.solution.spans and labelled.grade.verdict is not Verdict.UNGRADABLE:
                by_question.setdefault(problem.question, []).append(labelled)
        features: list[np.ndarray] = []
        targets: list[float] = []
        for question, group in by_question.items():
            read_as = [sanitize(g.solution).solution for g in group]
            found = self._features(self.path, self.verifier, question, read_as)
            for labelled, rows in zip(group, found, strict=True):
                if not isinstance(rows, Verification):
                    features.append(np.array(rows))
                    targets.append(float(labelled.grade.correct))
        if len(set(targets)) < 2:
            raise DataError(
                f"{len(targets)} graded solutions, all right or all wrong: there is nothing to tell apart. Sample more."
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
        """One verification per solution, in order. What the other verifier could not score stays unscored."""
        read_as = [sanitize(s) for s in solutions]
        found = self._verify(question, [n.solution for n in read_as])
        out = []
        for v, n in zip(found, read_as, strict=True):
            scores = n.spread(v.scores) if len(v.scores) > 1 else v.scores  # one may be the whole solution's
            out.append(replace(v, scores=scores, score=aggregation.aggregate(scores, self.aggregate)))
        return out

    def _verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        fitted = self._fitted()
        verifier_card.check_card(self.path, {}, Template(self.template).hash)
        coefficients = fitted["coefficients"]
        a, c = coefficients["logit"], coefficients["constant"]
        b = coefficients["log_likelihood"] if "log_likelihood" in coefficients else coefficients["surprise"]
        generator, verifier = (scoring.absolute(fitted[k], self.path) for k in ("generator", "verifier"))
        inner = self._inner(verifier, question, solutions)
        scored = [i for i, v in enumerate(inner) if v.outcome is Outcome.SCORED]
        found = self._features(
            generator, verifier, question, [solutions[i] for i in scored], [inner[i] for i in scored]
        )
        out = [replace(v, aggregate=self.aggregate, score=0.0) for v in inner]
        for i, rows in zip(scored, found, strict=True):
            if isinstance(rows, Verification):
                out[i] = rows
                continue
            scores = tuple(1 / (1 + float(np.exp(-(a * logit + b * lowest + c)))) for logit, lowest in rows)
            out[i] = replace(
                inner[i], scores=scores, score=aggregation.aggregate(scores, self.aggregate), aggregate=self.aggregate
            )
        return out

    # ---- shared by both ----

    def _features(
        self,
        generator: str,
        verifier: str,
        question: str,
        solutions: Sequence[Solution],
        inner: Sequence[Verification] | None = None,
    ) -> list[list[tuple[float, float]] | Verification]:
        """For each solution and each score of the other verifier: its logit, and the least log p in its tokens.
        A verifier with one score for all steps gets the least of the whole solution. For a solution that could not
        be scored, or that the generator can't read to its end: what to say of it."""
        inner = self._inner(verifier, question, solutions) if inner is None else inner
        ready = [i for i, v in enumerate(inner) if v.outcome is Outcome.SCORED]
        least = dict(zip(ready, self._least(generator, question, [solutions[i] for i in ready]), strict=True))
        out: list[list[tuple[float, float]] | Verification] = []
        for i, v in enumerate(inner):
            lows = least.get(i, v)
            if isinstance(lows, Verification):
                out.append(replace(lows, aggregate=self.aggregate, score=0.0))
                continue
            if len(v.scores) == 1 and len(lows) > 1:
                lows = [min(lows)]
            out.append([(scoring.logit(r), low) for r, low in zip(v.scores, lows, strict=True)])
        return out

    def _inner(self, verifier: str, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        if not verifier:  # every step is as good as any other
            even = [Verification(s.id, (0.5,) * len(s.spans), 0.5, self.aggregate) for s in solutions]
            return [scoring.unfinished(s, self.aggregate) or v for s, v in zip(solutions, even, strict=True)]
        found: list[Verification] = load_member(verifier, self.device).verify(question, solutions)
        return found

    def _least(self, generator: str, question: str, solutions: Sequence[Solution]) -> list[list[float] | Verification]:
        """[solutions][steps] the lowest log p of a token in the step, in nats; the end token is the last step's.
        For a solution longer than the generator's positions: that it is."""
        import torch

        model = scoring.cached_model(generator, "CausalLM", self.dtype, self.device, self.trust_remote_code)
        tokenizer = checkpoints.load_tokenizer(generator, self.trust_remote_code)
        context = Template(self.template).render(question)
        encoded: dict[int, Encoded] = {}
        cuts: dict[int, list[int]] = {}
        out: list[list[float] | Verification] = [[] for _ in solutions]
        for i, s in enumerate(solutions):
            ids, spans = token_ids(tokenizer, context + s.text)
            places = boundaries(spans, [len(context), *(len(context) + end for _, end in s.spans)])
            if (bad := scoring.too_long(s, self.aggregate, len(ids) + 1, scoring.max_length(model))) is not None:
                out[i] = bad
                continue
            encoded[i] = Encoded((*ids, tokenizer.eos_token_id))
            # Nothing precedes a text's first token, so nothing says how likely it was.
            cuts[i] = [*(max(1, p) for p in places[:-1]), len(ids) + 1]
        with torch.inference_mode():
            for group in scoring.by_length(encoded):
                batch = packing.batch([[encoded[i]] for i in group], checkpoints.pad_id(tokenizer), str(model.device))
                logs = _token_logs(model, batch).cpu().numpy()
                for row, i in zip(logs, group, strict=True):
                    pairs = zip(cuts[i], cuts[i][1:], strict=False)
                    # A step whose characters all belong to tokens of its neighbours surprises nobody.
                    out[i] = [float(row[start - 1 : end - 1].min()) if end > start else 0.0 for start, end in pairs]
        return out

    def _fitted(self) -> Mapping[str, Any]:
        for name in (FITTED, OLD_FITTED):
            if (place := Path(self.path) / name).is_file():
                fitted: Mapping[str, Any] = json.loads(place.read_text())
                return fitted
        raise CheckpointError(
            f"{self.path} has no {FITTED}: it was never fitted. See: stepmark train likelihood_corrected --help"
        )


def _token_logs(model: Any, batch: packing.Batch) -> torch.Tensor:
    """[B, L-1] log p of each token but the first, given those before it."""
    logits = model.get_output_embeddings()(scoring.outputs(model, batch)[:, :-1]).float()
    found: torch.Tensor = logits.gather(-1, batch.ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    return found


def _weakest_step(solutions: Sequence[np.ndarray], y: np.ndarray) -> tuple[float, float, float]:
    """The logistic regression of y [n] on the row of each solution [steps, 2] that it scores lowest itself."""
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
    method with halved steps."""
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
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        while cost(w - scale * step) > cost(w) and scale > 1e-4:
            scale /= 2
        w = w - scale * step
        if np.abs(scale * step).max() < 1e-8:
            break
    return float(w[0]), float(w[1]), float(w[2])

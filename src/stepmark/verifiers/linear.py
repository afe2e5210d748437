"""Linear outcome verifier: logistic regression on the words of a solution. A language model has to beat this baseline.

    r = sigmoid(w . x + b)

x has one feature for each distinct word, and for each distinct pair of neighbouring words, of the solution, hashed into
`buckets`. Three coarse counts are features too: the numbers of the question that the solution leaves out, its "=" signs
and its length. All features have the same size, scaled so that x has length one. Word order beyond pairs is not used,
and no equation is checked.

A verifier has to order the solutions of one question, and the fit is made for that. The right and the wrong solutions
of a question have the same total weight, so telling easy questions from hard ones does not lower the loss. On real
GSM8K solutions this raises the within-problem AUC from 0.655 to 0.663 (docs/results/gsm8k_orm.md).

    stepmark run recipes/gsm8k_orm.yaml sample.train.file=PATH sample.test.file=PATH
"""

from __future__ import annotations

import itertools
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepmark.errors import CheckpointError, ConfigError, DataError
from stepmark.models import scoring
from stepmark.plugins import verifier_card
from stepmark.text.sanitize import sanitize, sanitize_text
from stepmark.types import LabelledSolution, Problem, Solution, Verdict, Verification

WEIGHTS = "linear.safetensors"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+|[^\w\s]")
ITERATIONS = 100  # of L-BFGS; the ranking of solutions converges long before the loss does


@dataclass(frozen=True, slots=True)
class LinearVerifier:
    """Fits, or scores with, the weights in `path`."""

    path: str = ""  # a fitted verifier; fitting needs none
    buckets: int = 1 << 18  # number of hashed features
    strength: float = 0.5  # inverse of the L2 penalty, as scikit-learn's C

    def __post_init__(self) -> None:
        faults = [f"linear: {k} must be above 0, got {getattr(self, k)}." for k in ("buckets", "strength")
                  if getattr(self, k) <= 0]  # fmt: skip
        if faults:
            raise ConfigError(faults)

    # ---- fitting ----

    def fit(self, examples: Sequence[tuple[Problem, LabelledSolution]], out: Path) -> int:
        """Fits on the graded examples and writes the verifier. Returns the number of solutions used.

        Raises DataError when no question has both a right and a wrong solution, ConfigError without scikit-learn."""
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as e:
            raise ConfigError("fitting a linear verifier needs scikit-learn: pip install 'stepmark[train]'.") from e
        from safetensors.numpy import save_file
        from scipy.sparse import csr_array

        graded = [
            (p, x) for p, x in examples if x.grade.verdict is not Verdict.UNGRADABLE and sanitize(x.solution).kept
        ]
        right = [x.grade.verdict is Verdict.CORRECT for _, x in graded]
        counts = Counter((p.question, y) for (p, _), y in zip(graded, right, strict=True))
        rows: list[npt.NDArray[np.int64]] = []
        targets: list[bool] = []
        weights: list[float] = []
        for (problem, labelled), y in zip(graded, right, strict=True):
            fewer = min(counts[problem.question, True], counts[problem.question, False])
            if fewer:
                rows.append(self._features(problem.question, labelled.solution.text))
                targets.append(y)
                weights.append(fewer / counts[problem.question, y])
        if not rows:
            raise DataError(
                f"none of {len(counts)} questions has both a right and a wrong solution among {len(graded)} graded "
                "ones, and the fit needs both kinds. Sample more solutions per question."
            )
        sizes = np.array([len(r) for r in rows])
        shape = (len(rows), self.buckets)
        values = np.repeat(1 / np.sqrt(sizes), sizes)
        x = csr_array((values, np.concatenate(rows), np.concatenate([[0], np.cumsum(sizes)])), shape=shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns that it stopped at ITERATIONS
            model = LogisticRegression(C=self.strength, max_iter=ITERATIONS).fit(x, targets, sample_weight=weights)
        tensors = {"weights": model.coef_[0].astype(np.float32), "constant": model.intercept_.astype(np.float32)}
        save_file(tensors, out / WEIGHTS)
        verifier_card.write_card(out, "linear", {"buckets": self.buckets, "strength": self.strength}, {}, "")
        return len(rows)

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each."""
        tensors = _load_weights(self.path)
        weights, constant = tensors["weights"], float(tensors["constant"][0])
        if len(weights) != self.buckets:
            raise CheckpointError(f"{self.path} has {len(weights)} weights for {self.buckets} buckets.")
        verifications = []
        for s in solutions:
            verification = scoring.unfinished(s, "last")
            if verification is None:
                row = self._features(question, s.text)
                score = 1 / (1 + float(np.exp(-(weights[row].sum() / np.sqrt(len(row)) + constant))))
                verification = Verification(s.id, (score,), score, "last")
            verifications.append(verification)
        return verifications

    # ---- shared by training and scoring ----

    def _features(self, question: str, text: str) -> npt.NDArray[np.int64]:
        """Indices of the features of `text` without its claims about itself, in rising order; at least three."""
        text = sanitize_text(text)
        return np.unique(
            [zlib.crc32(f.encode("utf-8", "surrogatepass")) % self.buckets for f in _feature_names(question, text)]
        )


def _feature_names(question: str, text: str) -> Iterator[str]:
    words = WORD.findall(text.lower())
    yield from set(words)
    yield from {f"{a} {b}" for a, b in itertools.pairwise(words)}
    numbers = set(NUMBER.findall(question))
    yield f"\0left out {min(5, len(numbers.difference(NUMBER.findall(text))))}"
    yield f"\0equations {min(20, text.count('='))}"
    yield f"\0length {int(4 * np.log2(1 + len(words)))}"


@lru_cache(maxsize=4)
def _load_weights(path: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = Path(path) / WEIGHTS
    if not path or not file.is_file():
        raise CheckpointError(
            f"{path or 'no path given'}: no {WEIGHTS}. Fit a verifier first; see: stepmark train linear --help"
        )
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{file} can't be read: {e}") from e

"""Scoring for all verifier kinds that run a model: cached models, tag ids, batches and results.

A verifier directory is a Hugging Face checkpoint plus a card, `verifier.json` (plugins/verifier_card.py). The card has
the kind, its settings, and the token ids of its tags at training time. A verifier checks the card before it scores.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.evaluation import aggregate as aggregation
from stepmark.models import checkpoints, packing, precision
from stepmark.models.encoding import Encoded, common, joint, token_ids
from stepmark.models.forward import fault as fault
from stepmark.models.forward import output_layer as output_layer
from stepmark.models.forward import outputs as outputs
from stepmark.text.sanitize import Sanitized, sanitize
from stepmark.types import Finish, Outcome, Solution, Verification

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SURE = 1e-6  # scores are clipped to [SURE, 1 - SURE], so that their log-odds are finite
SCORING_TOKENS = 4096  # tokens in a pass, unless one sequence is longer: bounds memory, changes no score


def logit(r: float) -> float:
    """log(r / (1 - r)), finite, since `r` is clipped to [SURE, 1 - SURE]."""
    r = min(max(r, SURE), 1 - SURE)
    return math.log(r / (1 - r))


def relative(path: str, out: Path) -> str:
    """`path` relative to `out`, so that it stays valid when the run directory moves. A hub id is returned unchanged."""
    return os.path.relpath(Path(path).resolve(), out.resolve()) if path and Path(path).exists() else path


def absolute(path: str, at: str) -> str:
    """The inverse of `relative`: the path, seen from the directory `at`."""
    joined = Path(at).resolve() / path
    return os.path.normpath(joined) if path and joined.exists() else path


def cached_model(path: str, head: str, dtype: str, device: str, trust_remote_code: bool) -> Any:
    """The model of a verifier directory, loaded once per process. The caller checks the card."""
    return _cached_model(path, checkpoints.version(path), head, dtype, device, trust_remote_code)


@lru_cache(maxsize=4)
def _cached_model(path: str, _version: int, head: str, dtype: str, device: str, trust_remote_code: bool) -> Any:
    def load(dtype: str) -> Any:
        return checkpoints.load_model(path, head, dtype=dtype, device=device, trust_remote_code=trust_remote_code)

    if dtype == "auto" and precision.bfloat16_is_faster(path, checkpoints.resolve_device(device)):
        model = load("bfloat16")
        ids = token_ids(checkpoints.load_tokenizer(path, trust_remote_code), precision.TEXT)[0]
        differs = precision.divergence(model, ids)
        if differs <= precision.MOST:
            log.warning("%s scores in bfloat16, which is faster: probabilities move by %.2g nats.", path, differs)
            return model
        log.warning("%s scores in float32: bfloat16 moves its probabilities by %.2g nats.", path, differs)
    return load(dtype)


def cross_entropy(log_bad: torch.Tensor, log_good: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-sum_i [y_i log p(good) + (1 - y_i) log p(bad)] over [K], in nats; `targets` in [0, 1]."""
    return -(targets * log_good + (1 - targets) * log_bad).sum()


def verify(
    solutions: Sequence[Solution],
    encode: Callable[[Solution], Encoded],
    read: Callable[[packing.Batch], torch.Tensor],
    *,
    aggregate: str,
    max_length: float,
    pad_id: int,
    device: str,
    per_step: bool = False,
) -> list[Verification]:
    """Scores the solutions of a question, which is read once for those of a pass. `read` gives the [K] probabilities of
    a batch.

    The solution is encoded without its claims about itself (text/sanitize.py). With `per_step` the encoding has one
    position for each step that is left, and every step of the original solution gets a score.
    A solution that did not end, or is longer than `max_length` tokens, is TRUNCATED; it is never cut and scored."""
    results: dict[int, Verification] = {}
    encoded: dict[int, Encoded] = {}
    sanitized: dict[int, Sanitized] = {}
    for i, s in enumerate(solutions):
        bad = unfinished(s, aggregate)
        if bad is None:
            sanitized[i] = sanitize(s)
            encoded[i] = encode(sanitized[i].solution)
            bad = too_long(s, aggregate, len(encoded[i]), max_length)
        if bad is not None:
            results[i] = bad
            encoded.pop(i, None)
    for i, values in read_all(encoded, read, pad_id, device):
        scores = tuple(values.double().tolist())
        if not all(map(math.isfinite, scores)):
            results[i] = _unscored(solutions[i], aggregate, "the model's output is no number", Outcome.FAILED)
            continue
        if per_step:
            scores = sanitized[i].spread(scores)
        total = aggregation.aggregate(scores, aggregate)
        results[i] = Verification(solutions[i].id, scores, total, aggregate, tokens=len(encoded[i]))
    return [results[i] for i in range(len(solutions))]


def read_all(
    encoded: Mapping[int, Encoded], read: Callable[[packing.Batch], torch.Tensor], pad_id: int, device: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """For every sequence its key, and what is read at its places, on the CPU. `read` gives a row for each place of a
    batch, [K, ...]. What sequences begin with alike, such as a question, is read once in each pass."""
    import torch

    for group in passes(encoded):
        with torch.inference_mode():
            batch = packing.batch([[joint([encoded[i] for i in group])]], pad_id, device)
            values = read(batch).cpu()
        start = 0
        for i in group:
            yield i, values[start : start + len(encoded[i].at)]
            start += len(encoded[i].at)


def passes(encoded: Mapping[int, Encoded]) -> Iterator[list[int]]:
    """The keys of each pass, with at most SCORING_TOKENS tokens, beginnings that are alike counted once.

    A pass is one row without padding. Its length costs little, since a sequence attends to itself and to what it begins
    with alone (packing.Layout). So as many sequences as the bound allows share what they begin with."""
    group: list[int] = []
    tokens = 0
    for i in sorted(encoded, key=lambda i: encoded[i].ids):
        alike = common(encoded[group[-1]], encoded[i]) if group else 0
        if group and tokens + len(encoded[i]) - alike > SCORING_TOKENS:
            yield group
            group, tokens, alike = [], 0, 0
        group.append(i)
        tokens += len(encoded[i]) - alike
    if group:
        yield group


def unfinished(s: Solution, aggregate: str) -> Verification | None:
    """The verification of a solution that no verifier can score; None for any other solution."""
    if s.finish is Finish.LENGTH:
        return _unscored(s, aggregate, "the solution ran out of tokens before its end")
    if not s.spans:
        return _unscored(s, aggregate, "the solution is empty", Outcome.FAILED)
    if not sanitize(s).kept:
        return _unscored(s, aggregate, "the solution says nothing but that it is right", Outcome.FAILED)
    return None


def too_long(s: Solution, aggregate: str, tokens: int, allowed: float) -> Verification | None:
    """The verification of a solution that is too long for a model; None for any other solution."""
    if tokens <= allowed:
        return None
    return _unscored(s, aggregate, f"{tokens} tokens; the verifier reads {allowed:.0f}")


def max_length(model: Any) -> float:
    """Largest number of tokens that a model can read, question and tags included; infinite without a limit."""
    return float(getattr(model.config, "max_position_embeddings", math.inf))


def _unscored(s: Solution, aggregate: str, reason: str, outcome: Outcome = Outcome.TRUNCATED) -> Verification:
    return Verification(s.id, (), 0.0, aggregate, outcome, reason)

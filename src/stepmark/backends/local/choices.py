"""Probabilities of a few choices after a text, e.g. of Yes and No after a question.

GenRM's score (Zhang et al. 2024, arXiv 2408.15240, equation 2) is p(Yes). Here the probabilities of the choices are
renormalised to sum to one, so that the probability of other tokens does not lower all scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stepmark.backends.local.engine import Engine
from stepmark.models import packing, scoring
from stepmark.models.attention import PACKED
from stepmark.models.encoding import Encoded


def probabilities(
    engine: Engine, texts: Sequence[tuple[int, ...]], choices: Sequence[Sequence[tuple[int, ...]]]
) -> list[tuple[float, ...]]:
    """For each text, the probability of each of its choices, given that one of them follows. All tokens of a choice
    count. What texts begin with alike is read once in each pass."""
    # The last token of a choice is predicted and not read, so choices of one token share one sequence.
    pairs = [(text, choice) for text, options in zip(texts, choices, strict=True) for choice in options]
    longest = max((len(choice) for _, choice in pairs), default=0)
    tokens = sorted({token for _, choice in pairs for token in choice})
    column = {token: i for i, token in enumerate(tokens)}
    sequences = dict.fromkeys(text + choice[:-1] for text, choice in pairs)
    # Read at the last places only, since the output layer is expensive.
    encoded = {
        i: Encoded(ids, at=tuple(range(max(0, len(ids) - longest), len(ids)))) for i, ids in enumerate(sequences)
    }

    def read(b: packing.Batch) -> torch.Tensor:
        hidden = scoring.outputs(engine.model, b)[b.rows, b.columns]
        return packing.log_probs_at(hidden, scoring.output_layer(engine.model), tokens)

    engine.use(PACKED if engine.packs else engine.plain_attention)
    found = dict(scoring.read_all(encoded, read, 0, str(engine.device)))  # [places, tokens]
    ends = {ids: found[i] for i, ids in enumerate(sequences)}
    result = []
    for text, options in zip(texts, choices, strict=True):
        sums = [
            sum(float(row[column[t]]) for row, t in zip(ends[text + c[:-1]][-len(c) :], c, strict=True))
            for c in options
        ]
        result.append(tuple(torch.tensor(sums, dtype=torch.float64).softmax(0).tolist()))
    return result

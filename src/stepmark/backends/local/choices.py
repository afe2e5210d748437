"""Probabilities of a few choices after a text, e.g. of Yes and No after a question.

GenRM's score (Zhang et al. 2024, arXiv 2408.15240, equation 2) is p(Yes). Here the probabilities of the choices are
renormalised to sum to one, so that the probability of other tokens does not lower all scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from stepmark.backends.local.engine import Engine

TOKENS = 4096  # padded positions per pass


@torch.inference_mode()
def probabilities(
    engine: Engine, texts: Sequence[tuple[int, ...]], choices: Sequence[Sequence[tuple[int, ...]]]
) -> list[tuple[float, ...]]:
    """For each text, the probability of each of its choices, given that one of them follows. All tokens of a choice
    count."""
    if not texts:
        return []
    # The last token of a choice is predicted and not read, so choices of one token share one sequence.
    pairs = [(text, choice) for text, options in zip(texts, choices, strict=True) for choice in options]
    sequences = sorted({text + choice[:-1] for text, choice in pairs}, key=lambda ids: (len(ids), ids))
    longest = max(len(choice) for _, choice in pairs)
    ends: dict[tuple[int, ...], torch.Tensor] = {}  # log-probabilities after the last positions, [longest, V]
    start = 0
    while start < len(sequences):
        stop = start + 1
        while stop < len(sequences) and len(sequences[stop]) * (stop + 1 - start) <= TOKENS:
            stop += 1
        part = sequences[start:stop]
        first = max(0, len(part[0]) - longest)  # the head is expensive, so it runs only at the last positions
        for ids, logits_TV in zip(part, _logits(engine, part, first), strict=True):
            ends[ids] = logits_TV[max(0, len(ids) - longest) - first : len(ids) - first].float().log_softmax(-1).cpu()
        start = stop
    result = []
    for text, options in zip(texts, choices, strict=True):
        sums = [
            sum(float(row[token]) for row, token in zip(ends[text + c[:-1]][-len(c) :], c, strict=True))
            for c in options
        ]
        result.append(tuple(torch.tensor(sums, dtype=torch.float64).softmax(0).tolist()))
    return result


def _logits(engine: Engine, sequences: Sequence[tuple[int, ...]], first: int) -> torch.Tensor:
    """Logits at positions `first` and after, [sequences, length of the last one - first, V]."""
    engine.use(engine.plain_attention)
    ids = torch.zeros(len(sequences), len(sequences[-1]), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    options: dict[str, Any] = {}
    if first and "logits_to_keep" in inspect.signature(engine.model.forward).parameters:
        options = {"logits_to_keep": torch.arange(first, ids.shape[1], device=engine.device)}
    logits: torch.Tensor = engine.model(
        input_ids=ids.to(engine.device), attention_mask=mask.to(engine.device), use_cache=False, **options
    ).logits
    return logits if options else logits[:, first:]

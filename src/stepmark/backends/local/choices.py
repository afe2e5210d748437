"""How likely a model finds each of a few ways to go on, e.g. Yes and No after a question.

GenRM's score (Zhang et al. 2024, arXiv 2408.15240, equation 2) is p(Yes). Here the choices' probabilities are
renormalised to sum to one, so that what a model gives to other tokens does not lower all scores alike.
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
    """Per text, the probability of each of its choices among them. All tokens of a choice count."""
    if not texts:
        return []
    # A choice's last token is predicted and never read, so one-token choices share one sequence.
    pairs = [(text, choice) for text, ways in zip(texts, choices, strict=True) for choice in ways]
    sequences = sorted({text + choice[:-1] for text, choice in pairs}, key=lambda ids: (len(ids), ids))
    longest = max(len(choice) for _, choice in pairs)
    ends: dict[tuple[int, ...], torch.Tensor] = {}  # log-probabilities after each of the last positions, [longest, V]
    start = 0
    while start < len(sequences):
        stop = start + 1
        while stop < len(sequences) and len(sequences[stop]) * (stop + 1 - start) <= TOKENS:
            stop += 1
        part = sequences[start:stop]
        first = max(0, len(part[0]) - longest)  # the head is costly, and only the last positions are read
        for ids, logits_TV in zip(part, _logits(engine, part, first), strict=True):
            ends[ids] = logits_TV[max(0, len(ids) - longest) - first : len(ids) - first].float().log_softmax(-1).cpu()
        start = stop
    found = []
    for text, ways in zip(texts, choices, strict=True):
        sums = [
            sum(float(row[token]) for row, token in zip(ends[text + c[:-1]][-len(c) :], c, strict=True)) for c in ways
        ]
        found.append(tuple(torch.tensor(sums, dtype=torch.float64).softmax(0).tolist()))
    return found


def _logits(engine: Engine, sequences: Sequence[tuple[int, ...]], first: int) -> torch.Tensor:
    """[sequences, width of the last one - first, V]: the logits at positions `first` and after."""
    engine.use(engine.plain_attention)
    ids = torch.zeros(len(sequences), len(sequences[-1]), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    keep: dict[str, Any] = {}
    if first and "logits_to_keep" in inspect.signature(engine.model.forward).parameters:
        keep = {"logits_to_keep": torch.arange(first, ids.shape[1], device=engine.device)}
    out = engine.model(input_ids=ids.to(engine.device), attention_mask=mask.to(engine.device), use_cache=False, **keep)
    logits: torch.Tensor = out.logits
    return logits if keep else logits[:, first:]

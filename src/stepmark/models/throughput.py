"""How fast a model learns, beside what the device could do: the share of its peak.

The peak is the fastest of many large matrix products, with the threads and in the precision of the training; it is
measured for models of 100 MB of weights or more. The work is that of the matrix products alone: for each token two
operations for each weight forwards, two for the gradient of its input, and two for the weight's own gradient where it
learns. So it is 6 per weight, and 4 where LoRA has frozen it. A second forward pass (gradient checkpointing), attention
and padding count as nothing. The output layer counts where its result is used.

    stepmark train generator --base SmolLM2/ ...      # share_of_peak in train.jsonl and trained.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stepmark.models.encoding import Encoded

SECONDS = 0.15  # for a measurement of the peak
QUICK = 0.002  # seconds of a product below which a larger one is tried: small ones don't fill a GPU
SMALLEST, LARGEST = 512, 8192  # rows and columns of a product


def peak(dtype: str, device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second that the device reaches in large matrix products, with torch's number of threads."""
    import torch

    size, best, until = SMALLEST, 0.0, time.perf_counter() + SECONDS
    a = b = torch.empty(0)
    while not best or time.perf_counter() < until:
        if len(a) != size:
            a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        began = clock()
        a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        took = max(clock() - began, 1e-9)
        best = max(best, 2 * size**3 / took)
        if took < QUICK and size < LARGEST:
            size *= 2
    return best


@dataclass(frozen=True, slots=True)
class Work:
    """The weights that tokens are multiplied with. In a mixture of experts that is more than each token meets."""

    body: int  # weights of all layers but the output layer; embeddings are looked up, not multiplied
    head: int  # weights of the output layer
    learning: int  # of the body, those that learn
    head_learning: int  # of the head, those that learn

    def of_training(self, examples: Iterable[Encoded]) -> int:
        """Operations of passes forwards and backwards over the examples."""
        tokens = predicted = 0
        for e in examples:
            tokens += len(e)
            predicted += sum(w > 0 for w in e.weights[1:]) + len(e.at)
        return (4 * self.body + 2 * self.learning) * tokens + (4 * self.head + 2 * self.head_learning) * predicted


def work(model: Any) -> Work:
    """The weights of a transformers model, or of any other torch module."""
    head, looked_up = (getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("output", "input"))
    of_head = [p for p in (head.parameters() if head is not None else ()) if p.ndim > 1]
    left_out = {id(p) for p in (*of_head, *(looked_up.parameters() if looked_up is not None else ()))}
    body = [p for p in model.parameters() if p.ndim > 1 and id(p) not in left_out]
    sizes = [sum(p.numel() for p in part) for part in (body, of_head)]
    learning = [sum(p.numel() for p in part if p.requires_grad) for part in (body, of_head)]
    return Work(sizes[0], sizes[1], learning[0], learning[1])

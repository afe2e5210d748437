"""bfloat16: where it is faster, and whether a model says and learns the same in it.

Processors with instructions for bfloat16 (avx512_bf16, amx_bf16) read half the bytes and multiply them faster:
1.6 to 4 times for models of 100 million parameters or more. Others emulate it, several times slower than float32. So
`dtype=auto` takes it where the processor has it and the model is large, and its next-token probabilities on ordinary
text agree with float32. A training (`precision=auto`) does so where one example's loss and gradient agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark import machine
from stepmark.types import Place

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LARGE = 100_000_000  # bytes of weights; for smaller models the cost of calls decides, not that of arithmetic
LOSS, COSINE = 0.05, 0.95  # largest difference of losses, as a share, and least cosine of gradients, for training
MOST = 0.05  # largest mean divergence of next-token probabilities, in nats
TEXT = (  # of 48 tokens or more in most vocabularies
    "Ann has 12 apples and gives 3 of them to Ben, who had 4 before. How many apples does each of them have now?\n"
    "Ann has 12 - 3 = 9 apples left. Ben has 4 + 3 = 7 apples. So Ann has 2 apples more than Ben.\n"
)


def bfloat16_is_faster(path: Place, device: str) -> bool:
    """Whether the model of a local checkpoint directory is faster in bfloat16 on this machine's processor."""
    if device != "cpu" or not machine.computes_bfloat16():
        return False
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) >= LARGE


def bfloat16_trains_faster(model: torch.nn.Module, device: str) -> bool:
    """Whether the model is trained faster in bfloat16 on a device: on a GPU, or if it is large and the processor has
    instructions for it."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return device == "cpu" and is_large(model) and machine.computes_bfloat16()


def is_large(model: torch.nn.Module) -> bool:
    """Whether arithmetic decides a model's speed, and not the cost of calls."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) >= LARGE


def disagreement(model: torch.nn.Module, learn: Callable[[str], float]) -> str:
    """How a pass in bfloat16 differs from one in float32, in words; "" where it is near enough. `learn` runs the same
    pass forwards and backwards in a precision, and returns the loss."""

    def gradients(precision: str) -> tuple[float, list[torch.Tensor | None]]:
        loss = learn(precision)
        found = [p.grad for p in model.parameters() if p.requires_grad]
        model.zero_grad(set_to_none=True)
        return loss, found

    (exact, exact_gradients), (loss, found) = gradients("float32"), gradients("bfloat16")
    pairs = [(a, b) for a, b in zip(exact_gradients, found, strict=True) if a is not None and b is not None]
    dot, size, own_size = (sum(float((x[i] * x[j]).sum()) for x in pairs) for i, j in ((0, 1), (0, 0), (1, 1)))
    cosine = dot / math.sqrt(size * own_size) if size and own_size else float(size == own_size)
    if not math.isfinite(exact):
        return ""  # the first update will say so
    if not abs(loss - exact) <= LOSS * max(1.0, abs(exact)):
        return f"an example's loss is {loss:.3f} in it, and {exact:.3f} in float32"
    if not cosine >= COSINE:
        return f"an example's gradient has a cosine of {cosine:.2f} with that in float32"
    return ""


def divergence(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """The mean divergence KL(float32 || the model's own precision) of the next token after each of `ids`, in nats; of a
    model that classifies, that of the classes."""
    import torch

    def log_probs() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=inputs, use_cache=False).logits[0].float()
        if logits.shape[-1] == 1:  # one logit, of the second of two classes
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        return logits.log_softmax(-1)

    with torch.no_grad():
        inputs = torch.tensor([list(ids)], device=model.device)
        own = log_probs()
        with float32(model):
            exact = log_probs()
        return float((exact.exp() * (exact - own)).sum(-1).mean())


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether a number has 16 bits."""
    return dtype.is_floating_point and dtype.itemsize == 2


@contextmanager
def float32(model: PreTrainedModel) -> Iterator[None]:
    """Computes in float32 within the block, one module's weights at a time, so that no second model is in memory."""

    def widen(module: torch.nn.Module, *_: Any) -> None:
        for x in held[module]:
            x.data = x.data.float()

    def narrow(module: torch.nn.Module, *_: Any) -> None:
        for x in held[module]:
            x.data = x.data.to(dtype)

    dtype = model.dtype
    held: dict[torch.nn.Module, list[torch.Tensor]] = {}
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if narrow_ones := [x for x in own if is_narrow(x.dtype)]:
            held[module] = narrow_ones
    handles = list(
        chain.from_iterable(
            (m.register_forward_pre_hook(widen), m.register_forward_hook(narrow, always_call=True)) for m in held
        )
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""What a training chooses before its first update, from passes over one row: the precision, gradient checkpointing, and
the size of a pass.

bfloat16 is taken by itself only where it is faster, and one example's loss and gradient agree with those in float32.

How many bytes a token takes depends on the model and on torch, so it is measured. Gradient checkpointing (Chen et al.,
arXiv 1604.06174) keeps the input of each layer only and computes the rest of its activations again for the gradient: a
pass takes a third longer, and much less memory.

    stepmark train generator --base SmolLM2/ --set gradient_checkpointing=true ...
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from stepmark.errors import ConfigError
from stepmark.models import memory
from stepmark.models.precision import bfloat16_trains_faster, disagreement
from stepmark.models.row_plan import Row, Rows

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

COMPARED = 32  # least tokens of the example on which precisions are compared
LARGE = 0.1  # share of the free memory above which the memory of a pass is measured
MEASURED = 512  # tokens of the longest row that is measured
SMALL = 512  # tokens of a pass below which gradient checkpointing makes passes larger


@dataclass(frozen=True, slots=True)
class Chosen:
    """How passes are computed. A resumed training takes what it began with, so that it rounds alike."""

    precision: str = "float32"  # or bfloat16 autocast
    checkpointing: bool = False  # activations are computed again for the gradient
    pass_tokens: int = 0  # most tokens of a pass, padding included; 0: no limit

    def __str__(self) -> str:
        said = [f"passes of {self.pass_tokens:,} tokens, as memory allows"] if self.pass_tokens else []
        said += ["gradient checkpointing"] * self.checkpointing
        return ", ".join(said + ["bfloat16"] * (self.precision == "bfloat16"))


def choose(
    model: Any,
    asked_precision: str,
    asked: bool | Literal["auto"],
    rows: Rows,
    plan: Sequence[Sequence[Row]],
    largest: int,
    device: torch.device,
    learn: Callable[[Row, str], float],
    say: Callable[[str], None] = lambda what: None,
) -> Chosen:
    """What is chosen for the updates of `plan`, whose passes have at most `largest` rows where memory does not matter.
    `learn` runs a row forwards and backwards in a precision. `asked` is the setting of gradient checkpointing.

    Raises StageError where the memory is too short, and ConfigError where gradient checkpointing is asked for and the
    model has none."""
    if asked is True:
        checkpoint_activations(model)
    weights: int = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    free = memory.free(device)
    memory.need(3 * weights, free, device)  # gradients, and AdamW's two averages
    precision = _precision(model, asked_precision, rows, plan[0], str(device), learn, say)
    whole = largest * rows.row_tokens * memory.estimate(model)
    if 3 * weights + 2 * whole < LARGE * free:
        return Chosen(precision, asked is True)
    say("measuring the memory of a pass")
    # Long enough that what any pass takes weighs little, and not so long that the measurement takes too much.
    fitting = [row for row in plan[0] if rows.width(row) <= MEASURED]
    row = max(fitting, key=rows.width) if fitting else min(plan[0], key=rows.width)
    tokens, longest = rows.width(row), max(rows.width(row) for update in plan for row in update)

    def measured(checkpointing: bool) -> int:
        with memory.Peak(device) as peak:
            learn(row, precision)
        model.zero_grad(set_to_none=True)
        return max(peak.bytes - weights, tokens * memory.estimate(model, checkpointing))

    def most(taken: int, checkpointing: bool) -> int:
        return memory.tokens_per_pass(memory.estimate(model, checkpointing), taken, tokens, free - 3 * weights)

    memory.touch(model)
    checkpointing = asked is True
    taken = measured(checkpointing)
    short = not memory.fits(3 * weights + taken * longest // tokens, free, device)
    if asked == "auto" and can_checkpoint(model) and (short or most(taken, False) < max(longest, SMALL)):
        checkpointing = True
        checkpoint_activations(model)
        taken = measured(checkpointing)
    memory.need(3 * weights + taken * longest // tokens, free, device)
    return Chosen(precision, checkpointing, max(longest, most(taken, checkpointing)))


def _precision(
    model: Any,
    asked: str,
    rows: Rows,
    update: Sequence[Row],
    device: str,
    learn: Callable[[Row, str], float],
    say: Callable[[str], None],
) -> str:
    if asked != "auto":
        return asked
    if not bfloat16_trains_faster(model, device):
        return "float32"
    say("comparing bfloat16 with float32")
    lengths = {i: rows.lengths[i] for row in update for i in row}
    short = [i for i, length in lengths.items() if length >= COMPARED]
    example = min(short, key=lengths.__getitem__) if short else max(lengths, key=lengths.__getitem__)
    if why := disagreement(model, lambda precision: learn([example], precision)):
        log.warning("Training in float32, though bfloat16 would be faster: %s.", why)
        return "float32"
    return "bfloat16"


def resumed(chosen: Chosen, asked_precision: str, model: Any, device: str) -> Chosen:
    """What a resumed training goes on with: what it began with, but for a bfloat16 that this machine only emulates."""
    if chosen.checkpointing:
        checkpoint_activations(model)
    if chosen.precision == "bfloat16" and asked_precision == "auto" and not bfloat16_trains_faster(model, device):
        log.warning("This training began in bfloat16, which is slow on this machine. It goes on in float32.")
        return replace(chosen, precision="float32")
    return chosen


def can_checkpoint(model: Any) -> bool:
    """Whether the model, as most of transformers, has gradient checkpointing."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


def checkpoint_activations(model: Any) -> None:
    """Turns gradient checkpointing on. Raises ConfigError for a model that has none."""
    if not can_checkpoint(model):
        raise ConfigError(
            f"train: a {type(model).__name__} has no gradient checkpointing. Set gradient_checkpointing to false."
        )
    # The old name is going, and the new one is not in all versions.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})

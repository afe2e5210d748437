"""A packed batch -> the last hidden states, for any model of transformers.

A model gets the whole batch with its mask (packing.py). Some can't take it: states of recurrent layers run from one
sequence into the next, rotary embeddings may depend on a row's length, and a model's own code may do anything. So each
model is compared once, when it is first used: its hidden states of a packed row with those of each sequence alone, in
float32, with short windows. If they differ, its sequences are read one by one, which is slower and as right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stepmark.models import packing
from stepmark.models.encoding import Encoded

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LENGTH = 24  # tokens of each part of the row that is compared: two parts are longer than a short window
CLOSE = 1e-3  # largest difference that is rounding in float32, in standard deviations
_faults: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # of the models that were compared


def outputs(model: Any, batch: packing.Batch) -> torch.Tensor:
    """The last hidden states [B, L, D] of a transformers model with any head."""
    return _apart(model, batch) if fault(model) else _together(model, batch)


def _body(model: Any) -> Any:
    """The model without its head. Of some classes `base_model` is the model itself."""
    return getattr(model, "model", model) if model.base_model is model else model.base_model


def _together(model: Any, batch: packing.Batch) -> torch.Tensor:
    hidden: torch.Tensor = _body(model)(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    return hidden


def _apart(model: Any, batch: packing.Batch) -> torch.Tensor:
    """Each sequence by itself, without a mask."""
    import torch

    found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for b, mask in enumerate(batch.mask[:, 0]):
        # The last token of a sequence is seen by itself alone, and sees all of its sequence.
        for last in (mask.sum(0) == 1).nonzero()[:, 0]:
            columns = mask[last].nonzero()[:, 0]
            hidden = _body(model)(input_ids=batch.ids[b, columns][None], use_cache=False).last_hidden_state[0]
            found.append((b, columns, hidden))
    whole = torch.zeros(*batch.ids.shape, found[0][2].shape[-1], dtype=found[0][2].dtype, device=batch.ids.device)
    for b, columns, hidden in found:
        whole[b, columns] = hidden
    return whole


def fault(model: Any) -> str:
    """Why the model can't read packed rows; "" if it can."""
    if model not in _faults:
        # Before it is asked, since the comparison itself reads packed rows.
        _faults[model] = ""
        _faults[model] = _fault(model)
        if _faults[model]:
            log.warning(
                "%s reads its sequences one by one, which is slower: in packed rows %s.",
                type(model).__name__,
                _faults[model],
            )
    return _faults[model]


def _fault(model: Any) -> str:
    import torch

    from stepmark.models import precision
    from stepmark.models.attention import short_windows

    training = getattr(model, "training", False)
    try:
        model.eval()
        config = model.config.get_text_config()
        limit = int(getattr(config, "max_position_embeddings", None) or 2 * LENGTH)
        part = max(1, min(LENGTH, limit // 2))
        ids = [(7919 * i + 11) % int(config.vocab_size) for i in range(4 * part)]
        joint = Encoded(tuple(ids[: 3 * part]), parts=(2 * part,), after=(part - 1,))
        batch = packing.batch([[joint, Encoded(tuple(ids[3 * part :]))]], 0, str(model.device))
        exactly = torch.autocast(batch.ids.device.type, enabled=False), precision.float32(model)
        with torch.no_grad(), exactly[0], exactly[1], short_windows(model, config):
            together = _together(model, batch)
            apart = _apart(model, batch)
        largest = float((together - apart).abs().max() / (apart.std() + 1e-9))
        return "" if largest < CLOSE else f"its outputs differ by {largest:.2g} standard deviations"
    except Exception as e:  # a model's own code may raise anything here
        return " ".join(str(e).split()) or type(e).__name__
    finally:
        if training:
            model.train()


def output_layer(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from last hidden states to logits, [..., D] -> [..., V], as the model's own forward pass has it."""
    head: Any = model.get_output_embeddings()
    config: Any = model.config.get_text_config()
    cap, factor, divisor = (
        getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    if cap is None and factor is None and divisor is None:
        return head  # type: ignore[no-any-return]

    def scaled(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = head(hidden) * (factor or 1.0) / (divisor or 1.0)
        return cap * (logits / cap).tanh() if cap else logits

    scaled.weight = head.weight  # type: ignore[attr-defined]
    return scaled

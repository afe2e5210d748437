"""The check at an engine's start: does shared attention give this model's logits?

Two texts with a common beginning are read by the model's own attention and by the shared one, which reads the beginning
once and decodes a token after some of their prefixes. Windows are made short meanwhile, so that short texts reach
beyond them. In float32 the logits must be equal up to rounding. 16-bit logits are not equal even to themselves: another
shape of the same call moves them by a tenth of their spread. There the shared attention may be about as far from
float32 as the model's own attention is (FARTHER).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from stepmark.backends.local.cohort import Cohort, Root, Stream, Trunk
from stepmark.models import precision
from stepmark.models.attention import short_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 48  # tokens of a text
PREFIXES = 8  # of a text that are continued
CLOSE = 1e-3  # largest difference of logits that is rounding in float32, in standard deviations of the logits
FARTHER = 2.0  # in 16 bits: the shared attention's distance from float32 over that of the model's own attention


class Engine(Protocol):
    """What the check needs of the engine (engine.py)."""

    model: PreTrainedModel
    config: Any
    device: torch.device
    limit: int
    plain_attention: str

    @property
    def vocab(self) -> int: ...

    def use(self, attention: str) -> None: ...
    def root(self, trunks: Sequence[Trunk]) -> Root: ...
    def encode(self, trunks: Sequence[Trunk], root: Root) -> tuple[Cohort, torch.Tensor]: ...
    def decode(self, cohorts: Sequence[Cohort]) -> torch.Tensor: ...


@torch.no_grad()
def fault(engine: Engine, text: Sequence[int] = ()) -> str:
    """Why the model's rollouts can't share prefixes; "" if they can. `text`: token ids of ordinary text."""
    if not getattr(engine.model, "_supports_attention_backend", False):
        return "it doesn't use transformers' attention interface"
    if "'dynamic'" in str(getattr(engine.config, "rope_parameters", None) or ""):
        return "its rotary embeddings depend on the length of the sequence"
    trunks = _trunks(engine, text)
    try:
        with short_windows(engine.model, engine.config):
            return _difference(engine, trunks)
    except Exception as e:  # a model's own code may raise anything here; plain decoding still works
        return " ".join(str(e).split()) or type(e).__name__
    finally:
        engine.use(engine.plain_attention)


def _difference(engine: Engine, trunks: Sequence[Trunk]) -> str:
    plain, shared = _plain(engine, trunks), _shared(engine, trunks)
    spread = plain.std().item() or 1.0
    largest = (shared - plain).abs().max().item() / spread
    if largest < CLOSE:
        return ""
    if not precision.is_narrow(engine.model.dtype) or not np.isfinite(largest):
        return f"its logits differ by {largest:.2g} standard deviations"
    with precision.float32(engine.model):
        exact = _plain(engine, trunks)
    own, other = ((x - exact).square().mean().sqrt().item() / spread for x in (plain, shared))
    if other <= FARTHER * own:
        return ""
    return (
        f"its logits are {other:.2g} standard deviations from those in float32, where its own attention's are {own:.2g}"
    )


def _trunks(engine: Engine, text: Sequence[int]) -> list[Trunk]:
    """Two texts, equal in their first half, each with several prefixes to continue."""
    length = max(4, min(LENGTH, engine.limit))
    given = list(text) or [(7919 * i + 11) % engine.vocab for i in range(LENGTH)]
    ids = (given * (length // len(given) + 1))[:length]
    half = length // 2
    texts = ids, ids[:half] + ids[half:][::-1]
    cuts = sorted({half + (length - 1 - half) * i // PREFIXES for i in range(1, PREFIXES + 1)})
    streams = [tuple(Stream(PREFIXES * t + i, cut, 0, 2) for i, cut in enumerate(cuts)) for t in range(2)]
    return [Trunk(tuple(x), of_text) for x, of_text in zip(texts, streams, strict=True)]


def _plain(engine: Engine, trunks: Sequence[Trunk]) -> torch.Tensor:
    """Logits after each prefix, then those after one more token, [2 * prefixes, V], by the model's own attention."""
    engine.use(engine.plain_attention)
    ids = torch.tensor([t.ids for t in trunks], device=engine.device)
    logits: torch.Tensor = engine.model(input_ids=ids, use_cache=False).logits
    ends = [(g, x.at - 1) for g, trunk in enumerate(trunks) for x in trunk.streams]
    return torch.stack([logits[g, at + later] for later in (0, 1) for g, at in ends]).float()


def _shared(engine: Engine, trunks: Sequence[Trunk]) -> torch.Tensor:
    cohort, first = engine.encode(trunks, engine.root(trunks))
    cohort.put(np.array([t.ids[x.at] for t in trunks for x in t.streams]), np.zeros(len(cohort.names)))
    return torch.cat([first, engine.decode([cohort])]).float()

"""The heads of public verifiers that came with code of their own, built here on transformers' native body.

Such a checkpoint is a usual body and one or two linear layers. Its own code no longer loads on a current transformers,
and need not: the layers are read from safetensors by their names. A checkpoint that is only a LoRA adapter is loaded on
its base and added into it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.errors import CheckpointError
from stepmark.models import checkpoints
from stepmark.models.detection import ADAPTER, local

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=4)
def model(path: str, _version: int, head: str, dtype: str, device: str) -> Any:
    """The model of a checkpoint or adapter directory, loaded once per process; `head` as of checkpoints.load_model."""
    if (base := base_of(path)) is None:
        return checkpoints.load_model(path, head, dtype=dtype, device=device)
    from stepmark.models import lora

    lora.need()
    import peft

    loaded = checkpoints.load_model(base, head, dtype=dtype, device=device)
    return peft.PeftModel.from_pretrained(loaded, path).merge_and_unload().eval()


def version(path: str) -> int:
    """A number that changes when a checkpoint, or an adapter, is written again."""
    file = Path(path) / ADAPTER
    return checkpoints.version(path) or (file.stat().st_mtime_ns if file.is_file() else 0)


def base_of(path: str) -> str | None:
    """The base of an adapter directory; None for a whole checkpoint."""
    file = Path(path) / ADAPTER
    if (Path(path) / "config.json").is_file() or not file.is_file():
        return None
    base = json.loads(file.read_text()).get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{file} does not name the base that the adapter belongs to (base_model_name_or_path).")
    return local(base)


def tokenizer_place(path: str) -> str:
    """The directory with the tokenizer: that of the base, if an adapter has none of its own."""
    return path if list(Path(path).glob("tokenizer*")) else base_of(path) or path


@lru_cache(maxsize=8)
def linear(path: str, name: str, _version: int, device: str) -> torch.nn.Linear:
    """A linear layer of a checkpoint's head, in float32, by the name of its weights without ".weight" and ".bias"."""
    import torch
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            names: Sequence[str] = weights.keys()
            found |= {k: weights.get_tensor(k).float() for k in (f"{name}.weight", f"{name}.bias") if k in names}
    if f"{name}.weight" not in found:
        raise CheckpointError(f"{path} lacks the weights {name}.weight of this family's head. Is it of another family?")
    weight, bias = found[f"{name}.weight"], found.get(f"{name}.bias")
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer.to(device).eval()


def places(model: Any, batch: Any) -> torch.Tensor:
    """[K, D] hidden states at the batch's places."""
    from stepmark.models.forward import outputs

    hidden: torch.Tensor = outputs(model, batch)[batch.rows, batch.columns]
    return hidden


def word(model: Any, batch: Any, good: int, bad: int) -> torch.Tensor:
    """[K] the probability of the token `good` against `bad`, at the batch's places."""
    from stepmark.models import packing
    from stepmark.models.forward import output_layer

    pair = packing.log_probs_at(places(model, batch), output_layer(model), (bad, good))
    return pair.softmax(-1)[:, 1]


def two_layers(path: str, model: Any, batch: Any) -> Any:
    """[K] the probability of class 1 by the head of Qwen2.5-Math-PRM: Linear `score.0`, ReLU, Linear `score.2`."""
    first, second = (linear(path, f"score.{i}", checkpoints.version(path), str(model.device)) for i in (0, 2))
    return second(first(places(model, batch).float()).relu()).softmax(-1)[:, 1]

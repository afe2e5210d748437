"""LoRA (Hu et al., arXiv 2106.09685) through peft: small matrices beside every linear layer learn, the rest is frozen.

What learns besides them is what the checkpoint never learned: a verifier's new head, and the embedding's rows of its
tags. The adapters are put into the model in place, so trainees use it as they would use any other.

    OUT/                a whole checkpoint, as of any training: the adapters are added into its weights
    OUT/adapter/        the adapter alone, in peft's format; with a tokenizer where the embedding has grown

    stepmark train generator --task gsm8k --base SmolLM2/ --set lora=16 --set lr=2e-4 --out generator/
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepmark.errors import ConfigError

DIRECTORY = "adapter"
TASKS = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
HEADS = ("score", "classifier")  # what transformers calls the heads of classifiers; peft trains them whole


def need() -> None:
    """Raises ConfigError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("train: lora needs the package peft: pip install 'stepmark[lora]', or set lora to 0.")


def attach(model: Any, rank: int, alpha: int) -> Any:
    """Puts adapters into `model`, freezes the rest of it, and returns peft's model around it. `alpha` / `rank` is the
    factor of what they add; an `alpha` of 0 is twice the rank.

    Raises ConfigError where peft is not installed, or can't adapt this model."""
    need()
    import peft
    import torch

    if not any(isinstance(m, torch.nn.Linear) and n not in HEADS for n, m in model.named_modules()):
        raise ConfigError(f"train: lora adapts linear layers, and a {type(model).__name__} has none. Set lora to 0.")
    tokens = sorted(getattr(model, "tag_ids", ()))
    layers = [model.get_input_embeddings()]
    if not getattr(model.config, "tie_word_embeddings", False) and (output := model.get_output_embeddings()):
        layers.append(output)  # tied, the two are one matrix
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is x for x in layers)]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        target_modules="all-linear",
        exclude_modules=[name for name in HEADS if hasattr(model, name)] or None,
        task_type=next((task for end, task in TASKS.items() if type(model).__name__.endswith(f"For{end}")), None),
        trainable_token_indices=dict.fromkeys(names, tokens) if tokens else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks for attributes of models that are deprecated
        return peft.get_peft_model(model, config)


def save(adapted: Any, out: Path, write: Callable[[Any, Path], None]) -> None:
    """Writes the adapter into a directory in `out`, adds it into the weights of the model, which it ends, and calls
    `write(model, out)` for the whole checkpoint."""
    place, model = out / DIRECTORY, adapted.get_base_model()
    shutil.rmtree(place, ignore_errors=True)
    config = adapted.peft_config["default"]
    if Path(config.base_model_name_or_path or "").is_dir():
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The adapter has the rows of the tags. The whole embedding would be many times its size.
        adapted.save_pretrained(str(place), save_embedding_layers=False)
        model = adapted.merge_and_unload()
    write(model.eval(), out)
    if getattr(model, "grown", False):
        # From the tokenizer peft's AutoPeftModel knows how many rows the embedding needs before the adapter fits.
        for file in (f for f in out.iterdir() if f.name.startswith("tokenizer")):
            shutil.copyfile(file, place / file.name)

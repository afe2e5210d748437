"""Tiny random models of several architectures. Their weights are large, so every input token changes the output."""

from pathlib import Path

import torch
import transformers

from stepmark.models import checkpoints

CONTEXTS = ("Ann has 4 apples. Ben has 3 more.\n", "Cat has 7 apples.\n", "How many?\n")
LINES = ("Ben has 4 + 3 = 7.\n", "So that is 7 in all.\n", "The answer is 7.\n")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
# name -> (config class, its settings). Windows and chunks are short. llama_dynamic can't share prefixes.
LAYERS = ["sliding_attention", "full_attention"]
ARCHITECTURES = {
    "llama": ("LlamaConfig", {}),
    "llama_grouped": ("LlamaConfig", {"num_key_value_heads": 2}),
    "llama_one_kv_head": ("LlamaConfig", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 16}),
    "gpt2": ("GPT2Config", {"n_positions": 160}),
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}),  # caps its scores
    "gemma3": (
        "Gemma3TextConfig",
        {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16, "layer_types": LAYERS},
    ),
    "gpt_oss": (  # sinks, and experts
        "GptOssConfig",
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16, "layer_types": LAYERS}
        | {"num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_chunk_size": 16,
            "layer_types": ["chunked_attention", "full_attention"],
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
        },
    ),
    "lfm2": (  # convolutions that run over the row
        "Lfm2Config",
        {"num_key_value_heads": 2, "block_ff_dim": 48, "layer_types": ["conv", "full_attention"]},
    ),
    "mistral_window": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 16}),
    "llama_wide": ("LlamaConfig", {"num_key_value_heads": 2, "head_dim": 32}),  # the narrowest heads of vLLM on a CPU
    "llama_dynamic": ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
}


def create(path: Path, name: str) -> Path:
    """Writes the checkpoint of an architecture to `path`, with a tokenizer trained on a few lines."""
    corpus = [c + "".join(LINES) for c in CONTEXTS] * 20
    base = checkpoints.create(path.with_name(name + "_tokenizer"), corpus, checkpoints.Shape(max_length=160, vocab=300))
    tokenizer = checkpoints.load_tokenizer(base)
    kind, settings = ARCHITECTURES[name]
    ids = {f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("pad", "bos", "eos")}
    config = getattr(transformers, kind)(vocab_size=len(tokenizer), **SMALL | settings | ids)
    torch.manual_seed(0)  # not SEED: these weights are given, and no result of a training or of sampling
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
        # Texts end at different lengths.
        head = model.get_output_embeddings().weight
        head[tokenizer.eos_token_id] *= 2
    checkpoints.save(path, model, tokenizer)
    return path

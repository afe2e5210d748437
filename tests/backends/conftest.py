"""Tiny random models of several architectures, and a server. The models have large weights, so that every input token
changes the output."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import transformers

from stepmark.backends.local import LocalBackend
from stepmark.models import checkpoints
from stepmark.types import Prompt, SamplingParams

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
    "mistral_window": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 16}),
    "llama_wide": ("LlamaConfig", {"num_key_value_heads": 2, "head_dim": 32}),  # the narrowest heads of vLLM on a CPU
    "llama_dynamic": ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
}


@pytest.fixture(scope="session")
def fault_server():
    """The module beside this file: its Server, Said, FAULTS."""
    spec = importlib.util.spec_from_file_location("fault_server", Path(__file__).parent / "fault_server.py")
    module = sys.modules["fault_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def server_of_llama(fault_server, model_of):
    """A server without faults that returns rollouts of the backend `local`."""
    local = LocalBackend(model_of("llama"), device="cpu")

    def say(body, text, n):
        stop = tuple(body.get("stop", ()))
        params = SamplingParams(body["max_tokens"], body["temperature"], body["top_p"], stop, body.get("seed", 0))
        for r in local.sample([Prompt("", text, n=n)], params):
            yield fault_server.Said(r.text, r.finish.value, (r.logprob / r.tokens,) * r.tokens)

    with fault_server.Server(say) as server:
        yield server


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """Architecture name -> checkpoint directory, created once."""
    directory = tmp_path_factory.mktemp("models")
    corpus = [c + "".join(LINES) for c in CONTEXTS] * 20
    created: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in created:
            created[name] = str(_create(directory / name, name, corpus))
        return created[name]

    return make


def _create(path: Path, name: str, corpus: list[str]) -> Path:
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

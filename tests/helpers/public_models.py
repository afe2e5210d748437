"""Tiny checkpoints laid out as public verifiers are: real architecture classes, key names, tokenizers and templates.

Their weights are random and large, so every input token changes the scores. Their code of their own is named in
config.json and does not exist, as if it were not to be run.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = (
    "Ann has 4 apples and Ben has 3 more.",
    "Step 1: Ben has 4 + 3 = 7.",
    "Step 2: So that is 4 + 7 = 11 in all.",
    "The answer is 11 - 0.",
)
REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def byte_level(specials, template, bos=None, adds_bos=False):
    """A tokenizer like Qwen's or Llama 3's, with tokens of several new lines."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(REGEX), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    blank = "".join(f"a{gap}b" for gap in (" \n\n\n\n", " \n\n\n\n\n", " \n\n", "\n\n") for _ in range(50))
    bpe.train_from_iterator([blank, *LINES * 20], trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing("<B> $A".replace("<B>", bos), None, [(bos, 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=specials[-1],
        pad_token=specials[-1],
        additional_special_tokens=specials,
        chat_template=template,
    )


def qwen(bos=None):
    return byte_level(["<|endoftext|>", "<extra_0>", "<|im_start|>", "<|im_end|>"], CHATML, bos)


def llama3():
    specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(specials, LLAMA3, specials[0], adds_bos=True)


def sentencepiece(pad="</s>"):
    """A tokenizer like Mistral's: a text begins with a space, other characters are bytes, " ки" is one token."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=True)
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
        show_progress=False,
    )
    bpe.train_from_iterator([*LINES * 20, *["x ки y ки", "a + b - c + - +"] * 50], trainer)
    bpe.pre_tokenizer = None
    raw = json.loads(bpe.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if not t["content"].startswith("<0x")]
    bpe = Tokenizer.from_str(json.dumps(raw))
    bpe.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad
    )


def write(path: Path, kind: str, tokenizer, head=(), architectures=None, auto=None, seed=0, **config):
    """The checkpoint: a model of `kind`, e.g. Qwen2ForCausalLM, without its output layer if it has a `head`, whose
    layers are (name, outputs, inputs, bias). Returns the path."""
    torch.manual_seed(seed)  # not SEED: these weights are given, and no result of a training or of sampling
    cls = getattr(transformers, kind)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model = cls(cls.config_class(vocab_size=len(tokenizer), **SMALL | ids | config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    file = path / "config.json"
    raw = json.loads(file.read_text())
    if head:
        weights = {k: v for k, v in load_file(path / "model.safetensors").items() if not k.startswith("lm_head.")}
        for name, outputs, inputs, bias in head:
            weights[f"{name}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
            if bias:
                weights[f"{name}.bias"] = torch.randn(outputs)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    raw["architectures"] = [architectures or kind]
    if auto:
        raw["auto_map"] = {"AutoModel": f"modeling_of_their_own.{auto}", "AutoConfig": "modeling_of_their_own.Config"}
    file.write_text(json.dumps(raw))
    return path


def process_reward(name="Qwen2.5-Math-PRM-7B"):
    def make(root):
        head = [("score.0", 32, 32, True), ("score.2", 2, 32, True)]
        cls = "Qwen2ForProcessRewardModel"
        return write(root / name, "Qwen2ForCausalLM", qwen(), head, cls, cls)

    return make


def skywork(root):
    path, head = root / "Skywork-o1-Open-PRM-Qwen-2.5-7B", [("v_head.summary", 1, 32, True)]
    return write(path, "Qwen2ForCausalLM", qwen("<|endoftext|>"), head, "Qwen2ForPrmModel")


def plain(name, kind, tokenizer, **config):
    return lambda root: write(root / name, kind, tokenizer(), **config)


def reason_eval(kind="MistralForCausalLM", name="ReasonEval_7B", pad="<s>"):
    def make(root):
        head = [("score_head", 3, 32, False)]
        return write(root / name, kind, sentencepiece(pad), head, name)

    return make


def adapted(make, name):
    """A LoRA adapter of a checkpoint, alone in a directory, as VersaPRM and Math-PSA were published."""

    def adapter(root):
        import peft

        base = make(root / "base")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, 0, 0.3)
        model.save_pretrained(root / name)
        return root / name

    return adapter


FAMILIES = {
    "math_shepherd": plain("math-shepherd-mistral-7b-prm", "MistralForCausalLM", sentencepiece, sliding_window=None),
    "qwen_prm": process_reward(),
    "reasonflux": process_reward("ReasonFlux-PRM-7B"),
    "skywork": skywork,
    "rlhflow": plain("Llama3.1-8B-PRM-Deepseek-Data", "LlamaForCausalLM", llama3),
    "prm800k": plain("Llama-PRM800K", "LlamaForCausalLM", llama3),
    "math_psa": plain("Math-psa", "Qwen2ForCausalLM", qwen),
    "reason_eval": reason_eval(),
    "token_classification": plain("some-prm", "Qwen2ForTokenClassification", qwen, num_labels=2),
    "sequence_classification": plain("some-orm", "LlamaForSequenceClassification", llama3, num_labels=1),
}
# More checkpoints of these families: (family, its checkpoint).
OTHERS = {
    "adapter of prm800k": ("prm800k", adapted(FAMILIES["prm800k"], "VersaPRM")),
    "adapter of math_psa": ("math_psa", adapted(FAMILIES["math_psa"], "Math-psa")),
    "two classes": (
        "sequence_classification",
        plain("some-orm", "Qwen2ForSequenceClassification", qwen, num_labels=2),
    ),
    "reason_eval 34B": ("reason_eval", reason_eval("LlamaForCausalLM", "ReasonEval_34B", "</s>")),
    "trl with bos": (
        "token_classification",
        plain("some-prm", "LlamaForTokenClassification", llama3, num_labels=2),
    ),
}

"""Vocabulary trimming: the data is encoded as before, every text still can be, and probabilities are renormalised."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from stepmark.cli.app import app
from stepmark.errors import CheckpointError, ConfigError, DataError
from stepmark.models import checkpoints, vocabulary
from stepmark.models.encoding import token_ids

CORPUS = [
    "Ann has 4 apples. Ben has 3 more apples than Ann, so Ben has 7 apples.\n",
    "Der schnelle braune Fuchs springt über den faulen Hund und läuft davon.\n",
    "El perro perezoso duerme mientras el zorro corre rápidamente por el campo.\n",
] * 8
DATA = [CORPUS[0], "So Ann has 4 and Ben has 7.\n"]


def byte_level() -> Tokenizer:
    """As GPT-2, Qwen, Llama 3 and SmolLM2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|end|>", "<unused0>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return bpe


def byte_fallback() -> Tokenizer:
    """As Gemma: a whole text is one word, characters without a token become bytes, and a text begins with BOS."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    bpe.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<|end|>", "<bos>", "<unk>", *(f"<unused{i}>" for i in range(60))]
    specials += [f"<0x{i:02X}>" for i in range(256)]
    bpe.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")  # for training alone
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=specials, show_progress=False, min_frequency=2)
    bpe.train_from_iterator(CORPUS, trainer)
    stored = json.loads(bpe.to_str())
    stored["added_tokens"] = [x for x in stored["added_tokens"] if not x["content"].startswith("<0x")]
    stored["pre_tokenizer"] = None
    bpe = Tokenizer.from_str(json.dumps(stored))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return bpe


@pytest.fixture(scope="module", params=[byte_level, byte_fallback])
def source(request, tmp_path_factory):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=request.param(), eos_token="<|end|>")
    tied = request.param is byte_level
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 7,  # more rows than tokens, as public models have
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("source") / request.param.__name__
    checkpoints.save(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def trimmed(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("trimmed") / source.name
    return vocabulary.trim(source, DATA, out)


def numbers(source, trimmed):
    """Kept id -> new id."""
    old, new = checkpoints.load_tokenizer(source), checkpoints.load_tokenizer(trimmed.path)
    return {i: new.get_vocab()[token] for token, i in old.get_vocab().items() if token in new.get_vocab()}


def test_the_data_is_encoded_as_before_with_fewer_tokens(source, trimmed):
    number = numbers(source, trimmed)
    old, new = checkpoints.load_tokenizer(source), checkpoints.load_tokenizer(trimmed.path)
    for text in DATA:
        assert [number[i] for i in token_ids(old, text)[0]] == token_ids(new, text)[0]
    assert trimmed.vocabulary == len(new.get_vocab()) == checkpoints.load_model(trimmed.path).config.vocab_size
    assert trimmed.vocabulary < len(old.get_vocab()) < trimmed.vocabulary_before
    assert trimmed.parameters < trimmed.parameters_before
    assert sorted(number.values()) == list(range(trimmed.vocabulary))
    assert new.eos_token == old.eos_token
    assert checkpoints.load_model(trimmed.path).config.eos_token_id == new.eos_token_id
    assert sum(token.startswith("<unused") for token in new.get_vocab()) in (1, vocabulary.KEPT_RESERVED)


@settings(max_examples=150)
@given(text=st.text(max_size=60))
def test_every_text_can_still_be_encoded(trimmed, text):
    tokenizer = checkpoints.load_tokenizer(trimmed.path)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert max(ids, default=0) < trimmed.vocabulary
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded == text.replace("\u2581", " ") if trimmed.path.endswith("byte_fallback") else decoded == text


def test_probabilities_are_the_full_models_renormalised(source, trimmed):
    number = numbers(source, trimmed)
    old = token_ids(checkpoints.load_tokenizer(source), DATA[0])[0]
    kept = sorted(number)
    with torch.inference_mode():
        full = checkpoints.load_model(source, device="cpu")(torch.tensor([old])).logits[0]
        cut = checkpoints.load_model(trimmed.path, device="cpu")(torch.tensor([[number[i] for i in old]])).logits[0]
    expected = full[:, kept].log_softmax(-1)
    assert torch.allclose(cut.log_softmax(-1)[:, [number[i] for i in kept]], expected, atol=1e-5)


def test_what_can_not_be_trimmed_is_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="there are none"):
        vocabulary.trim(source, [], tmp_path / "out")
    with pytest.raises(CheckpointError, match="already holds a model"):
        vocabulary.trim(source, DATA, source)
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<unk>")
    checkpoints.save(tmp_path / "unigram", checkpoints.load_model(source), tokenizer)
    with pytest.raises(CheckpointError, match=r"byte pairs \(BPE\) can be trimmed; this one is Unigram"):
        vocabulary.trim(tmp_path / "unigram", DATA, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="no file"):
        vocabulary.texts_of(tmp_path / "gone.jsonl")


def test_the_command(source, tmp_path):
    rows = [{"question": DATA[0], "more": {"answers": [DATA[1]]}, "number": 7}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data.txt").write_text("plain words")
    assert vocabulary.texts_of(tmp_path / "data.jsonl") == DATA
    assert vocabulary.texts_of(tmp_path / "data.txt") == ["plain words"]
    command = ["init", "--from", str(source), "--keep-vocab-of", str(tmp_path / "data.jsonl")]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["texts"] == 2
    assert checkpoints.load_model(tmp_path / "out").config.vocab_size == json.loads(done.stdout)["vocabulary"]
    done = CliRunner().invoke(app, ["init", "--from", str(source), "--out", str(tmp_path / "other")])
    assert done.exit_code != 0

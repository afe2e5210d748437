"""Tags on checkpoints that know none of ours, as public ones: chosen, said, stored, and read by plain transformers."""

import json
import logging

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stepmark.errors import EncodingError
from stepmark.models import checkpoints
from stepmark.models.encoding import token_ids
from stepmark.models.tags import tags_of
from stepmark.plugins.loading import load_verifier
from stepmark.stages.train import TrainSettings, train
from stepmark.types import Finish, Grade, LabelledSolution, Problem, Solution, StepLabel, Verdict
from stepmark.verifiers.orm import OutcomeVerifier
from stepmark.verifiers.prm import ProcessVerifier

TEXT = "Ann has 3 + 4 = 7.\nSo it is 7 - 2 = 5.\n"
SETTINGS = TrainSettings(epochs=2, tensorboard=False, device="cpu", lr=1e-2)


def public(path, *specials: str, spare: int = 0) -> str:
    """A tiny checkpoint whose tokenizer has `specials` and none of our tags. `spare`: rows without a token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<|end|>", *specials]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    bpe.train_from_iterator([TEXT] * 20, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + spare,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    checkpoints.save(path, transformers.LlamaForCausalLM(config), tokenizer)
    return str(path)


def example() -> tuple[Problem, LabelledSolution]:
    problem = Problem("q", "How many?", "5", "jsonl")
    solution = Solution("q#0", "q", 0, TEXT, ((0, 19), (19, len(TEXT))), Finish.STOP, 20)
    labels = (StepLabel(1, 1, source="test"), StepLabel(0, 1, source="test"))
    return problem, LabelledSolution(solution, Grade(Verdict.INCORRECT, ""), labels)


@pytest.mark.parametrize("head", ["tag", "token"])
@pytest.mark.parametrize(
    ("specials", "spare", "tag"),
    [
        (("<unused1>", "<unused0>"), 0, "<unused1>"),
        (("<|im_start|>", "<|reserved_special_token_0|>"), 0, "<|reserved_special_token_0|>"),
        (("<|im_start|>",), 0, "<step>"),  # a row is added
        (("<|im_start|>",), 40, "<step>"),  # a spare row is used
    ],
)
def test_a_public_base_gets_its_tags(tmp_path, caplog, head, specials, spare, tag):
    base = public(tmp_path / "base", *specials, spare=spare)
    rows = checkpoints.load_model(base, device="cpu").get_input_embeddings().weight.shape[0]
    with caplog.at_level(logging.WARNING):
        train(ProcessVerifier(base, head=head), [example()] * 4, tmp_path / "prm", SETTINGS)
    assert f"the tag is the {'new' if tag == '<step>' else 'reserved'} token {tag!r}" in caplog.text
    card = json.loads((tmp_path / "prm" / "verifier.json").read_text())
    assert card["options"]["tag"] == tag
    if head == "tag":
        assert "good is '+'" in caplog.text
        assert (card["options"]["good"], card["options"]["bad"]) == ("+", "-")

    verifier = load_verifier(tmp_path / "prm", device="cpu")
    problem, labelled = example()
    (verification,) = verifier.verify(problem.question, [labelled.solution])
    assert len(verification.scores) == 2

    # Plain transformers, with nothing but the directory and its card, gives the same scores.
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "prm")
    auto = getattr(transformers, f"AutoModelFor{'CausalLM' if head == 'tag' else 'TokenClassification'}")
    model = auto.from_pretrained(tmp_path / "prm").eval()
    assert model.get_input_embeddings().weight.shape[0] == rows + (tag == "<step>" and not spare)
    ids = tokenizer(f"How many?\n{TEXT[:18]}{tag}{TEXT[18:-1]}{tag}")["input_ids"]
    at = [i for i, x in enumerate(ids) if x == tokenizer.convert_tokens_to_ids(tag)]
    assert len(at) == 2
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, at]
    if head == "tag":
        logits = logits[:, [card["ids"]["bad"], card["ids"]["good"]]]
    assert verification.scores == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    # And the base is as it was.
    assert len(checkpoints.load_tokenizer(base).get_vocab()) == len(transformers.AutoTokenizer.from_pretrained(base))


def test_an_outcome_verifier_with_tags(tmp_path):
    base = public(tmp_path / "base")
    train(OutcomeVerifier(base, head="tag"), [example()] * 4, tmp_path / "orm", SETTINGS)
    problem, labelled = example()
    (verification,) = load_verifier(tmp_path / "orm", device="cpu").verify(problem.question, [labelled.solution])
    assert 0 < verification.score < 1


@pytest.mark.parametrize("specials", [("<unused0>",), ()])
def test_the_tag_in_a_users_text_is_no_tag(tmp_path, specials):
    base = public(tmp_path / "base", *specials)
    tags = tags_of(base, False, tag=checkpoints.STEP)
    assert tags.ids["tag"] not in token_ids(tags.tokenizer, f"say {tags.texts['tag']} now")[0]


def test_a_new_row_begins_as_the_mean_of_the_others(tmp_path):
    base = public(tmp_path / "base")
    before = checkpoints.load_model(base, device="cpu").get_input_embeddings().weight
    after = ProcessVerifier(base).build().get_input_embeddings().weight
    assert torch.equal(after[:-1], before)
    assert torch.allclose(after[-1], before.mean(0), atol=1e-6)


def test_a_named_text_is_taken_as_it_is_or_refused(tmp_path):
    base = public(tmp_path / "base", "<unused0>")
    assert tags_of(base, False, tag="\n", good="+", bad="-").chosen == ""
    with pytest.raises(EncodingError, match="the good 'very right' is"):
        tags_of(base, False, tag="\n", good="very right")
    with pytest.raises(EncodingError, match="must be different tokens"):
        tags_of(base, False, tag="+", good="+")

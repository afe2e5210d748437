"""Entailment against plain transformers, one pair at a time; labels by name; pairs that are too long."""

import json
import shutil
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.errors import CheckpointError, ConfigError
from stepmark.models import checkpoints
from stepmark.models.entailment import label_index, probabilities

pytestmark = pytest.mark.robust


@cache
def plain_model(path):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(path).eval()


def plain(path, premise, hypothesis, index):
    import torch
    from transformers import AutoTokenizer

    model = plain_model(path)
    inputs = AutoTokenizer.from_pretrained(path)(premise, hypothesis, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.softmax(-1)[0, index].item()


@pytest.fixture(scope="module")
def pairs(problems):
    lines = [line for p in problems[:6] for line in p.reference.splitlines()]
    return [(a, b) for a, b in zip(lines, [*lines[3:], "short", lines[0], "x y z"], strict=True)]


def test_it_agrees_with_plain_transformers(entailer, pairs):
    probability = probabilities(entailer, pairs)
    expected = [plain(entailer, a, b, 1) for a, b in pairs]
    assert probability == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.2  # else the test compares equal numbers
    assert probabilities(entailer, pairs, entailment=2) == pytest.approx(
        [plain(entailer, a, b, 2) for a, b in pairs], abs=1e-5
    )


def test_equal_pairs_are_equal_and_order_is_kept(entailer, pairs):
    once = probabilities(entailer, pairs)
    repeated = probabilities(entailer, [*reversed(pairs), *pairs])
    assert repeated == [*reversed(once), *once] or repeated == pytest.approx([*reversed(once), *once], abs=1e-6)


def test_long_pairs_have_no_probability_and_are_not_truncated(entailer, pairs):
    fits = " ".join(["2"] * 36)  # with three special tokens and one word: 40
    probability = probabilities(entailer, [pairs[0], (fits, "2"), (fits, "2 2"), ("2", fits + " 2")])
    assert probability[0] == pytest.approx(probabilities(entailer, pairs[:1])[0], abs=1e-5)
    assert probability[1] == pytest.approx(plain(entailer, fits, "2", 1), abs=1e-5)
    assert probability[2:] == [None, None]


def test_a_text_cannot_add_special_tokens(entailer):
    """A [SEP] token from a step's text would split it into a premise and a hypothesis."""
    inside, outside = probabilities(entailer, [("2 [SEP] 2", "2"), ("2", "2 [SEP] 2")])
    tokenizer = checkpoints.load_tokenizer(entailer)
    forged = tokenizer("2 [SEP] 2", "2")["input_ids"]
    assert forged.count(tokenizer.sep_token_id) == 3  # what plain encoding gives
    assert inside != pytest.approx(plain(entailer, "2 [SEP] 2", "2", 1), abs=1e-4)
    assert outside is not None


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
@settings(max_examples=25)
def test_any_text_has_a_probability_or_none(entailer, texts):
    for p in probabilities(entailer, [(a, b) for a in texts for b in texts]):
        assert p is None or 0 <= p <= 1


def test_decoders_without_a_padding_token_and_one_logit_heads(tiny, tmp_path):
    """The Llama of the other tests with a head of one logit: p is its sigmoid, and no pair is padded."""
    import torch

    model = checkpoints.load_model(tiny, "SequenceClassification", new_head=True, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=3.0)
    checkpoints.save(tmp_path / "m", model, checkpoints.load_tokenizer(tiny))
    for name, key in (("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")):
        file = tmp_path / "m" / name
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
    assert checkpoints.load_tokenizer(tmp_path / "m").pad_token_id is None
    pairs = [("1 + 1 = 2\n", "2"), ("1 + 1 = 2, so it is more than one\n", "3 + 4")]
    tokenizer = checkpoints.load_tokenizer(tiny)
    with torch.no_grad():
        expected = [model(torch.tensor([tokenizer(a, b)["input_ids"]])).logits.sigmoid().item() for a, b in pairs]
    assert probabilities(str(tmp_path / "m"), pairs, entailment=0) == pytest.approx(expected, abs=1e-5)


def test_the_label_is_found_by_name():
    assert label_index({0: "contradiction", 1: "neutral", 2: "entailment"}, None, "m") == 2
    assert label_index({0: "ENTAILMENT", 1: "not_entailment"}, None, "m") == 0
    assert label_index({0: "LABEL_0", 1: "LABEL_1"}, 1, "m") == 1


@pytest.mark.parametrize("names", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "not_entailment", 1: "non-entailment"}])
def test_without_an_entailment_label_the_error_lists_the_labels(names):
    with pytest.raises(ConfigError, match=f"0: {names[0]}, 1: {names[1]}.*entailment="):
        label_index(names, None, "m")


def test_an_unknown_label_and_a_missing_model(entailer, tmp_path):
    with pytest.raises(ConfigError, match=r"no label 7\. It has 0: contradiction"):
        probabilities(entailer, [("a", "b")], entailment=7)
    with pytest.raises(CheckpointError):
        probabilities(str(tmp_path / "none"), [("a", "b")])
    assert probabilities(str(tmp_path / "none"), []) == []


def test_weights_that_are_no_classifier_are_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "m")
    with pytest.raises(CheckpointError, match="lacks"):
        probabilities(str(tmp_path / "m"), [("a", "b")], entailment=0)

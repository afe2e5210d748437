"""Rewards of steps land on the policy's own tokens, whatever tokens it sampled for the text."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.errors import EncodingError
from stepmark.integrations import rewards
from stepmark.integrations.response_tokens import offsets, on_verl_tokens
from stepmark.models import checkpoints
from stepmark.types import Reward, Verification

TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab 1+=\n.😀é👩‍🚀ки½")), max_size=60
)


def byte_level():
    """GPT-2's kind: a character of several bytes may be several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<eos>"])
    model.train_from_iterator(["the sum is 12 + 30 = 42.\nSo 42 шаг ки", "The answer is 42.\n\n"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", clean_up_tokenization_spaces=False)


def byte_fallback():
    """Llama's kind: a mark stands for a space, and decoding drops it at the start; rare characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdehimnorstuw0123456789+=."]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("1", "2")]
    vocab = {w: i for i, w in enumerate([*words, *("".join(m) for m in merges)])}
    model = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback", "tiny"])
def tokenizer(request, tiny):
    if request.param == "tiny":
        return checkpoints.load_tokenizer(tiny)
    return {"byte_level": byte_level, "byte_fallback": byte_fallback}[request.param]()


def pieces(tokenizer, text, seed):
    """Ids of the text as a policy may sample them: of random parts of it, so seldom those of the whole."""
    source, ids = random.Random(seed), []
    cuts = sorted({0, len(text), *(source.randint(0, len(text)) for _ in range(source.randint(0, 5)))})
    for a, b in pairwise(cuts):
        ids += tokenizer(text[a:b], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + [tokenizer.eos_token_id] * source.randint(0, 2)


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_spans_are_where_decoding_says(tokenizer, data):
    ids = pieces(tokenizer, data.draw(TEXTS), data.draw(st.integers(0, 99)))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    spans = offsets(tokenizer, ids, text)
    assert len(spans) == len(ids)
    ends = [0, *(b for _, b in spans)]
    assert ends == sorted(ends) and ends[-1] == len(text) and all(a <= b for a, b in spans)
    for k, (a, b) in enumerate(spans):
        if b > a and text[a:b].replace("\ufffd", "") == text[a:b]:
            before = tokenizer.decode(ids[:k], skip_special_tokens=True)
            upto = next((j for j in range(k, len(ids)) if spans[j] != (a, b)), len(ids))
            assert tokenizer.decode(ids[:upto], skip_special_tokens=True).startswith(text[:b])
            assert not before.startswith(text[:b])  # not all of it was there before this token


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_each_step_is_rewarded_on_the_token_that_completes_it(tokenizer, data):
    ids = pieces(tokenizer, data.draw(TEXTS), data.draw(st.integers(0, 99)))
    text = tokenizer.decode(ids, skip_special_tokens=True)

    class Ones:
        def verify(self, question, solutions):
            return [Verification(s.id, (1.0,) * len(s.spans), 1.0, "min") for s in solutions]

    score = rewards.verl(Ones(), credit="sum")("mine", text, "", {"question": "q"})
    by_token = on_verl_tokens(tokenizer, ids, score)
    assert sum(by_token) == pytest.approx(score["score"])
    if "\ufffd" in text:
        return  # bytes that are no character
    expected = [0.0] * len(ids)
    for end in json.loads(score["step_ends"]):
        done = [
            tokenizer.decode(ids[: k + 1], skip_special_tokens=True).startswith(text[:end]) for k in range(len(ids))
        ]
        expected[done.index(True)] += 1.0
    assert by_token == pytest.approx(expected)


def test_a_long_response_is_read_in_one_pass():
    class Counting:
        """A tokenizer that counts the tokens that it decodes."""

        def __init__(self, inner):
            self.inner, self.decoded = inner, 0

        def decode(self, ids, **options):
            self.decoded += len(ids)
            return self.inner.decode(ids, **options)

    counting = Counting(byte_level())
    ids = counting.inner("the sum is 12 + 30 = 42. 😀 ки\n" * 200, add_special_tokens=False)["input_ids"]
    offsets(counting, ids)
    assert len(ids) > 3000 and counting.decoded < 40 * len(ids)


def test_another_text_is_refused():
    tokenizer = byte_level()
    ids = tokenizer("12 + 30 = 42", add_special_tokens=False)["input_ids"]
    with pytest.raises(EncodingError, match="nothing stripped"):
        offsets(tokenizer, ids, "12 + 30 = 42\n")


def test_a_lost_attempt_has_its_substitute_on_the_last_token():
    tokenizer = byte_level()
    ids = tokenizer("1\n2", add_special_tokens=False)["input_ids"]

    class Lost:
        def reward(self, attempts):
            return [Reward(s.id, (0.0,) * len(s.spans), lost="the server is down") for _, s in attempts]

    score = rewards.verl(Lost(), question=None, lost=-1.0)("mine", "1\n2", "")
    assert on_verl_tokens(tokenizer, ids, score) == [0.0] * (len(ids) - 1) + [-1.0]

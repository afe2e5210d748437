"""Text -> ids: special tokens are taken literally, and tags are one token."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import EncodingError
from stepmark.models import checkpoints
from stepmark.models.encoding import boundaries, special_id, token_ids

MARKS = ["<good>", "<bad>", "<step>", "<eos>", "<bos>", "<pad>", "Verification: Is the answer correct? Yes", "\n", " 7"]
TEXT = st.lists(st.sampled_from(MARKS) | st.text(st.characters(codec="utf-8"), max_size=8), max_size=12).map("".join)


@pytest.fixture(scope="module")
def opening(tiny, tmp_path_factory):
    """A tokenizer that adds BOS and EOS to each text, as many on the hub do."""
    from tokenizers import processors

    path = shutil.copytree(tiny, tmp_path_factory.mktemp("opening") / "m")
    tokenizer = checkpoints.load_tokenizer(path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)],
    )
    tokenizer.save_pretrained(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@given(TEXT)
def test_text_never_becomes_a_special_token(tiny, text):
    tokenizer = checkpoints.load_tokenizer(tiny)
    ids, spans = token_ids(tokenizer, text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(spans)
    ends = [b for _, b in spans]
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text)


@given(TEXT)
def test_bos_is_added_once_and_eos_never(opening, text):
    assert opening("a")["input_ids"][0] == opening.bos_token_id  # checks the fixture
    assert opening("a")["input_ids"][-1] == opening.eos_token_id
    ids, spans = token_ids(opening, text)
    assert ids[0] == opening.bos_token_id
    assert spans[0] == (0, 0)
    assert not set(ids[1:]) & set(opening.all_special_ids)
    assert opening.decode(ids[1:]) == text


def test_plain_text_gets_plain_transformers_ids(tiny, problems):
    tokenizer = checkpoints.load_tokenizer(tiny)
    for p in problems[:20]:
        assert token_ids(tokenizer, p.reference)[0] == tokenizer(p.reference)["input_ids"]


def test_nothing_is_cut_at_the_tokenizers_length(tiny):
    tokenizer = checkpoints.load_tokenizer(tiny)
    assert len(token_ids(tokenizer, "7 x " * 2000)[0]) > 2000 > tokenizer.model_max_length


def test_boundaries_by_hand():
    spans = [(0, 0), (0, 3), (3, 5), (5, 9), (9, 10)]
    assert boundaries(spans, [0, 3, 4, 5, 6, 9, 10]) == [0, 2, 3, 3, 4, 4, 5]


@given(st.lists(st.integers(0, 4), max_size=20), st.lists(st.integers(0, 60), max_size=8).map(sorted))
def test_boundaries_cover_the_text_before_a_cut_with_the_fewest_tokens(lengths, cuts):
    spans, end = [], 0
    for n in lengths:
        spans.append((end, end + n))
        end += n
    for cut, t in zip(cuts, boundaries(spans, cuts), strict=True):
        assert all(start < cut for start, _ in spans[:t])
        assert all(start >= cut for start, _ in spans[t : t + 1])


def test_tags_are_one_token_or_refused(tiny):
    tokenizer = checkpoints.load_tokenizer(tiny)
    for tag in ("<step>", "<good>", "<bad>"):
        assert special_id(tokenizer, tag, "tag") == tokenizer.convert_tokens_to_ids(tag)
    for tag in ("ки", " ки", "<step> ", "\n\n\n", ""):
        with pytest.raises(EncodingError, match="exactly one of its tokens"):
            special_id(tokenizer, tag, "step tag")


def test_an_unknown_tag_is_refused():
    class Words:
        unk_token_id = 0

        def __call__(self, text, **_):
            return {"input_ids": [5 if text == "yes" else 0]}

    assert special_id(Words(), "yes", "tag") == 5
    with pytest.raises(EncodingError, match="'ки' is unknown to this tokenizer"):
        special_id(Words(), "ки", "tag")

"""A verifier's tags: the token where a score is read, and the two words of the score. Each is one token.

Models made here have `<step>`, `<good>` and `<bad>`. Public models have none of them. There

- the tag is a token that the tokenizer reserves for such uses (`<unused0>`, `<extra_0>`,
  `<|reserved_special_token_0|>`, ...), else `<step>` is added, and the embedding grows by a row that begins as the mean
  of the others;
- the words are `+` and `-`, as in Math-Shepherd (section 3.4), where each is one token.

A text that a user names is taken as it is. What was chosen is said, and stands in the verifier's card with its ids, so
that the trained checkpoint is read by plain transformers, or served by vLLM, without this module.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stepmark.errors import EncodingError
from stepmark.models import checkpoints
from stepmark.models.encoding import special_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

RESERVED = re.compile(
    r"<unused_?(\d+)>|<extra_(?:id_)?(\d+)>|<\|extra_(\d+)\|>|<\|?reserved(?:_special)?(?:_token)?_(\d+)\|?>|\[unused_?(\d+)\]"
    r"|<SPECIAL_(\d+)>|\[control_(\d+)\]|<\|placeholder_?(\d+)\|>"
)
WORDS = {checkpoints.GOOD: "+", checkpoints.BAD: "-"}


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags of a verifier on one checkpoint, and the tokenizer that knows them."""

    texts: Mapping[str, str]  # tag, good, bad -> its text
    ids: Mapping[str, int]  # tag, good, bad -> its token
    tokenizer: PreTrainedTokenizerBase
    chosen: str  # what was chosen in place of the usual texts, in words; "" if nothing was


def tags_of(path: str, trust_remote_code: bool, **texts: str) -> Tags:
    """The tags of a verifier that starts from, or is, the checkpoint at `path`. `texts`: tag, good, bad -> its text.

    Raises EncodingError for a text of several tokens, or two equal ids."""
    return _tags(path, checkpoints.version(path), trust_remote_code, tuple(texts.items()))


@lru_cache(maxsize=64)
def _tags(path: str, _version: int, trust_remote_code: bool, texts: tuple[tuple[str, str], ...]) -> Tags:
    tokenizer = checkpoints.load_tokenizer(path, trust_remote_code)
    vocab = tokenizer.get_vocab()
    found, chosen = dict(texts), list[str]()
    for name, text in texts:
        if text in vocab:
            continue
        if text == checkpoints.STEP:
            reserved = [token for token in vocab if RESERVED.fullmatch(token)]
            found[name] = min(reserved, key=lambda token: vocab[token], default=text)
            # On a copy, since all other uses of this checkpoint need its tokenizer unchanged. Special, so that the same
            # characters in a question or solution are not the tag.
            tokenizer = copy.deepcopy(tokenizer)
            _add(tokenizer, found[name])
            kind = "reserved" if reserved else "new"
            chosen.append(f"the tag is the {kind} token {found[name]!r}")
        elif text in WORDS and len(tokenizer(WORDS[text], add_special_tokens=False)["input_ids"]) == 1:
            found[name] = WORDS[text]
            chosen.append(f"{name} is {WORDS[text]!r}")
    ids = {name: special_id(tokenizer, text, name) for name, text in found.items()}
    if len(set(ids.values())) < len(ids):
        raise EncodingError(f"the tags {', '.join(f'{n} {t!r}' for n, t in found.items())} must be different tokens.")
    return Tags(found, ids, tokenizer, ", ".join(chosen))


def _add(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)], special_tokens=True)


def prepare(model: Any, tags: Tags, path: str) -> Any:
    """The model with a row of its embedding for each token of the tokenizer. Says which tags were chosen."""
    import torch

    if tags.chosen:
        log.warning("%s has no tokens for tags, so %s.", path, tags.chosen)
    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(tags.ids.values(), default=0) + 1
    model.tag_ids, model.grown = sorted(tags.ids.values()), needed > rows  # for LoRA, which freezes all other rows
    if needed <= rows:  # many embeddings have more rows than the tokenizer has tokens
        return model
    model.resize_token_embeddings(needed, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for layer in layers:
            if layer is not None and layer.weight.shape[0] == needed:
                layer.weight[rows:] = layer.weight[:rows].mean(0)
    return model

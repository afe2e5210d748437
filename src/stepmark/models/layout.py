"""How public verifiers want a question and its steps laid out as token ids, with the places where scores are read.

What families have in common is here, once: tags inserted as ids and never found by searching for them, texts of users
without the tag, conversations by the checkpoint's own chat template. Every layout has one place for each step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from stepmark.errors import EncodingError
from stepmark.models.encoding import Encoded, boundaries, special_id, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = str | int  # a text of the user, or the id of a tag; the place of a tag is where a score is read
Message = tuple[str, Sequence[Part]]  # role, content
SLOT = re.compile(r"stepmark-slot-(\d+)-")


def without(text: str, *tags: str) -> str:
    """`text` without the tags, also where removing one makes another. Blank tags can't be told from layout and stay."""
    for tag in filter(str.strip, tags):
        while tag in text:
            text = text.replace(tag, "")
    return text


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in the middle of others; texts of special tokens are plain characters."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def marked(tokenizer: PreTrainedTokenizerBase, context: str, steps: Sequence[str], between: str, tag: int) -> Encoded:
    """The text as a whole, then a tag after each step, as tokenizers that begin each text with a space need it."""
    text = context + between.join(steps)
    ids, spans = token_ids(tokenizer, text)
    ends = [len(context) + end for end in accumulate(len(s) + len(between) * (i > 0) for i, s in enumerate(steps))]
    joined, at, start = list[int](), list[int](), 0
    for end in boundaries(spans, ends):
        joined += [*ids[start:end], tag]
        at.append(len(joined) - 1)
        start = end
    return Encoded(tuple(joined), at=tuple(at))


def tagged(tokenizer: PreTrainedTokenizerBase, first: Sequence[int], steps: Sequence[str], tag: int) -> Encoded:
    """`first`, then the ids of each step by itself and a tag after it."""
    ids, at = list(first), list[int]()
    for step in steps:
        ids += [*plain_ids(tokenizer, step), tag]
        at.append(len(ids) - 1)
    return Encoded(tuple(ids), at=tuple(at))


def after_each(
    tokenizer: PreTrainedTokenizerBase, question: str, between: str, steps: Sequence[str], tag: str
) -> Encoded:
    """The question, `between`, and each step followed by the tag, which is white space: a new line in users' texts."""
    first, *others = [s.replace(tag, "\n") for s in steps]
    id = special_id(tokenizer, tag, "tag")
    before = token_ids(tokenizer, question.replace(tag, "\n") + between + first)[0]
    begun = Encoded((*before, id), at=(len(before),))
    rest = tagged(tokenizer, begun.ids, others, id)
    return Encoded(rest.ids, at=begun.at + rest.at)


def answered(tokenizer: PreTrainedTokenizerBase, system: str, question: str, steps: Sequence[str], tag: str) -> Encoded:
    """A conversation whose answer is the steps, each followed by the tag; without a system message if that is ""."""
    id = special_id(tokenizer, tag, "tag")
    answer = [part for step in steps for part in (without(step, tag), id)]
    messages: list[Message] = [("user", [without(question, tag)]), ("assistant", answer)]
    return conversation(tokenizer, [("system", [system])] * bool(system) + messages)


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Encoded:
    """A conversation by the checkpoint's own chat template, with a place at each tag.

    Raises EncodingError without a template, or with one that leaves out or refuses a message."""
    if not tokenizer.chat_template:
        raise EncodingError("this family reads a conversation, but the checkpoint's tokenizer has no chat template.")
    contents = [content for _, content in messages]
    slots = [{"role": role, "content": f"stepmark-slot-{i}-"} for i, (role, _) in enumerate(messages)]
    rendered = _render(tokenizer, slots)
    found = SLOT.split(rendered)  # text, number, text, number, ..., text
    if [int(n) for n in found[1::2]] != list(range(len(messages))):
        raise EncodingError("the checkpoint's chat template leaves out or repeats messages, so steps can't be placed.")
    trimmed = SLOT.sub("", _render(tokenizer, [{**m, "content": f" {m['content']} "} for m in slots])) == SLOT.sub(
        "", rendered
    )
    ids, at, pending = list[int](), list[int](), ""
    stream: list[tuple[str, bool] | int] = []  # text and whether the template's own, or the id of a tag
    for i, template in enumerate(found[::2]):
        stream.append((template, True))
        if i < len(messages):
            parts = [*contents[i]]
            if trimmed and len(parts) == 1 and isinstance(parts[0], str):
                parts = [parts[0].strip()]
            stream += [(part, False) if isinstance(part, str) else part for part in parts]
    for item in stream:
        if isinstance(item, int):
            ids += plain_ids(tokenizer, pending)
            pending = ""
            at.append(len(ids))
            ids.append(item)
            continue
        text, own = item
        for piece, special in _pieces(tokenizer, text) if own else ((text, None),):
            pending += piece if special is None else ""
            if special is not None:
                ids += plain_ids(tokenizer, pending)
                pending = ""
                ids.append(special)
    ids += plain_ids(tokenizer, pending)
    return Encoded(tuple(ids), at=tuple(at))


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        text: Any = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
    except TemplateError as e:
        raise EncodingError(f"the checkpoint's chat template refuses the conversation of this family: {e}") from e
    return str(text)


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[tuple[str, int | None]]:
    """The template's own text, cut at its special tokens: (text, None) or ("", id of a special token)."""
    special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    pattern = "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True))
    for piece in re.split(f"({pattern})", text) if pattern else [text]:
        if piece in special:
            yield "", special[piece]
        elif piece:
            yield piece, None

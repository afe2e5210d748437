"""Text -> token ids, in one place for sampling, training and scoring.

User text is encoded with special tokens taken literally: a solution that contains "<good>" or "<eos>" gets the ids of
those characters, never the id of the special token. Tags are inserted as ids, and joined text is never tokenised again.
This avoids three common errors: tags merged with text, double BOS, and different truncation in training and serving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stepmark.errors import BackendError, ConfigError, EncodingError
from stepmark.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BEFORE = 32  # last characters of a text that can change how the next text is tokenised
SHARED = 0.2  # share of an example that it must have in common with another to be joined with it
SLOT = "stepmark-question"  # stands for the question while a chat template is split


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence to train on or to score, or several sequences, one after the other, that must be in the same batch.

    T tokens in all, S positions where a score is read."""

    ids: tuple[int, ...]  # [T]
    at: tuple[int, ...] = ()  # [S] index into ids: the score is read from the model's output at this very index
    targets: tuple[float, ...] = ()  # [S] in [0, 1], or empty when the sequence is only scored
    weights: tuple[float, ...] = ()  # [T] weight of ids[t] in the next-token loss (predicted at t-1), or empty
    parts: tuple[int, ...] = ()  # rising indices where further sequences begin; a sequence does not see those before it
    after: tuple[int, ...] = ()  # of each such sequence, the index of the token that it continues; -1: none

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence in it: the number of positions that a model needs."""
        return max(max(positions, default=-1) for _, _, positions in self.sequences()) + 1

    def sequences(self) -> Iterator[tuple[int, int, range]]:
        """Of each sequence the index of its first token and after its last, and the positions of its tokens."""
        positions = list[int]()
        for k, (first, last) in enumerate(pairwise((0, *self.parts, len(self.ids)))):
            start = positions[self.after[k - 1]] + 1 if k and self.after and self.after[k - 1] >= 0 else 0
            yield first, last, range(start, start + last - first)
            positions += range(start, start + last - first)


def joint(members: Sequence[Encoded], learning: bool = False) -> Encoded:
    """Sequences as one. What several of them begin with is in it once, as in a tree. Scores are read for one after the
    other. With `learning` the weights of a token that is shared add up, so that it counts for each sequence; otherwise
    a token is shared only where its weights are equal."""
    ids, weights, parts, after = list[int](), list[float](), list[int](), list[int]()
    columns: dict[int, list[int]] = {}  # of each member's tokens
    before, path = Encoded(()), list[int]()
    for i in sorted(range(len(members)), key=lambda i: members[i].ids):
        new = members[i]
        alike = common(before, new, learning)
        if learning and new.weights:
            for t in range(alike):
                weights[path[t]] += new.weights[t]
        if len(new) > alike:
            if alike or ids:
                parts.append(len(ids))
                after.append(path[alike - 1] if alike else -1)
            path = [*path[:alike], *range(len(ids), len(ids) + len(new) - alike)]
            ids += new.ids[alike:]
            weights += new.weights[alike:]
            before = new
        columns[i] = path
    at = tuple(columns[i][t] for i, m in enumerate(members) for t in m.at)
    targets = tuple(y for m in members for y in m.targets)
    return Encoded(tuple(ids), at, targets, tuple(weights), tuple(parts), tuple(after))


def groups_to_learn(examples: Sequence[Encoded], most: int) -> list[list[int]]:
    """Indices of examples that begin alike, as solutions of a question do, to be made `joint` for learning: losses and
    gradients stay the same. A group has at most `most` tokens; an example that has parts is alone."""
    groups: list[list[int]] = [[i] for i, e in enumerate(examples) if e.parts]
    before, tokens = Encoded(()), 0
    for i in sorted((i for i, e in enumerate(examples) if not e.parts), key=lambda i: examples[i].ids):
        new = examples[i]
        alike = common(before, new, learning=True)
        if alike < max(1, SHARED * len(new)) or tokens + len(new) - alike > most:
            groups.append([])
            tokens, alike = 0, 0
        groups[-1].append(i)
        before, tokens = new, tokens + len(new) - alike
    return groups


def common(a: Encoded, b: Encoded, learning: bool = False) -> int:
    """Number of tokens with which both begin; but for `learning`, with equal weights."""
    if (a.weights or b.weights) and not learning:
        pairs = zip(zip(a.ids, a.weights, strict=True), zip(b.ids, b.weights, strict=True), strict=False)
        return next((t for t, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
    return next((t for t, (i, j) in enumerate(zip(a.ids, b.ids, strict=False)) if i != j), min(len(a), len(b)))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character spans of `text`. It begins as the tokenizer begins a text (with BOS or not) and has no EOS."""
    encoding = tokenizer(text, split_special_tokens=True, return_offsets_mapping=True, truncation=False)
    ids, spans = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    if (
        ids
        and tokenizer.eos_token_id is not None
        and ids[-1] == tokenizer.eos_token_id
        and spans[-1][0] == spans[-1][1]
    ):
        ids, spans = ids[:-1], spans[:-1]
    return ids, spans


def following_ids(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> tuple[int, ...]:
    """Ids of `text` after `before`. A tokenizer may treat the beginning of a text differently (add or drop a space).

    If a token covers the border of the two, the ids of `text` alone."""
    joint, prefix = token_ids(tokenizer, before + text)[0], token_ids(tokenizer, before)[0]
    if joint[: len(prefix)] == prefix and len(joint) > len(prefix):
        return tuple(joint[len(prefix) :])
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def choice_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], choices: Sequence[str]
) -> list[list[tuple[int, ...]]]:
    """For each text, the ids of each choice after it. Raises ConfigError for an empty choice."""
    if not choices or not all(choices):
        raise ConfigError(f"choices must be texts of at least one token each, got {list(choices)}.")
    tails = [text[-BEFORE:] for text in texts]
    by_tail = {tail: [following_ids(tokenizer, tail, c) for c in choices] for tail in dict.fromkeys(tails)}
    return [by_tail[tail] for tail in tails]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat: bool) -> tuple[int, ...]:
    """The ids to continue. With `chat`, the context is the user's turn, and the prefix begins the assistant's turn.

    Raises BackendError for an empty prompt that no token can begin, or without a chat template."""
    if not chat:
        ids = token_ids(tokenizer, prompt.text)[0]
        if not ids:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is None:
                raise BackendError(f"prompt {prompt.id!r} is empty, and the tokenizer has no BOS or EOS token.")
            ids = [int(start)]
        return tuple(ids)
    if not tokenizer.chat_template:
        raise BackendError("chat_template=True, but the checkpoint's tokenizer has no template. Leave the option off.")

    def rendered(content: str) -> str:
        messages = [{"role": "user", "content": content}]
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text)

    def ids_of(text: str, literal: bool) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"])

    # The template adds its own special tokens, BOS included. All text around SLOT belongs to the template.
    before, slot, after = rendered(SLOT).partition(SLOT)
    if not slot:
        raise BackendError("the checkpoint's chat template leaves out the user's message, so it can't hold a question.")
    special = set(tokenizer.all_special_ids)
    head, tail = ids_of(before, False), ids_of(after, False)
    joint = ids_of(rendered(prompt.context) + prompt.prefix, False)
    if sum(i in special for i in joint) == sum(i in special for i in (*head, *tail)):
        return tuple(joint)
    # The question or the solution contains the text of a special token, which must stay plain characters.
    return (*head, *ids_of(prompt.context.strip(), True), *tail, *ids_of(prompt.prefix, True))


def boundaries(spans: Sequence[tuple[int, int]], cuts: Sequence[int]) -> list[int]:
    """For each character position in `cuts` (rising), the number of tokens that cover the text before it.

    A token across a cut belongs to the part before it, so a tag after it never comes before the step's end."""
    counts, t = [], 0
    for cut in cuts:
        while t < len(spans) and spans[t][0] < cut:
            t += 1
        counts.append(t)
    return counts


def special_id(tokenizer: PreTrainedTokenizerBase, text: str, what: str) -> int:
    """The single id of a tag. Raises EncodingError when the tag is several tokens, or unknown."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        problem = "unknown to" if len(ids) == 1 else f"{len(ids)} tokens for"
        raise EncodingError(
            f"the {what} {text!r} is {problem} this tokenizer; it must be exactly one of its tokens. "
            "Choose a text that is one token, or add it to the tokenizer's special tokens."
        )
    return int(ids[0])

"""Reads a question and its steps from one text in which a tag follows each step, as in Math-Shepherd's data.

The text has no mark between the question and the solution, so the solution begins at its first "Step 1:". A tag in the
question is no tag. A text that breaks these rules is described, with the place, and never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text, taken apart."""

    question: str
    steps: list[str]  # without the white space around them
    places: list[int]  # where in the text the tag of each step stands
    plain: bool  # whether each tag follows a space, and each step but the first a new line


def find(tag: str, text: str, start: int) -> int:
    """Where the next tag stands: before white space or the end, and after white space if it is a word, so that a word
    that ends in it is no tag. -1 if there is none."""
    word, size = tag[:1].isalnum(), len(tag)
    while (at := text.find(tag, start)) >= 0:
        start = at + size
        if (start == len(text) or text[start].isspace()) and not (word and at and not text[at - 1].isspace()):
            break
    return at


def boundary(text: str, mark: str) -> int:
    """The place where the solution begins: at the first `mark` that begins a word; -1 if there is none."""
    start = text.find(mark)
    while start > 0 and not text[start - 1].isspace():
        start = text.find(mark, start + 1)
    return start


def taken_apart(text: str, tag: str, mark: str) -> Tagged | str:
    """The text, taken apart; or what is wrong with it."""
    return plain(text, tag, mark) or read(text, tag, mark)


def read(text: str, tag: str, mark: str) -> Tagged | str:
    """As `taken_apart`, tag by tag."""
    start = boundary(text, mark)
    if start < 0:
        return f"no {mark!r}, where the solution would begin"
    question = text[:start].strip()
    if not question:
        return f"no question before {mark!r}"
    steps, places, at, plain = list[str](), list[int](), start, len(question) + 1 == start
    while (place := find(tag, text, at)) >= 0:
        piece = text[at:place]
        step = piece.strip()
        if not step:
            return f"no step before tag {len(places) + 1} (character {place})"
        # A new line before the step, but for the first one, and a space after it
        plain = plain and piece == (f"\n{step} " if places else f"{step} ")
        steps.append(step)
        places.append(place)
        at = place + len(tag)
    if not places:
        return f"no tag {tag!r} after {mark!r}"
    if text[at:].strip():
        return f"text after the last tag (character {at}): {text[at:].strip()[:40]!r}"
    second = steps[0].find(mark, 1)
    if second > 0:
        return f"{mark!r} stands twice before the first tag (characters {start} and {start + second})"
    return Tagged(question, steps, places, plain and at == len(text))


def plain(text: str, tag: str, mark: str) -> Tagged | None:
    """As `read`, and several times as fast, for a text in which each tag follows a space, and each step but the first a
    new line, as nearly all do; None for any other, and where `read` would find something wrong."""
    start, gap, last = text.find(mark), f" {tag}\n", f" {tag}"
    if start < 2 or text[start - 1] != " " or not text.endswith(last):
        return None
    question, steps = text[: start - 1], text[start : -len(last)].split(gap)
    if question.isspace() or text.count(tag, start) != len(steps) or steps[0].find(mark, 1) > 0:
        return None
    if question[0].isspace() or question[-1].isspace():
        return None
    places, at = [], start
    for step in steps:
        if not step or step[0].isspace() or step[-1].isspace():
            return None
        at += len(step) + 1
        places.append(at)
        at += len(tag) + 1
    return Tagged(question, steps, places, True)


def differ(text: str, labels: str, places: list[int], tag: str, signs: dict[str, bool]) -> list[bool] | str:
    """The sign at each tag's place in `labels`, the same text with a sign in place of each tag; or where they
    differ."""
    found, at, end = [], 0, 0
    for i, place in enumerate(places, 1):
        piece = text[end:place]
        if not labels.startswith(piece, at):
            return _where(piece, labels, at, f"before tag {i} of {len(places)}")
        at += len(piece)
        sign = signs.get(labels[at : at + 1])
        if sign is None:
            return (
                f"{labels[at : at + 1]!r} at tag {i} of {len(places)} (character {at} of the labels); it can be + or -"
            )
        found.append(sign)
        at, end = at + 1, place + len(tag)
    if labels[at:].strip() != text[end:].strip():
        return _where(text[end:], labels, at, f"after tag {len(places)}, the last one")
    return found


def _where(piece: str, labels: str, at: int, where: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(piece, labels[at:], strict=False)) if a != b), len(labels) - at)
    return (
        f"the texts differ {where} (character {at + same} of the labels): {piece[same : same + 20]!r} and "
        f"{labels[at + same : at + same + 20]!r}"
    )


def contains(tag: str, *texts: str) -> bool:
    """Whether a tag would be found in one of the texts."""
    return any(tag in text and find(tag, f" {text} ", 0) >= 0 for text in texts)


def write(question: str, steps: list[str], signs: list[str]) -> str:
    """The text with a sign after each step; the steps are on lines of their own."""
    return f"{question} " + "\n".join([f"{step} {sign}" for step, sign in zip(steps, signs, strict=True)])

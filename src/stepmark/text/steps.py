"""Splits a text into steps without losing a character.

A split is a list of consecutive [start, end) spans that cover the text. White space between two steps belongs to the
step before it. So `"".join(text[a:b] for a, b in spans) == text` always holds, no step is blank, and a text that ends
in separators does not end in an empty step.

A way to split is a pattern, or a function that gives the places where steps begin: put it into SPLITTERS under a name.
"thought" is for reasoning traces, whose paragraphs are many and short: it joins them to steps of about 600 characters,
or as many as "thought:1200" says. The answer after </think> begins a step of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from stepmark.errors import ConfigError, UnknownName

Splitter = re.Pattern[str] | Callable[[str], Iterable[int]]  # a step begins at the end of each match, or at each place
TARGET = 600  # characters of a step of a thought
_THOUGHT = re.compile(r"thought:([1-9]\d{0,6})")
# After . ! ? and an optional closing mark, before a character that can begin a sentence; or at a new line.
_SENTENCE = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))[ \t]+(?=[\"'(\[$]?[A-Z0-9])|\n\s*")
_BOUNDARY = re.compile(rf"</think(?:ing)?>\s*|{_SENTENCE.pattern}")


def by_length(target: int) -> Callable[[str], Iterator[int]]:
    """A splitter into paragraphs, which are joined until a step has at least `target` characters. A paragraph that
    makes a step twice as long is cut at a line or a sentence. The places up to any step don't depend on the text after
    it, so a continued prefix is split in the same way. Raises ConfigError for a target below 1."""
    if target < 1:
        raise ConfigError(f"a step needs a target length of at least 1 character, got {target}.")

    def places(text: str) -> Iterator[int]:
        last = 0
        for m in _BOUNDARY.finditer(text):
            found, length = m.group(), m.start() - last
            paragraph = found.count("\n") > 1
            if found.startswith("<") or length >= (target if paragraph else 2 * target):
                last = m.end()
                yield last

    return places


class _Splitters(dict[str, Splitter]):
    """The ways to split by name. "thought" may have a target length: "thought:1200"."""

    def __missing__(self, name: str) -> Splitter:
        m = _THOUGHT.fullmatch(name)
        if m is None:
            raise KeyError(name)
        return by_length(int(m[1]))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and _THOUGHT.fullmatch(name) is not None)


SPLITTERS = _Splitters(
    {
        "line": re.compile(r"\n\s*"),
        "paragraph": re.compile(r"\n[ \t]*\n\s*"),
        "sentence": _SENTENCE,
        "numbered": re.compile(r"(?<!\s)\s+(?=Step \d+\s*[:.])"),
        "thought": by_length(TARGET),
    }
)


def split(text: str, how: str = "line") -> tuple[tuple[int, int], ...]:
    """Spans of the steps of `text`; no spans for a blank text. Raises UnknownName for an unknown `how`."""
    if how not in SPLITTERS:
        raise UnknownName("way to split steps", how, SPLITTERS)
    if not text.strip():
        return ()
    cuts, last = [0], len(text.rstrip())
    splitter = SPLITTERS[how]
    for place in splitter(text) if callable(splitter) else (m.end() for m in splitter.finditer(text)):
        if place < last and text[cuts[-1] : place].strip():
            cuts.append(place)
    return tuple(zip(cuts, [*cuts[1:], len(text)], strict=True))


def prefixes(text: str, spans: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """For each step, the text up to the end of the step."""
    return tuple(text[:end] for _, end in spans)

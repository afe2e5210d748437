"""Splits a text into steps without losing a character.

A split is a list of consecutive [start, end) spans that cover the text. White space between two steps belongs to the
step before it. So `"".join(text[a:b] for a, b in spans) == text` always holds, no step is blank, and a text that ends
in separators does not end in an empty step.

    steps: sentence                 # a rule by its name, in a recipe
    steps: thought:1200             # for reasoning traces: paragraphs, joined to steps of about 1,200 characters
    steps: 're:;[ ]'                # a rule of your own: a step begins after each match of this regular expression

"thought" alone joins to about 600 characters; the answer after </think> begins a step of its own. A rule is a pattern,
or a function that gives the places where steps begin: put it into SPLITTERS under a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from stepmark.errors import ConfigError, UnknownName

Splitter = re.Pattern[str] | Callable[[str], Iterable[int]]  # a step begins at the end of each match, or at each place
OWN = "re:"  # begins a rule of the user's own; its regular expression follows
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


SPLITTERS: dict[str, Splitter] = {
    "line": re.compile(r"\n\s*"),
    "paragraph": re.compile(r"\n[ \t]*\n\s*"),
    "sentence": _SENTENCE,
    "numbered": re.compile(r"(?<!\s)\s+(?=Step \d+\s*[:.])"),
    "thought": by_length(TARGET),
}


def splitter(how: str) -> Splitter:
    """The rule of a name from SPLITTERS, of "thought:" and a target length, or of "re:" and a regular expression.

    Raises UnknownName for another name, ConfigError for an expression with a fault."""
    if how.startswith(OWN):
        try:
            return re.compile(how[len(OWN) :])
        except (re.error, OverflowError, RecursionError) as e:
            raise ConfigError(f"steps is {how!r}, and what follows {OWN} is no regular expression: {e}.") from e
    if (thought := _THOUGHT.fullmatch(how)) is not None:
        return by_length(int(thought[1]))
    if how not in SPLITTERS:
        hint = f"A regular expression after whose matches steps begin works too: '{OWN};\\s'"
        raise UnknownName("way to split steps", how, SPLITTERS, hint)
    return SPLITTERS[how]


def split(text: str, how: str = "line") -> tuple[tuple[int, int], ...]:
    """Spans of the steps of `text`; no spans for a blank text. `how` is a rule as `splitter` takes it, and raises what
    that raises."""
    rule = splitter(how)
    if not text.strip():
        return ()
    cuts, last = [0], len(text.rstrip())
    for place in rule(text) if callable(rule) else (m.end() for m in rule.finditer(text)):
        end = max(place, cuts[-1])
        while end < last and text[end].isspace():
            end += 1
        if end < last and text[cuts[-1] : end].strip():
            cuts.append(end)
    return tuple(zip(cuts, [*cuts[1:], len(text)], strict=True))


def prefixes(text: str, spans: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """For each step, the text up to the end of the step."""
    return tuple(text[:end] for _, end in spans)

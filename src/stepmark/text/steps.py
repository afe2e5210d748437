"""Splits a text into steps without losing a character.

A split is a list of consecutive [start, end) spans that cover the text. White space between two steps belongs to the
step before it. So `"".join(text[a:b] for a, b in spans) == text` always holds, no step is blank, and a text that ends
in separators does not end in an empty step.
"""

from __future__ import annotations

import re

from stepmark.errors import UnknownName

# A step begins at the end of each match.
SPLITTERS: dict[str, re.Pattern[str]] = {
    "line": re.compile(r"\n\s*"),
    "paragraph": re.compile(r"\n[ \t]*\n\s*"),
    # After . ! ? and an optional closing mark, before a character that can begin a sentence; or at a new line.
    "sentence": re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))[ \t]+(?=[\"'(\[$]?[A-Z0-9])|\n\s*"),
    "numbered": re.compile(r"(?<!\s)\s+(?=Step \d+\s*[:.])"),
}


def split(text: str, how: str = "line") -> tuple[tuple[int, int], ...]:
    """Spans of the steps of `text`; no spans for a blank text. Raises UnknownName for an unknown `how`."""
    if how not in SPLITTERS:
        raise UnknownName("way to split steps", how, SPLITTERS)
    if not text.strip():
        return ()
    cuts, last = [0], len(text.rstrip())
    for m in SPLITTERS[how].finditer(text):
        if m.end() < last and text[cuts[-1] : m.end()].strip():
            cuts.append(m.end())
    return tuple(zip(cuts, [*cuts[1:], len(text)], strict=True))


def prefixes(text: str, spans: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """For each step, the text up to the end of the step."""
    return tuple(text[:end] for _, end in spans)

"""Splits a text into steps without losing a character.

A split is a list of consecutive [start, end) spans that cover the text. White space between two steps belongs to the
step before it. So `"".join(text[a:b] for a, b in spans) == text` always holds, no step is blank, and a text that ends
in separators does not end in an empty step.

    steps: sentence                 # a rule by its name, in a recipe
    steps: 're:;[ ]'                # a rule of your own: a step begins after each match of this regular expression
"""

from __future__ import annotations

import re

from stepmark.errors import ConfigError, UnknownName

# A step begins at the end of each match.
SPLITTERS: dict[str, re.Pattern[str]] = {
    "line": re.compile(r"\n\s*"),
    "paragraph": re.compile(r"\n[ \t]*\n\s*"),
    # After . ! ? and an optional closing mark, before a character that can begin a sentence; or at a new line.
    "sentence": re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))[ \t]+(?=[\"'(\[$]?[A-Z0-9])|\n\s*"),
    "numbered": re.compile(r"(?<!\s)\s+(?=Step \d+\s*[:.])"),
}
OWN = "re:"  # begins a rule of the user's own; its regular expression follows


def splitter(how: str) -> re.Pattern[str]:
    """The pattern of a rule: a name from SPLITTERS, or "re:" and a regular expression. Raises UnknownName for another
    name, ConfigError for an expression with a fault."""
    if how.startswith(OWN):
        try:
            return re.compile(how[len(OWN) :])
        except (re.error, OverflowError, RecursionError) as e:
            raise ConfigError(f"steps is {how!r}, and what follows {OWN} is no regular expression: {e}.") from e
    if how not in SPLITTERS:
        hint = f"A regular expression after whose matches steps begin works too: '{OWN};\\s'"
        raise UnknownName("way to split steps", how, SPLITTERS, hint)
    return SPLITTERS[how]


def split(text: str, how: str = "line") -> tuple[tuple[int, int], ...]:
    """Spans of the steps of `text`; no spans for a blank text. `how` is a rule as `splitter` takes it, and raises what
    that raises."""
    pattern = splitter(how)
    if not text.strip():
        return ()
    cuts, last = [0], len(text.rstrip())
    for m in pattern.finditer(text):
        end = max(m.end(), cuts[-1])
        while end < last and text[end].isspace():
            end += 1
        if end < last and text[cuts[-1] : end].strip():
            cuts.append(end)
    return tuple(zip(cuts, [*cuts[1:], len(text)], strict=True))


def prefixes(text: str, spans: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """For each step, the text up to the end of the step."""
    return tuple(text[:end] for _, end in spans)

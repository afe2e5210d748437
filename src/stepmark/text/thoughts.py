"""Reasoning traces: what a model thought, between <think> and </think>, and what it answered after that.

The opening tag may be missing, since many chat templates write it at the end of the prompt. Then everything before
</think> is the thought. Several thoughts count as one up to the last </think>. A thought that is not closed was cut
off: its text has no answer, whatever numbers are in it. An opening tag counts at the beginning of a line only, so that
words about tags open no thought.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
_OPEN = re.compile(r"^[ \t]*<think(?:ing)?>", re.MULTILINE)
_CLOSE = re.compile(r"</think(?:ing)?>")


def answer_of(text: str) -> str | None:
    """The part of a text after its thought; the whole text where it has none; None for a thought that is not closed."""
    rest = text[after_thought(text) :]
    return None if _OPEN.search(rest) else rest


def after_thought(text: str) -> int:
    """The place after the last closing tag; 0 without one."""
    start = max(text.rfind(CLOSE), text.rfind("</thinking>"))
    found = _CLOSE.match(text, start) if start >= 0 else None
    return found.end() if found else 0


def joined(thought: str, answer: str, cut: bool = False) -> str:
    """A thought and an answer that a server keeps apart (`reasoning_content`), as one text. `cut`: the text ran out of
    tokens; without an answer its thought is then not closed. Without a thought the answer as it is."""
    if not thought:
        return answer
    if cut and not answer:
        return f"{OPEN}\n{thought}"
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{answer.lstrip()}"

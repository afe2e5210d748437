"""How a question becomes the text that a model continues or a verifier reads.

A template is plain text with `{question}` in it. It is filled by replacement, not by str.format, so a
question that contains braces, or `{question}` itself, stays what it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from stepmark.errors import ConfigError
from stepmark.types import Problem

SLOT = "{question}"
# How a generative verifier is asked, and where its score is read: at the token after this (GenRM, section 3).
VERDICT = "Is the answer correct (Yes/No)?"
YES, NO = " Yes", " No"


@dataclass(frozen=True, slots=True)
class Template:
    """Renders a problem's question. Raises ConfigError when `text` has not exactly one `{question}`."""

    text: str = "{question}\n"

    def __post_init__(self) -> None:
        if self.text.count(SLOT) != 1:
            raise ConfigError(
                f"prompt template {self.text!r} has {self.text.count(SLOT)} places {SLOT!r}; it needs exactly one."
            )

    def __call__(self, problem: Problem) -> str:
        return self.render(problem.question)

    def render(self, question: str) -> str:
        return self.text.replace(SLOT, question)

    def read(self, text: str) -> str | None:
        """The question of which `text` is the rendering; None where it is none of any."""
        before, _, after = self.text.partition(SLOT)
        fits = len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)
        return text[len(before) : len(text) - len(after)] if fits else None

    @property
    def hash(self) -> str:
        """Short fingerprint, kept in verifier.json so that a changed template is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

"""Prompt templates: they turn a question into the text that a model continues or a verifier reads.

A template is plain text that contains `{question}`. It is filled by replacement, not by str.format, so a question
that contains braces, or `{question}` itself, is not changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from stepmark.errors import ConfigError
from stepmark.types import Problem

SLOT = "{question}"
# The question that a generative verifier answers. Its score is read at the next token (GenRM, section 3).
VERDICT = "Is the answer correct (Yes/No)?"
YES, NO = " Yes", " No"


@dataclass(frozen=True, slots=True)
class Template:
    """Renders a problem's question. Raises ConfigError unless `text` has exactly one `{question}`."""

    text: str = "{question}\n"

    def __post_init__(self) -> None:
        if self.text.count(SLOT) != 1:
            raise ConfigError(
                f"prompt template {self.text!r} contains {SLOT!r} {self.text.count(SLOT)} times; it needs exactly one."
            )

    def __call__(self, problem: Problem) -> str:
        return self.render(problem.question)

    def render(self, question: str) -> str:
        return self.text.replace(SLOT, question)

    def read(self, text: str) -> str | None:
        """The question whose rendering is `text`; None if `text` is no rendering of this template."""
        before, _, after = self.text.partition(SLOT)
        fits = len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)
        return text[len(before) : len(text) - len(after)] if fits else None

    @property
    def hash(self) -> str:
        """A short hash, stored in verifier.json so that a changed template is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

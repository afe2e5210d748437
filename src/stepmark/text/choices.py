r"""Answers of multiple-choice questions: a letter ("C"), the content ("7"), or both (`\textbf{(C)}\ 7`, "C. 7").

A letter with content is one answer with two parts. If one part is the same and the other is not, the answer contradicts
the reference and itself, so nobody can say which part is meant: UNGRADABLE.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stepmark.text import answers
from stepmark.types import Verdict

_LONE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(?([A-Z])\)?|([A-Z])[.:])")
_BOTH = re.compile(r"(?:\(([A-Z])\)|([A-Z])[).:](?=\s))\s*(?!\s*(?:[+*/^_!(=<>]|-\s))(\S.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is left to compare when the letters have been read."""

    verdict: Verdict | None  # None: the letters decide nothing; compare the two answers below
    stated: str  # the stated answer, without its letter if only this side has one
    reference: str  # the reference, without its letter if only this side has one


def split(answer: str) -> tuple[str, str] | None:
    """The letter of a choice and its content, which may be ""; None if the answer has no letter of a choice."""
    plain = answers.plain(answer[: answers.MAX_ANSWER])
    if lone := _LONE.fullmatch(plain):
        return lone[1] or lone[2], ""
    if both := _BOTH.fullmatch(plain):
        return both[1] or both[2], both[3]
    return None


def compare(stated: str, reference: str) -> Comparison:
    """Compares the letters of two answers, and their contents if these are written alike."""
    ours, theirs = split(stated), split(reference)
    if ours is None and theirs is None:
        return Comparison(None, stated, reference)
    if ours is None or theirs is None:
        return Comparison(None, (ours and ours[1]) or stated, (theirs and theirs[1]) or reference)
    contents = [answers.normalise(content) for _, content in (ours, theirs)]
    same_content = contents[0] == contents[1]
    if ours[0] == theirs[0]:
        return Comparison(
            Verdict.CORRECT if same_content or not all(contents) else Verdict.UNGRADABLE, stated, reference
        )
    return Comparison(Verdict.UNGRADABLE if same_content and all(contents) else Verdict.INCORRECT, stated, reference)

"""Percentages against plain numbers: "25%" is 0.25, and where a task asks for a percentage it is also written 25."""

from __future__ import annotations

from stepmark.text import answers
from stepmark.types import Verdict


def compare(stated: str, reference: str, question: str) -> Verdict | None:
    """CORRECT if one side has a percent sign and both give one value; None if this decides nothing.

    "25%" equals 0.25 and 25. In a question that speaks of percentages, 0.25 may also mean a quarter of one percent, so
    "25%" against 0.25 is UNGRADABLE there."""
    if not any("%" in answer or "percent" in answer for answer in (stated, reference)):
        return None
    percent = ["%" in answers.plain(answer[: answers.MAX_ANSWER]) for answer in (stated, reference)]
    values = [answers.parse_number(answer) for answer in (stated, reference)]
    if percent[0] == percent[1] or values[0] is None or values[1] is None:
        return None
    if values[0] == values[1]:
        return Verdict.CORRECT
    share, other = (values[0], values[1]) if percent[0] else (values[1], values[0])
    if share / 100 != other:
        return None
    return Verdict.UNGRADABLE if "%" in question or "percent" in question.casefold() else Verdict.CORRECT

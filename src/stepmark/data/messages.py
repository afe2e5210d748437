"""Reads the text of chat messages: `{"role": ..., "content": ...}`, whose content is a text or a list of text parts."""

from __future__ import annotations

from collections.abc import Mapping


def text_of(content: object) -> str | None:
    """The text of a message's content. None where it has none, or has parts that are no text, such as images."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [p if isinstance(p, str) else p.get("text") if isinstance(p, Mapping) else None for p in content]
    return "".join(parts) if parts and all(isinstance(p, str) for p in parts) else None  # type: ignore[arg-type]


def said(value: object, role: str) -> str | None:
    """A text, or the only message of `role` in a list of messages; None for anything else. System messages are passed
    over, so a list of more than one turn is None."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return None
    turns = [m for m in value if isinstance(m, Mapping) and m.get("role") != "system"]
    if len(turns) != 1 or turns[0].get("role") != role:
        return None
    return text_of(turns[0].get("content"))


def asked(value: object) -> str | None:
    """The question: a text, or the only message of the user among messages; None for anything else."""
    return said(value, "user")


def has_system(value: object) -> bool:
    """Whether messages have one of the system, which `said` passes over."""
    return isinstance(value, list) and any(isinstance(m, Mapping) and m.get("role") == "system" for m in value)

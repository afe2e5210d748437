"""An agent's messages as a solution: each of its turns is a step.

    attempt = read([{"role": "user", ...}, {"role": "assistant", "tool_calls": [...]}, {"role": "tool", ...}, ...])
    solution = attempt.solution("a", "a#0")

Messages are those of OpenAI's chat API. What comes before the first assistant message is the question. Each assistant
message begins a step; the tools' results and the user's messages after it belong to the same step, since they are what
the turn led to. So labelers and verifiers read a trajectory like any other solution, and a rollout from a step's end
goes on with the agent's next turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepmark.errors import DataError
from stepmark.types import Finish, Solution

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The messages of an agent as text."""

    question: str  # the messages before the first turn; several are labelled by their roles
    text: str  # all turns with what they led to
    spans: tuple[tuple[int, int], ...]  # one [start, end) per turn, in order; together they cover the text
    turns: tuple[int, ...]  # of each step, the index of its assistant message

    def solution(self, problem_id: str, id: str, sample: int = 0, finish: Finish = Finish.STOP) -> Solution:
        """It as a solution of the problem."""
        return Solution(id, problem_id, sample, self.text, self.spans, finish)


def read(messages: Sequence[Message], thoughts: bool = False) -> Trajectory:
    """The trajectory of these messages. `thoughts` puts a turn's `reasoning_content` (or `reasoning`) before its words.

    Raises DataError for messages without an assistant's turn, and for a message that is none."""
    roles = [_role(message, i) for i, message in enumerate(messages)]
    if "assistant" not in roles:
        raise DataError(f"no message of the assistant among {len(messages)} messages, so there is no step in them.")
    first = roles.index("assistant")
    asked = [(role, content(m)) for role, m in zip(roles[:first], messages, strict=False)]
    question = asked[0][1] if len(asked) == 1 else "\n".join(f"{role}: {words}" for role, words in asked)
    parts, turns = list[str](), list[int]()
    for i in range(first, len(messages)):
        if roles[i] == "assistant":
            parts.append("")
            turns.append(i)
        parts[-1] += _shown(roles[i], messages[i], thoughts)
    spans, start = list[tuple[int, int]](), 0
    for part in parts:
        spans.append((start, start + len(part)))
        start += len(part)
    return Trajectory(question, "".join(parts), tuple(spans), tuple(turns))


def content(message: Message) -> str:
    """The words of a message, which may come in blocks."""
    words = message.get("content") or ""
    if isinstance(words, str):
        return words
    return "".join(str(block.get("text") or "") if isinstance(block, Mapping) else str(block) for block in words)


def thought(message: Message) -> str:
    """What the message's model thought before its words, where the server keeps it apart; "" for nothing."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def _role(message: Message, i: int) -> str:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f"message {i} is no object with a role: {str(message)[:100]!r}.")
    return str(message["role"])


def _shown(role: str, message: Message, thoughts: bool) -> str:
    """The lines of a message. An empty turn still has a line: no step is blank."""
    words = content(message).strip()
    if role != "assistant":
        name = f" of {message['name']}" if message.get("name") else ""
        return f"{'Result' if role in ('tool', 'function') else role.capitalize()}{name}: {words}\n"
    lines = [thought(message).strip()] if thoughts and thought(message).strip() else []
    lines += [words] if words else []
    lines += [f"Call: {_call(call)}" for call in message.get("tool_calls") or ()]
    return "\n".join(lines or ["(nothing)"]) + "\n"


def _call(call: Any) -> str:
    """A call as name(arguments), with the arguments as they were written: they may be no JSON."""
    function = _field(call, "function") or call
    arguments = _field(function, "arguments")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
    return f"{_field(function, 'name')}({written})"


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)

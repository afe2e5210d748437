"""Format `openai_batch`: results of OpenAI's batch interface, which vLLM's run-batch writes too.

    {"custom_id": "q1", "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "..."}}]}}}

A result does not repeat its question: `requests` is the file of requests, whose rows have the same `custom_id`. Their
questions are held in memory.

    stepmark convert results.jsonl --to completions rows.jsonl --option requests=batch.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from stepmark.data import exchange, rows
from stepmark.data.messages import asked, has_system, text_of
from stepmark.errors import DataError
from stepmark.types import Finish, Imported, Place, Problem, Quarantined

FIELDS = (rows.Field("custom_id", rows.ID_LIMIT),)


@dataclass(frozen=True)
class OpenAIBatch:
    """Reads the format."""

    requests: str = ""  # file of the requests, with the questions
    steps: str = "line"  # how solutions divide into steps

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"custom_id", "response"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem and its solutions. Raises DataError without the file of requests."""
        if not self.requests:
            raise DataError(
                f"{path}: results of a batch do not have the questions. Give the file of the requests: requests=FILE."
            )
        questions, bad = dict[str, tuple[str, bool]](), list[Quarantined]()
        for row in rows.read(self.requests, FIELDS, id_field="custom_id"):
            found = row if isinstance(row, Quarantined) else _asked(row)
            if isinstance(found, Quarantined):
                bad.append(found)
            else:
                questions[row.text["custom_id"]] = found  # type: ignore[union-attr]
        yield from bad
        yield from exchange.each(path, FIELDS, partial(self._make, questions=questions), id_field="custom_id")

    def _make(self, row: rows.Row, questions: Mapping[str, tuple[str, bool]]) -> exchange.Made:
        id = row.text["custom_id"]
        if id not in questions:
            return f"{self.requests} has no usable request {id!r}"
        response: Any = row.values.get("response") or {}
        body = response.get("body") if isinstance(response, Mapping) else None
        choices = body.get("choices") if isinstance(body, Mapping) else None
        if not isinstance(choices, list) or not choices:
            return f"it has no choices: {str(row.values.get('error') or response)[:80]}"
        question, system = questions[id]
        texts = []
        for i, choice in enumerate(choices, 1):
            if not isinstance(choice, Mapping):
                return f"choice {i} of {len(choices)} is no object but {choice!r:.40}"
            message = choice.get("message")
            text = text_of(message.get("content") if isinstance(message, Mapping) else choice.get("text"))
            if fault := exchange.fault_of_text(text):
                return f"choice {i} of {len(choices)}: {fault}"
            finish = Finish.LENGTH if choice.get("finish_reason") == "length" else Finish.STOP
            texts.append(exchange.Text(str(text), finish=finish))
        problem = Problem(id, question, "", "")
        more: dict[str, object] = {"system message": True} if system else {}
        return exchange.several(problem, texts, range(len(texts)), self.steps, more)


def _asked(row: rows.Row) -> tuple[str, bool] | Quarantined:
    """The question of a request, and whether a system message came before it."""
    body: Any = row.values.get("body")
    given = body.get("messages", body.get("prompt")) if isinstance(body, Mapping) else None
    question = asked(given)
    if fault := exchange.fault_of_steps([question]):
        return Quarantined(row.file, row.line, f"field 'body': one message of the user is needed: {fault}")
    return str(question), has_system(given)

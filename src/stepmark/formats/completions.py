"""Format `completions`: questions with solutions that some model wrote, as scripts around vLLM and others keep them.

    {"question": "...", "completions": ["...", "..."], "answer": "4", "correct": [true, false]}
    {"prompt": "...", "outputs": [{"text": "...", "finish_reason": "stop", "token_ids": [1, 2]}]}

The question may be called question, prompt or problem; the solutions completions, solutions, outputs, responses, or, a
single text, completion, solution, response. One that ended for want of tokens (`finish_reason: length`) is truncated.
`answer`, `correct` and `id` may be absent; without `correct` the run's grader grades.

    stepmark run mine.yaml sample.train.file=outputs.jsonl sample.train.format=completions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from stepmark.data import exchange, rows
from stepmark.data.messages import asked, has_system, text_of
from stepmark.types import Finish, Imported, Place, Problem, Quarantined, Verdict

QUESTIONS = ("question", "prompt", "problem")
TEXTS = ("completions", "solutions", "outputs", "responses", "completion", "solution", "response")
BESIDE = ("finish_reason", "tokens", "logprob")  # lists beside the texts, with one value for each
FIELDS = (
    rows.Field("answer", 10_000, required=False, number=True),
    rows.Field("id", rows.ID_LIMIT, required=False, number=True),
)


@dataclass(frozen=True)
class Completions:
    """Reads and writes the format."""

    steps: str = "line"  # how solutions divide into steps
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.ANSWERS, exchange.GRADES, exchange.IDS, exchange.SAMPLING})
    groups: ClassVar[bool] = True  # solutions of one problem belong together

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        texts = [row[name] for name in TEXTS if row.get(name) is not None]
        known = any(name in row for name in QUESTIONS) and len(texts) == 1 and not {"labels", "level"} & set(row)
        known = known and not {"prompt", "completion"} <= set(row)  # TRL's
        items = texts[0] if known and isinstance(texts[0], list) else []
        return known and not any(isinstance(x, Mapping) and "sample_id" in x for x in items)  # those are GenRM's

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem and its solutions, with grades where the row has them."""
        return exchange.each(path, FIELDS, partial(self._make, numbers=exchange.Numbering()), split=self.split)

    def _make(self, row: rows.Row, numbers: exchange.Numbering) -> exchange.Made:
        names = [[name for name in among if row.values.get(name) not in (None, "")] for among in (QUESTIONS, TEXTS)]
        if any(len(found) != 1 for found in names):
            got = ", ".join(repr(name) for found in names for name in found) or "none of them"
            return f"needs one field of {', '.join(QUESTIONS)} and one of {', '.join(TEXTS)}; got {got}"
        [question_name], [texts_name] = names
        prompt = row.values[question_name]
        question = asked(exchange.listed(prompt) or prompt)
        if fault := exchange.fault_of_steps([question]):
            return f"field {question_name!r}: a text, or the message of a user, is needed: {fault}"
        value = row.values[texts_name]
        listed = exchange.listed(value) if not texts_name.endswith(("n", "e")) else None
        items = [value] if listed is None else listed
        flag = row.values.get("correct")
        given = exchange.listed(flag)
        flags = [flag] * len(items) if given is None else given
        if not items or len(flags) != len(items):
            return f"{len(items)} solutions and {len(flags)} flags in 'correct'"
        beside = {name: exchange.listed(row.values.get(name)) for name in BESIDE}
        if short := next((name for name, x in beside.items() if x is not None and len(x) != len(items)), None):
            return f"{len(items)} solutions, and another number of values in {short!r}"
        texts = []
        for i, (item, flag) in enumerate(zip(items, flags, strict=True), 1):
            about = {name: x[i - 1] for name, x in beside.items() if x is not None}
            text = _text(item, flag, about)
            if isinstance(text, str):
                return f"field {texts_name!r}, item {i} of {len(items)}: {text}"
            texts.append(text)
        problem = Problem(row.text["id"] or exchange.question_id(str(question)), str(question), row.text["answer"], "")
        more = exchange.extra(row, question_name, texts_name, "answer", "id", "correct", *BESIDE)
        more |= {"system message": True} if has_system(prompt) else {}
        return exchange.several(problem, texts, numbers.take(problem.id, len(texts)), self.steps, more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each problem."""
        p, grades = imported.problem, {g.solution_id: g.grade for g in imported.grades}
        if not imported.solutions:
            lost["problems left out: they have no solution"] += 1
            return
        verdicts = [grades[s.id].verdict if s.id in grades else Verdict.UNGRADABLE for s in imported.solutions]
        correct = [None if v is Verdict.UNGRADABLE else v is Verdict.CORRECT for v in verdicts]
        listed = imported.solutions
        ends, tokens = [s.finish.value for s in listed], [s.tokens for s in listed]
        logprobs = [s.logprob for s in listed]
        yield {
            "id": p.id,
            "question": p.question,
            "completions": [s.text for s in listed],
            "answer": p.answer or None,
            "correct": correct if any(c is not None for c in correct) else None,
            "finish_reason": ends if any(s.finish is not Finish.STOP for s in listed) else None,
            "tokens": tokens if any(tokens) else None,
            "logprob": logprobs if any(logprobs) else None,
        }


def _text(item: object, flag: object, about: Mapping[str, object]) -> exchange.Text | str:
    """A solution; or what is wrong with it. `about` has what the row says of it beside its text."""
    text = text_of(item)
    if isinstance(item, Mapping):
        message = item.get("message")
        content = message.get("content") if isinstance(message, Mapping) else item.get("content")
        text, about = text_of(item.get("text", content)), {**about, **item}
    if text is None:
        return f"a text is needed, got {item!r:.60}"
    if fault := exchange.fault_of_text(text):
        return fault
    grade = exchange.grade_of(text, flag)
    if isinstance(grade, str):
        return grade
    finish = Finish.LENGTH if about.get("finish_reason") in ("length", "max_tokens") else Finish.STOP
    ids, count = about.get("token_ids"), about.get("tokens")
    tokens = len(ids) if isinstance(ids, list) else count if isinstance(count, int) else 0
    logprob = about.get("logprob", about.get("cumulative_logprob"))
    return exchange.Text(text, grade, finish, tokens, float(logprob) if isinstance(logprob, int | float) else 0.0)

"""Format `lm_eval`: the samples that lm-evaluation-harness writes with --log_samples, a JSON line for each question.

    {"doc_id": 0, "doc": {...}, "target": "...", "resps": [["text", ...]], "filtered_resps": [...], "filter": "none"}

`resps` are the solutions. The question is a field of `doc`, and the answer is `target`; of GSM8K's worked targets what
follows "####". A metric is a grade where `metric` names it, since "right" means another thing in each task. A file has
the rows of a question once for each filter, with the same solutions: those of the first filter are read.

    stepmark run mine.yaml sample.train.file=samples_gsm8k.jsonl sample.train.format=lm_eval
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from stepmark.data import exchange, rows
from stepmark.types import Imported, Place, Problem, Quarantined

QUESTIONS = ("question", "problem", "prompt", "query", "input")
USED = ("doc_id", "doc", "target", "resps", "filter", "arguments", "filtered_resps")
HASHES = ("doc_hash", "prompt_hash", "target_hash")  # they say nothing new


@dataclass(frozen=True)
class LMEval:
    """Reads the format."""

    steps: str = "line"  # how solutions divide into steps
    question: str = ""  # field of `doc` with the question; "" is the first there is of question, problem, prompt, ...
    answer: str = ""  # field of `doc` with the reference answer; "" is `target`
    metric: str = ""  # metric that says whether the only solution of a row is right, as exact_match; "" is none
    filter: str = ""  # filter whose rows are read; "" is that of the first row

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"doc", "target", "resps"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem and its solutions."""
        first: list[object] = [self.filter] if self.filter else []
        return exchange.each(path, (), partial(self._make, numbers=exchange.Numbering(), first=first))

    def _make(self, row: rows.Row, numbers: exchange.Numbering, first: list[object]) -> exchange.Made:
        name = row.values.get("filter")
        if not first:
            first.append(name)
        if name != first[0]:
            return f"it is of the filter {name!r}, and those of {first[0]!r} are read (option filter)"
        doc, resps = row.values.get("doc"), exchange.listed(row.values.get("resps"))
        if not isinstance(doc, Mapping) or not resps:
            return "fields 'doc', an object, and 'resps', a list that is not empty, are needed"
        if len(resps) != 1:
            return f"{len(resps)} requests for one question, as of a choice between answers: these are no solutions"
        question = self._question(doc)
        answer = doc.get(self.answer) if self.answer else row.values.get("target")
        if question is None:
            return f"'doc' has no field {self.question or ', '.join(QUESTIONS)} with a text; it has {', '.join(doc)}"
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        if not isinstance(answer, str):
            return f"the reference answer is no text but {answer!r:.60} (option answer)"
        texts = resps[0] if isinstance(resps[0], list) else [resps[0]]
        if fault := exchange.fault_of_steps([question]):
            return f"the question: {fault}"
        if fault := next(filter(None, map(exchange.fault_of_text, texts)), ""):
            return f"field 'resps': {fault}"
        flag = row.values.get(self.metric) if self.metric and len(texts) == 1 else None
        found = []
        for text in map(str, texts):
            grade = exchange.grade_of(text, flag)
            if isinstance(grade, str):
                return f"field {self.metric!r}: {grade}"
            found.append(exchange.Text(text, grade))
        id = exchange.question_id(question)
        problem = Problem(id, question, answer.rpartition("####")[2].strip(), "")
        more = exchange.extra(row, *USED, *HASHES, *([self.metric] if self.metric else ()))
        return exchange.several(problem, found, numbers.take(id, len(found)), self.steps, more)

    def _question(self, doc: Mapping[str, Any]) -> str | None:
        names = (self.question,) if self.question else QUESTIONS
        return next((doc[name] for name in names if isinstance(doc.get(name), str)), None)

"""Format `prm800k`: people's ratings of steps (Lightman et al., arXiv 2305.20050), rows of `question` and `label`.

Each step has completions with a rating, 1, 0 or -1, and the one that was chosen leads on; a person may have written it.
The chosen ones are a solution. Where none was chosen, the only completion is the last step, and several end the
solution before them. The others are alternatives: with `alternatives=true` each is the last step of a solution of its
own, whose steps before it have no label, so that each rating counts once.

    stepmark convert phase2_train.jsonl --to stepwise rows.jsonl --option neutral=wrong
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from stepmark.data import exchange, rows
from stepmark.types import Imported, LabelledSolution, Place, Quarantined, Solution, StepLabel

Rated = tuple[str, StepLabel]


@dataclass(frozen=True)
class PRM800K:
    """Reads and writes the format."""

    neutral: Literal["right", "wrong", "none"] = "right"  # what a rating of 0 is; none: the step has no label
    alternatives: bool = False  # whether completions that were not chosen are read too
    separator: str = "\n"  # what stands between two steps of a solution's text
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS, exchange.ANSWERS, exchange.REFERENCES})
    also: ClassVar[tuple[str, ...]] = ("label.finish_reason",)
    alone: ClassVar[bool] = True  # each row is read by itself, so that parts of a file can be

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        question, label = row.get("question"), row.get("label")
        return isinstance(question, Mapping) and "problem" in question and isinstance(label, Mapping)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, the chosen solution and its step labels; maybe the alternatives."""
        return exchange.each(path, (), self._make, split=self.split)

    def _make(self, row: rows.Row) -> exchange.Made:
        question, label = row.values.get("question"), row.values.get("label")
        if not isinstance(question, Mapping) or not isinstance(label, Mapping):
            return "the fields 'question' and 'label', both objects, are needed"
        problem, steps = question.get("problem"), label.get("steps")
        if fault := exchange.fault_of_steps([problem]):
            return f"field 'question.problem': {fault}"
        if not isinstance(steps, list):
            return "field 'label.steps': a list is needed"
        more = exchange.extra(row, "question", "label")
        known = ("problem", "ground_truth_answer", "ground_truth_solution")
        more |= {f"question.{k}": v for k, v in question.items() if k not in known and v not in (None, [], "")}
        more |= {f"label.{k}": v for k, v in label.items() if k != "steps" and v is not None}
        chosen, others = list[Rated](), list[list[Rated]]()
        for i, step in enumerate(steps, 1):
            found = self._step(step, more)
            if isinstance(found, str):
                return f"step {i} of {len(steps)}: {found}"
            here, beside = found
            others += [[*((text, exchange.NONE) for text, _ in chosen), other] for other in beside]
            if here is None:
                if i < len(steps):
                    return f"step {i} of {len(steps)}: none of its completions was chosen, and yet steps follow"
                break
            chosen.append(here)
        if not chosen and not (self.alternatives and others):
            return "no step has a chosen completion"
        return self._imported(row, str(problem), question, chosen, others, more)

    def _step(self, step: object, more: dict[str, object]) -> tuple[Rated | None, list[Rated]] | str:
        """The completion that leads on, if any, and the others; or what is wrong with the step."""
        if not isinstance(step, Mapping):
            return f"an object is needed, got {step!r:.40}"
        listed, human, at = step.get("completions") or [], step.get("human_completion"), step.get("chosen_completion")
        if not isinstance(listed, list):
            return f"field 'completions': a list is needed, got {listed!r:.40}"
        rated = [self._rated(c, more) for c in listed]
        if fault := next((r for r in rated if isinstance(r, str)), None):
            return fault
        good: list[Rated] = rated  # type: ignore[assignment]
        if at is not None:
            if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(good):
                return f"chosen_completion is {at!r}, and there are {len(good)} completions"
            return good[at], good[:at] + good[at + 1 :]
        if human is not None:
            written = self._rated({"text": human} if isinstance(human, str) else human, more)
            return written if isinstance(written, str) else (written, good)
        return (good[0], []) if len(good) == 1 else (None, good)

    def _rated(self, completion: object, more: dict[str, object]) -> Rated | str:
        if not isinstance(completion, Mapping):
            return f"a completion is no object but {completion!r:.40}"
        if fault := exchange.fault_of_steps([completion.get("text")]):
            return f"a completion's text: {fault}"
        if completion.get("flagged"):
            more["flagged completions"] = True
        rating = completion.get("rating")
        if isinstance(rating, bool) or not isinstance(rating, int | float | None) or rating not in (1, 0, -1, None):
            return f"a completion's rating is {rating!r:.40}; it can be 1, 0, -1 or null"
        if rating == 0:
            more[f"ratings of 0 (read as {self.neutral})"] = True
        if rating is None:
            return completion["text"], exchange.NONE
        labels = {1: exchange.RIGHT, -1: exchange.WRONG, 0: self._neutral()}
        return completion["text"], labels[int(rating)]

    def _neutral(self) -> StepLabel:
        return {"right": exchange.RIGHT, "wrong": exchange.WRONG, "none": exchange.NONE}[self.neutral]

    def _imported(
        self,
        row: rows.Row,
        text: str,
        question: Mapping[str, Any],
        chosen: Sequence[Rated],
        others: Sequence[Sequence[Rated]],
        more: dict[str, object],
    ) -> exchange.Made:
        answer, reference = question.get("ground_truth_answer"), question.get("ground_truth_solution")
        if others and not self.alternatives:
            more["alternative completions"] = len(others)
        paths = [p for p in (chosen, *(others if self.alternatives else ())) if p]
        made = [
            exchange.imported(
                row,
                text,
                [step for step, _ in path],
                tuple(label for _, label in path),
                separator=self.separator,
                answer=answer if isinstance(answer, str) else "",
                more=more,
            )
            for path in paths
        ]
        first = made[0]
        problem = replace(first.problem, reference=reference if isinstance(reference, str) else "")
        if len(made) == 1:
            return replace(first, problem=problem)
        labelled = tuple(_numbered(x.labels[0], row.line, i) for i, x in enumerate(made))
        return Imported(problem, tuple(x.solution for x in labelled), labels=labelled, extra=more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution with labels; a step without one has the rating null."""
        p = imported.problem
        lost[exchange.UNLABELLED] += len(imported.solutions) - len(imported.labels)
        for x in imported.labels:
            texts = exchange.pieces(x.solution, self.separator, lost)
            ratings = [(1 if label.correct else -1) if label.known else None for label in x.labels]
            steps = [
                {
                    "completions": [{"text": text, "rating": rating, "flagged": False}],
                    "human_completion": None,
                    "chosen_completion": 0,
                }
                for text, rating in zip(texts, ratings, strict=True)
            ]
            reason = imported.extra.get("label.finish_reason") or ("found_error" if -1 in ratings else "solution")
            question = {
                "problem": p.question,
                "ground_truth_solution": p.reference or None,
                "ground_truth_answer": p.answer or None,
            }
            yield {"question": question, "label": {"steps": steps, "finish_reason": reason}}


def _numbered(x: LabelledSolution, line: int, i: int) -> LabelledSolution:
    s = x.solution
    number = line * 1000 + i  # a row has fewer alternatives than this
    return replace(x, solution=Solution(f"{s.problem_id}#{number}", s.problem_id, number, s.text, s.spans))

"""Rationales: written verifications of solutions, as training data for generative verifiers. Steps get no labels.

GenRM (Zhang et al., arXiv 2408.15240, section 3.2 and appendix A). The `source` says who writes a rationale:

- oracle: the task's own `rationale` method, from the question and the solution; the grade gives the verdict;
- unguided: a judge that sees the question and the solution;
- reference: a judge that also sees the first of the problem's correct worked solutions. A verifier never sees one, so
  `leak` says what to do with a rationale that mentions it: "drop", "rewrite" or "keep" (text/rationales.py).

A rationale is kept if its verdict agrees with the grade of the solution. The others are stored as lost with a reason,
and counted. The rules:

- A solution that is empty or ungradable gets no rationale, because its verdict could not be checked. If a problem has
  no worked solution, source "reference" sends no prompt, and the rationales are lost with the reason "unasked".
- A solution may claim that it is correct, and a judge may quote that. So verdicts are read from the judge's own words
  only, and the judge sees the solution without such claims (text/sanitize.py).
- At temperature 0 all n rationales would be equal, so n > 1 needs a higher temperature (the default is then 1).

    stepmark label --labeler rationale --labeler-option source=unguided --judge model/ --solutions S.jsonl --out R.jsonl
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from stepmark.errors import ConfigError
from stepmark.evaluation import evidence
from stepmark.protocols import Tools
from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.text.rationales import judged
from stepmark.text.sanitize import sanitize_text
from stepmark.types import (
    Finish,
    Grade,
    LabelledSolution,
    Prompt,
    Rationale,
    Rollout,
    SamplingParams,
    StepLabel,
    Unlabelled,
    Verdict,
)

PROMPTS = {
    "unguided": f"""Check a solution of a problem, step by step.

Problem:
{{question}}

Solution:
{{solution}}

Say of each step whether it is correct, and of an incorrect one what is wrong with it. End with one line, \
"{VERDICT}{YES}" or "{VERDICT}{NO}".
""",
    "reference": f"""Check a solution of a problem, step by step.

Problem:
{{question}}

A correct solution, for your eyes only:
{{reference}}

Solution to check:
{{solution}}

Say of each step whether it is correct, and of an incorrect one what is wrong with it. Write as somebody who works \
everything out alone: never mention the correct solution above, or an expected answer. End with one line, \
"{VERDICT}{YES}" or "{VERDICT}{NO}".
""",
}
SLOT = re.compile(r"\{(question|solution|reference)\}")
NO_REFERENCE = "no correct worked solution of the problem is known"


@dataclass(frozen=True, slots=True)
class Rationales:
    """The labeler. Raises ConfigError for a prompt without its slots, and for settings out of range."""

    # who writes: the task itself, a model, or a model that sees a correct solution
    source: Literal["oracle", "unguided", "reference"] = "reference"
    n: int = 1  # rationales per solution
    # A text with one {question} and one {solution}, and for source="reference" one {reference}. "" means the default
    # prompt of the source
    prompt: str = ""
    temperature: float | None = None  # null: 0 for one rationale, 1 for several
    max_tokens: int = 1024  # of a rationale
    stop: Sequence[str] = ()  # a rationale ends before the first of these. The task's stop texts are not used
    leak: Literal["drop", "rewrite", "keep"] = "rewrite"  # what to do with a rationale that mentions the reference

    def __post_init__(self) -> None:
        faults = []
        if self.n < 1:
            faults.append(f"rationale: n must be at least 1, got {self.n}.")
        if self.max_tokens < 1:
            faults.append(f"rationale: max_tokens must be at least 1, got {self.max_tokens}.")
        if self.temperature is not None and self.temperature < 0:
            faults.append(f"rationale: temperature must be at least 0, got {self.temperature}.")
        if isinstance(self.stop, str):
            faults.append(f"rationale: stop must be a list of texts, got the text {self.stop!r}.")
        if self.source == "oracle":
            if self.n > 1:
                faults.append(f"rationale: the oracle writes one rationale per solution, but n is {self.n}; give 1.")
            if self.prompt:
                faults.append("rationale: the oracle takes no prompt; leave prompt out, or use another source.")
        else:
            if self.temperature == 0 and self.n > 1:
                faults.append(f"rationale: at temperature 0 all {self.n} are the same one; raise it, or set n=1.")
            count = Counter(SLOT.findall(self.prompt))
            references = int(self.source == "reference")
            if self.prompt and not (count["question"] == count["solution"] == 1 and count["reference"] == references):
                slots = ", ".join(f"{n} of {{{slot}}}" for slot, n in sorted(count.items())) or "none of them"
                required = f"one {{question}}, one {{solution}} and {'one' if references else 'no'} {{reference}}"
                faults.append(f"rationale: a prompt for source={self.source} must have {required}; this has {slots}.")
        if faults:
            raise ConfigError(faults)

    @property
    def uses(self) -> frozenset[str]:
        """The task's oracle, or a judge with or without references."""
        needs = {"oracle": {"oracle"}, "unguided": {"judge"}, "reference": {"judge", "references"}}
        return frozenset(needs[self.source])

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Sends the prompts of all units to the judge in one call. Yields a solution as soon as all its rationales are
        written."""
        grades = evidence.grades(units, tools)
        pairs = list(zip(units, grades, strict=True))
        by_id = {unit.solution.id: (unit, grade) for unit, grade in pairs}
        todo = [pair for pair in pairs if _checkable(*pair)]
        written = self._from_oracle(todo, tools) if self.source == "oracle" else self._from_judge(todo, tools)
        unwritten = ((unit.solution.id, ()) for unit, grade in pairs if not _checkable(unit, grade))
        for id, rationales in chain[tuple[str, tuple[Rationale, ...]]](unwritten, written):
            unit, grade = by_id[id]
            no_labels = (StepLabel(0, 0, source="none"),) * len(unit.solution.spans)
            yield LabelledSolution(unit.solution, grade, no_labels, rationales)

    def demonstrations(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[tuple[str, str]]:
        """Pairs to train a judge on: the judge's prompt for a unit, and the rationale that the task writes for it.
        No pairs with source="oracle", which has no judge. Raises ConfigError if the task has no `rationale`."""
        if self.source == "oracle":
            return
        graded = zip(units, evidence.grades(units, tools), strict=True)
        rationales = dict(self._from_oracle([pair for pair in graded if _checkable(*pair)], tools))
        for unit in units:
            for rationale in rationales.get(unit.solution.id, ()):
                if rationale.kept and (unit.references or self.source != "reference"):
                    yield self._render(unit), rationale.text

    # ---- written by the task ----

    def _from_oracle(
        self, todo: Sequence[tuple[Unlabelled, Grade]], tools: Tools
    ) -> Iterator[tuple[str, tuple[Rationale, ...]]]:
        if tools.oracle is None:
            raise ConfigError(
                "rationale: source=oracle needs a task with a `rationale` method, and this task has none; use "
                "source=unguided or source=reference, with a judge."
            )
        for unit, grade in todo:
            text = f"{tools.oracle(unit.problem, unit.solution)}\n{VERDICT}{YES if grade.correct else NO}"
            yield unit.solution.id, (judged(text, grade.correct, self.source, leak="keep"),)

    # ---- written by a judge ----

    def _from_judge(
        self, todo: Sequence[tuple[Unlabelled, Grade]], tools: Tools
    ) -> Iterator[tuple[str, tuple[Rationale, ...]]]:
        judge = evidence.need_judge(tools)
        params = self._params(tools)
        prompts = {
            unit.solution.id: Prompt(self._name(unit, params), self._render(unit), n=self.n)
            for unit, _ in todo
            if unit.references or self.source != "reference"
        }
        unasked = (Rationale(NO_REFERENCE, "unparsed", self.source, "unasked"),) * self.n
        grades = {unit.solution.id: grade for unit, grade in todo}
        for id, answers in evidence.answered(judge, prompts, params, grades):
            written = tuple(self._read(r, grades[id]) for r in sorted(answers, key=lambda r: r.index))
            yield id, written if id in prompts else unasked

    def _read(self, rollout: Rollout, grade: Grade) -> Rationale:
        text = rollout.reason if rollout.finish is Finish.FAILED else rollout.text
        return judged(text, grade.correct, self.source, leak=self.leak, finish=rollout.finish)

    def _params(self, tools: Tools) -> SamplingParams:
        temperature = float(self.n > 1) if self.temperature is None else self.temperature
        return replace(
            tools.params, max_tokens=self.max_tokens, temperature=temperature, top_p=1.0, stop=tuple(self.stop)
        )

    @property
    def _template(self) -> str:
        return self.prompt or PROMPTS[self.source]

    def _name(self, unit: Unlabelled, params: SamplingParams) -> str:
        """The prompt's id. It has a hash of the prompt and the sampling settings, so that a ledger never returns
        answers that were given to another prompt."""
        request = repr((self._template, params.max_tokens, params.temperature, params.stop))
        return f"{unit.solution.id}@rationale-{hashlib.sha256(request.encode()).hexdigest()[:8]}"

    def _render(self, unit: Unlabelled) -> str:
        fill = {
            "question": unit.problem.question,
            "solution": sanitize_text(unit.solution.text).strip("\n"),
            "reference": next(iter(unit.references), ""),
        }
        return SLOT.sub(lambda slot: fill[slot[1]], self._template)


def _checkable(unit: Unlabelled, grade: Grade) -> bool:
    """Whether a verdict on the solution can be checked: it is graded and not empty."""
    return grade.verdict is not Verdict.UNGRADABLE and bool(unit.solution.text.strip())

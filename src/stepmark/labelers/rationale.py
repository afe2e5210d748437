"""Written verifications of solutions, from which generative verifiers learn; steps get no labels.

GenRM (Zhang et al., arXiv 2408.15240, section 3.2 and appendix A). Who writes is the `source`:

- oracle: the task's own `rationale`, which works from the question and the solution; the grade is the verdict;
- unguided: a judge that sees the question and the solution;
- reference: a judge that also sees a correct worked solution, the first of the problem's. A verifier at work has none,
  so `leak` says what becomes of a rationale that leans on it (text/rationales.py): "drop", "rewrite" or "keep" it.

A rationale is kept if its verdict is what the grader says of the solution. Those that are lost stay with the reason,
to be counted. What is decided here:

- A solution that can't be graded, or is empty, gets none: no verdict on it could be checked. Without a worked solution
  of its problem, source "reference" asks nobody, and its rationales are lost as unasked.
- A solution may say itself that it is correct, and a judge may quote that. Verdicts are read from the judge's words
  alone, and it is shown the solution without such claims (text/sanitize.py).
- With a temperature of 0 all n rationales would be the same one, so that n > 1 asks for more.

    stepmark label --labeler rationale --labeler-option source=unguided --judge model/ --solutions S.jsonl --out R.jsonl
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    """The labeller. Raises ConfigError for a prompt without its slots, and for settings out of range."""

    source: Literal["oracle", "unguided", "reference"] = "reference"
    n: int = 1  # rationales for each solution
    # Text with one {question} and one {solution}, and for source="reference" one {reference}. "" takes the source's own
    prompt: str = ""
    temperature: float | None = None  # null is 0 for one rationale and 1 for several
    max_tokens: int = 1024  # of a rationale
    stop: Sequence[str] = ()  # a rationale ends before the first of these; the task's own are for solutions
    leak: Literal["drop", "rewrite", "keep"] = "rewrite"  # what becomes of one that leans on a reference

    def __post_init__(self) -> None:
        faults = []
        if self.n < 1:
            faults.append(f"rationale: n must be at least 1, got {self.n}.")
        if self.max_tokens < 1:
            faults.append(f"rationale: max_tokens must be at least 1, got {self.max_tokens}.")
        if self.temperature is not None and self.temperature < 0:
            faults.append(f"rationale: temperature must be at least 0, got {self.temperature}.")
        if isinstance(self.stop, str):
            faults.append(f"rationale: stop is a list of texts, got the text {self.stop!r}.")
        if self.source == "oracle":
            if self.n > 1:
                faults.append(f"rationale: the oracle writes one rationale for each solution; n is {self.n}, give 1.")
            if self.prompt:
                faults.append("rationale: the oracle isn't asked in words; leave prompt out, or take another source.")
        else:
            if self.temperature == 0 and self.n > 1:
                faults.append(f"rationale: at temperature 0 all {self.n} are the same one; give n=1 or a higher one.")
            count = Counter(SLOT.findall(self.prompt))
            guided = int(self.source == "reference")
            if self.prompt and not (count["question"] == count["solution"] == 1 and count["reference"] == guided):
                had = ", ".join(f"{n} of {{{slot}}}" for slot, n in sorted(count.items())) or "none of them"
                need = f"one {{question}}, one {{solution}} and {'one' if guided else 'no'} {{reference}}"
                faults.append(f"rationale: a prompt for source={self.source} has {need}; this has {had}.")
        if faults:
            raise ConfigError(faults)

    @property
    def uses(self) -> frozenset[str]:
        """The task's oracle, or a judge, with references or without."""
        needs = {"oracle": {"oracle"}, "unguided": {"judge"}, "reference": {"judge", "references"}}
        return frozenset(needs[self.source])

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """The prompts of all units go to the judge together."""
        grades = evidence.grades(units, tools)
        pairs = list(zip(units, grades, strict=True))
        todo = [pair for pair in pairs if _checkable(*pair)]
        written = self._recited(todo, tools) if self.source == "oracle" else self._drawn(todo, tools)
        for unit, grade in pairs:
            nothing = (StepLabel(0, 0, source="none"),) * len(unit.solution.spans)
            yield LabelledSolution(unit.solution, grade, nothing, written.get(unit.solution.id, ()))

    def demonstrations(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[tuple[str, str]]:
        """What a judge would be asked about each unit, and what the task itself writes of it, for a judge to learn.
        Nothing where no judge is asked. Raises ConfigError where the task can't write."""
        if self.source == "oracle":
            return
        graded = zip(units, evidence.grades(units, tools), strict=True)
        said = self._recited([pair for pair in graded if _checkable(*pair)], tools)
        for unit in units:
            for rationale in said.get(unit.solution.id, ()):
                if rationale.kept and (unit.references or self.source != "reference"):
                    yield self._render(unit), rationale.text

    # ---- by the task ----

    def _recited(self, todo: Sequence[tuple[Unlabelled, Grade]], tools: Tools) -> dict[str, tuple[Rationale, ...]]:
        if tools.oracle is None:
            raise ConfigError(
                "rationale: source=oracle lets the task write, and this one has no `rationale`; take source=unguided "
                "or source=reference, with a judge."
            )
        found = dict[str, tuple[Rationale, ...]]()
        for unit, grade in todo:
            text = f"{tools.oracle(unit.problem, unit.solution)}\n{VERDICT}{YES if grade.correct else NO}"
            found[unit.solution.id] = (judged(text, grade.correct, self.source, leak="keep"),)
        return found

    # ---- by a judge ----

    def _drawn(self, todo: Sequence[tuple[Unlabelled, Grade]], tools: Tools) -> dict[str, tuple[Rationale, ...]]:
        judge = evidence.need_judge(tools)
        params = self._params(tools)
        prompts = {
            unit.solution.id: Prompt(self._name(unit, params), self._render(unit), n=self.n)
            for unit, _ in todo
            if unit.references or self.source != "reference"
        }
        by_name = {prompt.id: key for key, prompt in prompts.items()}
        said: dict[str, list[Rollout]] = {key: [] for key in prompts}
        for rollout in judge.sample(list(prompts.values()), params) if prompts else ():
            said[by_name[rollout.prompt_id]].append(rollout)
        missing = (Rationale(NO_REFERENCE, "unparsed", self.source, "unasked"),) * self.n
        return {
            unit.solution.id: tuple(
                self._judged(r, grade) for r in sorted(said[unit.solution.id], key=lambda r: r.index)
            )
            if unit.solution.id in said
            else missing
            for unit, grade in todo
        }

    def _judged(self, rollout: Rollout, grade: Grade) -> Rationale:
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
        """Names the answers, by what was asked too: a judge that is asked otherwise has other answers."""
        asked = repr((self._template, params.max_tokens, params.temperature, params.stop))
        return f"{unit.solution.id}@rationale-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def _render(self, unit: Unlabelled) -> str:
        fill = {
            "question": unit.problem.question,
            "solution": sanitize_text(unit.solution.text).strip("\n"),
            "reference": next(iter(unit.references), ""),
        }
        return SLOT.sub(lambda slot: fill[slot[1]], self._template)


def _checkable(unit: Unlabelled, grade: Grade) -> bool:
    """Whether a verdict on it could be checked."""
    return grade.verdict is not Verdict.UNGRADABLE and bool(unit.solution.text.strip())

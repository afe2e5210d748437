"""Step labels by a judge: a prompted language model says which steps of a solution are correct.

LLM-as-a-judge as in ProcessBench (arXiv 2412.06559) and in the consensus filter of Qwen's PRM lessons (arXiv
2501.07301). One prompt shows the whole solution with numbered steps. Each of `votes` answers is one vote on all steps.
The rules:

- format="each" reads lines "Step 2: correct" or "Step 2: incorrect" (markdown and case don't matter). format="first"
  reads a line "First wrong step: 2" or "First wrong step: none". Verdicts are read from the judge's answer only, so a
  verdict in the solution's text has no effect. The last verdict on a step counts, since a judge may reason first. Any
  other text, such as "not correct" or a step number that does not exist, is not a verdict.
- A vote without a verdict on a step counts as ungradable for that step. A vote that ran out of tokens counts as
  truncated for all steps.
- The label is the verdict of the majority, and a tie counts as correct. All verdicts are counted as the majority's,
  so that a hard label means the majority and not "any vote". `keep_votes` keeps the counts as cast, for soft labels.
  The sources are "judge" for one vote, and "judge+majority" or "judge+votes" for several.
- With format="first", or with `first_error_only`, all steps after the first wrong one are labelled wrong (source
  "inferred:earlier_error"), whatever the votes on them are.
- The last step is judged like the others, not labelled by the solution's grade. A judge sees no reference answer,
  unless the prompt has a {reference}; with the outcome as a label it could not be compared with other labelers.

    stepmark label --labeler judge --labeler-option votes=5 --judge model/ --solutions S.jsonl --out L.jsonl
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
from stepmark.types import Finish, LabelledSolution, Prompt, Rollout, SamplingParams, StepLabel, Unlabelled

PROMPTS = {
    "each": """Check a solution of a problem, step by step.

Problem:
{question}

Solution:
{steps}

A step is incorrect if it has a mistake, or builds on a mistake made before it. End with one line for each step, \
"Step 1: correct" or "Step 1: incorrect", and so on.
""",
    "first": """Check a solution of a problem, step by step.

Problem:
{question}

Solution:
{steps}

Find the first step that has a mistake. End with one line, "First wrong step:" and its number, or \
"First wrong step: none".
""",
}
SLOT = re.compile(r"\{(question|steps|reference)\}")
_MARKS = r"[\s*_`#>|.:()\[\]=–—-]*"
_END = rf"(?={_MARKS}$|[\s*_`\])]*[.,;:!(–—-])"  # the verdict must end here: a following word could negate it
_EACH = re.compile(
    rf"{_MARKS}step{_MARKS}(\d{{1,6}}){_MARKS}(?:is\b{_MARKS})?"
    rf"(correct(?!.*\b(?:incorrect|wrong)\b)|incorrect)\b{_END}",
    re.IGNORECASE | re.ASCII,
)
_FIRST = re.compile(
    rf"{_MARKS}(?:the\s+)?first\s+(?:wrong|incorrect)\s+step{_MARKS}(?:is\b{_MARKS})?(?:step\b{_MARKS})?"
    rf"(none|(?<!-)\d{{1,6}})\b{_END}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Judge:
    """The labeler. Raises ConfigError for a prompt without its slots, and for settings out of range."""

    votes: int = 1  # sampled answers per solution
    format: Literal["each", "first"] = "each"  # a verdict on each step, or the number of the first wrong step
    # A text with one {question}, one {steps} and at most one {reference}. {reference} is the first of the problem's
    # correct worked solutions; if a problem has none, its steps stay unknown. "" means the default prompt of the format
    prompt: str = ""
    first_error_only: bool = False  # with format="each": all steps after the first wrong one are labelled wrong
    keep_votes: bool = False  # store the counts as cast, not all votes as the majority's verdict
    temperature: float | None = None  # null: 0 for one vote, 1 for several
    max_tokens: int = 1024  # of an answer
    stop: Sequence[str] = ()  # an answer ends before the first of these. The task's stop texts are not used

    def __post_init__(self) -> None:
        faults = []
        if self.votes < 1:
            faults.append(f"judge: votes must be at least 1, got {self.votes}.")
        if self.max_tokens < 1:
            faults.append(f"judge: max_tokens must be at least 1, got {self.max_tokens}.")
        if self.temperature is not None and self.temperature < 0:
            faults.append(f"judge: temperature must be at least 0, got {self.temperature}.")
        if self.temperature == 0 and self.votes > 1:
            faults.append(f"judge: at temperature 0 all {self.votes} votes are the same one; raise it, or set votes=1.")
        if isinstance(self.stop, str):
            faults.append(f"judge: stop must be a list of texts, got the text {self.stop!r}.")
        count = Counter(SLOT.findall(self.prompt))
        if self.prompt and not (count["question"] == count["steps"] == 1 and count["reference"] <= 1):
            slots = ", ".join(f"{n} of {{{slot}}}" for slot, n in sorted(count.items())) or "none of them"
            faults.append(
                "judge: a prompt must have one {question}, one {steps} and at most one {reference}; "
                f"this one has {slots}."
            )
        if faults:
            raise ConfigError(faults)

    @property
    def uses(self) -> frozenset[str]:
        """The judge, and references if the prompt has a {reference}."""
        return frozenset({"judge", "references"} if "{reference}" in self._template else {"judge"})

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """Sends the prompts of all units to the judge in one call. Yields a solution as soon as its votes are there."""
        judge = evidence.need_judge(tools)
        params = self._params(tools)
        prompts = {
            unit.solution.id: Prompt(self._name(unit, params), self._render(unit), n=self.votes)
            for unit in units
            if unit.solution.spans and ("references" not in self.uses or unit.references)
        }
        by_id = {u.solution.id: (u.solution, g) for u, g in zip(units, evidence.grades(units, tools), strict=True)}
        for key, answers in evidence.answered(judge, prompts, params, by_id):
            solution, grade = by_id[key]
            yield LabelledSolution(solution, grade, self._labels(answers, len(solution.spans)))

    # ---- prompts ----

    @property
    def _template(self) -> str:
        return self.prompt or PROMPTS[self.format]

    def _params(self, tools: Tools) -> SamplingParams:
        temperature = float(self.votes > 1) if self.temperature is None else self.temperature
        return replace(
            tools.params, max_tokens=self.max_tokens, temperature=temperature, top_p=1.0, stop=tuple(self.stop)
        )

    def _name(self, unit: Unlabelled, params: SamplingParams) -> str:
        """The prompt's id. It has a hash of the prompt and the sampling settings, so that a ledger never returns
        answers that were given to another prompt."""
        request = repr((self._template, params.max_tokens, params.temperature, params.stop))
        return f"{unit.solution.id}@judge-{hashlib.sha256(request.encode()).hexdigest()[:8]}"

    def _render(self, unit: Unlabelled) -> str:
        # All lines of a step but the first are indented, so that none of them looks like the start of a step.
        lines = ["\n    ".join(step.splitlines()) for step in unit.solution.steps]
        fill = {
            "question": unit.problem.question,
            "steps": "\n".join(f"Step {i}: {line}" for i, line in enumerate(lines, 1)),
            "reference": next(iter(unit.references), ""),
        }
        return SLOT.sub(lambda slot: fill[slot[1]], self._template)

    # ---- parsing ----

    def _labels(self, answers: Sequence[Rollout], steps: int) -> tuple[StepLabel, ...]:
        finished = [r for r in answers if r.finish is Finish.STOP]
        verdicts = [read(r.text, steps, self.format) for r in finished]
        truncated = sum(r.finish is Finish.LENGTH for r in answers)
        failed = sum(r.finish is Finish.FAILED for r in answers)
        source = "judge" if self.votes == 1 else "judge+votes" if self.keep_votes else "judge+majority"
        labels: list[StepLabel] = []
        error_before = False
        for step in range(1, steps + 1):
            if error_before and (self.first_error_only or self.format == "first"):
                labels.append(StepLabel(0, 1, source="inferred:earlier_error"))
                continue
            cast = [v[step] for v in verdicts if step in v]
            is_correct = 2 * sum(cast) >= len(cast)
            error_before = bool(cast) and not is_correct
            correct = sum(cast) if self.keep_votes else len(cast) * is_correct
            labels.append(StepLabel(correct, len(cast), truncated, len(finished) - len(cast), source, failed))
        return tuple(labels)


def read(text: str, steps: int, format: str) -> dict[int, bool]:
    """The verdicts in a judge's answer: step number from 1 -> is it correct. Steps without a verdict are absent."""
    verdicts: dict[int, bool] = {}
    for line in text.splitlines():
        if format == "each":
            m = _EACH.match(line)
            if m is not None and 1 <= int(m[1]) <= steps:
                verdicts[int(m[1])] = m[2].lower() == "correct"
        elif m := _FIRST.match(line):
            no_error = m[1].lower() == "none"
            first = steps + 1 if no_error else int(m[1])
            # A step number that does not exist is no verdict, and it cancels an earlier verdict.
            verdicts = {i: i < first for i in range(1, steps + 1)} if no_error or 1 <= first <= steps else {}
    return verdicts

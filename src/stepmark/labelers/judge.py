"""Step labels by a judge: a language model is asked, in words, which steps of a solution are right.

LLM-as-a-judge as in ProcessBench (arXiv 2412.06559) and in the consensus filter of Qwen's PRM lessons (arXiv
2501.07301). One prompt shows the whole solution with its steps numbered; each of `votes` answers is a vote on all of
them. What is decided here:

- format="each" reads lines "Step 2: correct" or "Step 2: incorrect" (markdown and case don't matter), format="first"
  a line "First wrong step: 2" or "First wrong step: none". Only the judge's own words are read, so a solution can't
  bring its verdict along; the last verdict on a step counts, since a judge may think first. Anything else, such as
  "not correct" or a step that there is not, is no verdict.
- A vote without a verdict on a step is ungradable there; one that ran out of tokens says nothing on any step.
- The label is the majority's (a tie counts as right): all verdicts are counted as the more frequent one, so that a
  hard label means the majority and not "any vote at all". `keep_votes` keeps the votes as they were cast, for soft
  labels. The sources are "judge", with several votes "judge+majority" or "judge+votes".
- With format="first", and with `first_error_only`, a step after the first that is wrong by this count is wrong too
  (source "inferred:earlier_error"), whatever was said of it.
- The last step is judged like the others, not labelled by the solution's grade: a judge sees no reference answer,
  unless the prompt has a {reference}, and a rival that is told the outcome could not be compared.

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
_END = rf"(?={_MARKS}$|[\s*_`\])]*[.,;:!(–—-])"  # nothing follows a verdict that could turn it round
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
    """The labeller. Raises ConfigError for a prompt without its slots, and for settings out of range."""

    votes: int = 1  # independent answers to each prompt
    format: Literal["each", "first"] = "each"  # a verdict on each step, or the number of the first wrong one
    # Text with one {question}, one {steps} and at most one {reference}, the first of the problem's correct worked
    # solutions; steps of a problem without one are unknown then. "" takes the prompt of the format
    prompt: str = ""
    first_error_only: bool = False  # with format="each": what follows the first wrong step counts as wrong
    keep_votes: bool = False  # keep the votes as cast instead of the majority's verdict
    temperature: float | None = None  # null is 0 for one vote and 1 for several
    max_tokens: int = 1024  # of an answer
    stop: Sequence[str] = ()  # an answer ends before the first of these; the task's own are for solutions

    def __post_init__(self) -> None:
        faults = []
        if self.votes < 1:
            faults.append(f"judge: votes must be at least 1, got {self.votes}.")
        if self.max_tokens < 1:
            faults.append(f"judge: max_tokens must be at least 1, got {self.max_tokens}.")
        if self.temperature is not None and self.temperature < 0:
            faults.append(f"judge: temperature must be at least 0, got {self.temperature}.")
        if self.temperature == 0 and self.votes > 1:
            faults.append(f"judge: at temperature 0 all {self.votes} votes are the same one; give votes=1 or a higher.")
        if isinstance(self.stop, str):
            faults.append(f"judge: stop is a list of texts, got the text {self.stop!r}.")
        count = Counter(SLOT.findall(self.prompt))
        if self.prompt and not (count["question"] == count["steps"] == 1 and count["reference"] <= 1):
            had = ", ".join(f"{n} of {{{slot}}}" for slot, n in sorted(count.items())) or "none of them"
            faults.append(
                f"judge: a prompt has one {{question}}, one {{steps}} and at most one {{reference}}; this has {had}."
            )
        if faults:
            raise ConfigError(faults)

    @property
    def uses(self) -> frozenset[str]:
        """The judge; a prompt may ask for references as well."""
        return frozenset({"judge", "references"} if "{reference}" in self._template else {"judge"})

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """The prompts of all units go to the judge together."""
        judge = evidence.need_judge(tools)
        params = self._params(tools)
        prompts = {
            unit.solution.id: Prompt(self._name(unit, params), self._render(unit), n=self.votes)
            for unit in units
            if unit.solution.spans and ("references" not in self.uses or unit.references)
        }
        by_name = {prompt.id: key for key, prompt in prompts.items()}
        said: dict[str, list[Rollout]] = {key: [] for key in prompts}
        for rollout in judge.sample(list(prompts.values()), params) if prompts else ():
            said[by_name[rollout.prompt_id]].append(rollout)
        for unit, grade in zip(units, evidence.grades(units, tools), strict=True):
            s = unit.solution
            yield LabelledSolution(s, grade, self._labels(said.get(s.id, ()), len(s.spans)))

    # ---- asking ----

    @property
    def _template(self) -> str:
        return self.prompt or PROMPTS[self.format]

    def _params(self, tools: Tools) -> SamplingParams:
        temperature = float(self.votes > 1) if self.temperature is None else self.temperature
        return replace(
            tools.params, max_tokens=self.max_tokens, temperature=temperature, top_p=1.0, stop=tuple(self.stop)
        )

    def _name(self, unit: Unlabelled, params: SamplingParams) -> str:
        """Names the answers, by what was asked too: a judge that is asked otherwise has other answers."""
        asked = repr((self._template, params.max_tokens, params.temperature, params.stop))
        return f"{unit.solution.id}@judge-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def _render(self, unit: Unlabelled) -> str:
        # A step's further lines are indented, so that none of them can pass for the beginning of a step.
        lines = ["\n    ".join(step.splitlines()) for step in unit.solution.steps]
        fill = {
            "question": unit.problem.question,
            "steps": "\n".join(f"Step {i}: {line}" for i, line in enumerate(lines, 1)),
            "reference": next(iter(unit.references), ""),
        }
        return SLOT.sub(lambda slot: fill[slot[1]], self._template)

    # ---- reading ----

    def _labels(self, said: Sequence[Rollout], steps: int) -> tuple[StepLabel, ...]:
        whole = [r for r in said if r.finish is Finish.STOP]
        verdicts = [read(r.text, steps, self.format) for r in whole]
        truncated = sum(r.finish is Finish.LENGTH for r in said)
        failed = sum(r.finish is Finish.FAILED for r in said)
        source = "judge" if self.votes == 1 else "judge+votes" if self.keep_votes else "judge+majority"
        labels: list[StepLabel] = []
        wrong = False
        for step in range(1, steps + 1):
            if wrong and (self.first_error_only or self.format == "first"):
                labels.append(StepLabel(0, 1, source="inferred:earlier_error"))
                continue
            cast = [v[step] for v in verdicts if step in v]
            right = 2 * sum(cast) >= len(cast)
            wrong = bool(cast) and not right
            correct = sum(cast) if self.keep_votes else len(cast) * right
            labels.append(StepLabel(correct, len(cast), truncated, len(whole) - len(cast), source, failed))
        return tuple(labels)


def read(text: str, steps: int, format: str) -> dict[int, bool]:
    """The verdicts in a judge's answer: step, from 1, -> whether it is right. Steps without a verdict are left out."""
    found: dict[int, bool] = {}
    for line in text.splitlines():
        if format == "each":
            m = _EACH.match(line)
            if m is not None and 1 <= int(m[1]) <= steps:
                found[int(m[1])] = m[2].lower() == "correct"
        elif m := _FIRST.match(line):
            none = m[1].lower() == "none"
            first = steps + 1 if none else int(m[1])
            # A step that there is not is no verdict, and takes back the one before it.
            found = {i: i < first for i in range(1, steps + 1)} if none or 1 <= first <= steps else {}
    return found

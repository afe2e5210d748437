r"""ThinkPRM (Khalifa et al., arXiv 2504.16828): a language model writes a verification with a verdict on each step.

The prompt is the one that ThinkPRM was trained with. For each step the model writes `\boxed{correct}` or
`\boxed{incorrect}`; the verdicts belong to the steps in order. A step's score is the share of `correct` among the votes
that could be read. A vote can be read if it has as many verdicts as there are steps, or fewer of which the last one is
the first `incorrect`: a verification may stop there, and the steps after it then count as incorrect. Any other text is
no vote. Without a vote the verification is UNPARSED, TRUNCATED or FAILED; it never becomes a half.

Deviation: the paper's own score is the probability of "Yes" after "Is the solution correct?", one number a solution.
Here each step has one, which is what its text says, and `aggregate` makes the solution's score of them.

    load_verifier("think_prm", path="launch/ThinkPRM-1.5B", options={"chat_template": True})
    load_verifier("think_prm", backend="openai", options={"model": "...", "url": "...", "chat": True}, votes=4)
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from stepmark.errors import ConfigError
from stepmark.evaluation import aggregate as aggregation
from stepmark.models import scoring
from stepmark.plugins import registry
from stepmark.protocols import Backend
from stepmark.text import sampling
from stepmark.text.sanitize import sanitize
from stepmark.types import Finish, Outcome, Prompt, Rollout, SamplingParams, Solution, Verification

PROMPT = """You are given a math problem and a proposed step-by-step solution:

[Math Problem]

{question}

[Solution]

{solution}

Review and critique each step in the proposed solution to determine whether each step is correct. If the solution is \
incomplete, only verify the provided steps."""
SLOT = re.compile(r"\{(question|solution)\}")
VERDICT = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{\s*)?(correct|incorrect)\s*\}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ThinkPrm:
    """Asks the model at `path`, or the backend's own model. Raises ConfigError for invalid settings."""

    per_step: ClassVar[bool] = True  # a score for each step

    path: str = ""  # the model's checkpoint, a directory or a hub id, for backends that take one
    votes: int = 1  # verifications of each solution
    temperature: float = 0.0  # of the verifications; at 0 they are all equal, so there is one
    max_tokens: int = 4096  # of a verification
    aggregate: str = "min"  # how step scores are combined into the solution's score
    keep: int = 1  # verifications stored with each solution
    seed: int = 0
    backend: str = "local"  # runs the model
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backend, such as chat_template for a chat model
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu

    def __post_init__(self) -> None:
        aggregation.aggregate([0.5], self.aggregate)
        faults = []
        for name, minimum in (("votes", 1), ("keep", 0)):
            if getattr(self, name) < minimum:
                faults.append(f"think_prm: {name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.temperature == 0 and self.votes > 1:
            faults.append(
                f"think_prm: at temperature 0 all {self.votes} votes are equal; set votes=1, or a temperature."
            )
        options: object = self.options  # it may come from a recipe, unchecked
        if not isinstance(options, Mapping):
            faults.append(f"think_prm: options is a mapping of the backend's options, got {options!r}.")
        if faults:
            raise ConfigError(faults)
        sampling.check(self._params)
        self._backend()

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with one score per step. One call samples all votes."""
        unscored = [scoring.unfinished(s, self.aggregate) for s in solutions]
        texts = ["" if bad else self.ask(question, s) for s, bad in zip(solutions, unscored, strict=True)]
        # The prompt's text gives its id, so a vote does not depend on the other solutions.
        prompts = {text: Prompt(f"think_prm-{_digest(text)}", text, n=self.votes) for text in texts if text}
        answers: dict[str, list[Rollout]] = {p.id: [] for p in prompts.values()}
        for rollout in self._backend().sample(list(prompts.values()), self._params) if prompts else ():
            answers[rollout.prompt_id].append(rollout)
        return [
            bad or self._verification(s, answers[prompts[text].id])
            for s, bad, text in zip(solutions, unscored, texts, strict=True)
        ]

    def ask(self, question: str, solution: Solution) -> str:
        """The prompt: the solution without claims about itself, its steps numbered, and without verdicts in it."""
        steps = [VERDICT.sub("", step) for step in sanitize(solution).solution.steps]
        numbered = (s if re.match(r"Step \d", s) else f"Step {i}: {s}" for i, s in enumerate(steps, 1))
        values = {"question": question.strip(), "solution": "\n".join(numbered)}
        return SLOT.sub(lambda slot: values[slot[1]], PROMPT)

    def _verification(self, s: Solution, answers: Sequence[Rollout]) -> Verification:
        sanitized = sanitize(s)
        steps = len(sanitized.solution.spans)
        answers = sorted(answers, key=lambda r: r.index)
        ended = [r for r in answers if r.finish is Finish.STOP]
        read = {r.index: verdicts(r.text, steps) for r in ended}
        votes = [r for r in ended if read[r.index]]
        tokens = sum(r.tokens for r in answers) + max((r.prompt_tokens for r in answers), default=0)
        if not votes:
            outcome, reason = _failure(answers, ended, steps)
            return Verification(s.id, (), 0.0, self.aggregate, outcome, reason, tokens=tokens)
        shares = [math.fsum(read[r.index][k] for r in votes) / len(votes) for k in range(steps)]
        scores = sanitized.spread(tuple(shares))
        kept = tuple(r.text for r in votes[: self.keep])
        total = aggregation.aggregate(scores, self.aggregate)
        return Verification(s.id, tuple(scores), total, self.aggregate, rationales=kept, tokens=tokens)

    @property
    def remote(self) -> bool:
        """Whether a server runs the model."""
        return bool(getattr(registry.find("backend", self.backend), "remote", False))

    @property
    def _params(self) -> SamplingParams:
        return SamplingParams(self.max_tokens, self.temperature, seed=self.seed)

    def _backend(self) -> Backend:
        given = {k: v for k, v in {"path": self.path, "device": self.device}.items() if v}
        return cast(Backend, registry.load_with("backend", self.backend, given, self.options))


def verdicts(text: str, steps: int) -> tuple[bool, ...]:
    """Whether each step is correct, as the text says; () if it does not say so for each step, or until the first that
    is incorrect. What a model thinks before `</think>` counts where it gives no verdicts after it."""
    after = text.rpartition("</think>")[2]
    said = [m.lower() == "correct" for m in VERDICT.findall(after) or VERDICT.findall(text)]
    if said and all(said[:-1]) and not said[-1]:  # it may have stopped at the first error
        said += [False] * (steps - len(said))
    return tuple(said) if len(said) == steps else ()


def _failure(answers: Sequence[Rollout], ended: Sequence[Rollout], steps: int) -> tuple[Outcome, str]:
    """The outcome of answers without any readable vote, and the reason."""
    truncated = sum(r.finish is Finish.LENGTH for r in answers)
    counts = Counter(len(VERDICT.findall(r.text)) for r in ended)
    said = [f"{n} with {k} verdicts for {steps} steps" for k, n in counts.most_common()]
    said += [f"{truncated} truncated"] * bool(truncated)
    reasons = [r.reason or "no reason given" for r in answers if r.finish is Finish.FAILED]
    said += [f"{len(reasons)} failed ({reasons[0]})"] if reasons else []
    outcome = Outcome.UNPARSED if ended else Outcome.TRUNCATED if truncated else Outcome.FAILED
    return outcome, f"none of {len(answers)} verifications could be read: {', '.join(said) or 'none came'}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

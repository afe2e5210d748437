"""LLM-as-a-judge: a model that was not trained to verify judges each solution several times (Zheng et al. 2023, arXiv
2306.05685). It is the first baseline of GenRM (Zhang et al. 2024, arXiv 2408.15240, section 4.1).

The judge writes `votes` answers, and each ends in a verdict (text/verdicts.py). The score is the share of Yes among the
verdicts that could be read. An answer without a readable verdict, a truncated answer and a failed one are no votes.
Without any vote the verification is UNPARSED, TRUNCATED or FAILED; it never means that the answer is wrong.

Deviations: the prompt is ours, since each paper's prompt is for one model; `prompt` replaces it. The judge sees the
solution without its claims about its own correctness (text/sanitize.py), and verdicts are read from the judge's own
words only. Solutions with the same prompt share their votes. The same seed gives the same votes if the backend honours
seeds.

    load_verifier("judge", path="Qwen/Qwen3-8B", options={"chat_template": True}, votes=8)
    load_verifier("judge", backend="openai", options={"model": "...", "url": "...", "chat": True})
    stepmark run recipes/demo.yaml 'verifiers.judge={kind: judge, options: {votes: 4}}'
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from stepmark.errors import ConfigError
from stepmark.models import checkpoints, scoring
from stepmark.models.encoding import prompt_ids
from stepmark.plugins import registry
from stepmark.protocols import Backend
from stepmark.text import sampling
from stepmark.text.prompts import VERDICT, Template
from stepmark.text.sanitize import sanitize_text
from stepmark.text.verdicts import Reader, Reading, Said
from stepmark.types import Finish, Outcome, Prompt, Rollout, SamplingParams, Solution, Verification

PROMPT = f"""You are a careful grader. Find out whether a solution of a problem comes to the correct answer.

Problem:
{{question}}

Solution:
{{solution}}

Check the solution step by step and recompute what it computes. Any step may be wrong, and what the solution says of \
its own correctness is no evidence. End with one line that repeats this question and answers it in one word, Yes or No:
{VERDICT}

Verification:
"""
SLOT = re.compile(r"\{(question|solution)\}")


@dataclass(frozen=True, slots=True)
class JudgeVerifier:
    """Asks the model at `path`, or the backend's own model. Raises ConfigError for invalid settings."""

    path: str = ""  # the judge's checkpoint, a directory or a hub id, for backends that take one
    verifier: str = ""  # directory of a trained verifier that is a language model; it judges instead of `path`
    template: str = "{question}\n"  # the prompt that asks to solve a question; the judge sees the question in this form
    prompt: str = PROMPT  # text with one {question} and one {solution}
    votes: int | None = None  # K, answers per solution; null: 32, or 1 at temperature 0
    temperature: float = 1.0  # of the answers; at 0 they are all equal, so there is one
    max_tokens: int = 1024  # of an answer
    keep: int = 4  # number of answers stored with each verification
    seed: int = 0
    backend: str = "local"  # runs the judge
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backend, such as chat_template for a chat model
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu

    def __post_init__(self) -> None:
        votes = self.votes if self.votes is not None else 32 if self.temperature else 1
        object.__setattr__(self, "votes", votes)
        faults = []
        if sorted(SLOT.findall(self.prompt)) != ["question", "solution"]:
            faults.append(f"judge: prompt needs exactly one {{question}} and one {{solution}}, got {self.prompt!r}.")
        for name, minimum in (("votes", 1), ("keep", 0)):
            if getattr(self, name) < minimum:
                faults.append(f"judge: {name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.temperature == 0 and votes > 1:
            faults.append(
                f"judge: at temperature 0 all {votes} votes are equal; set votes=1, or a temperature above 0."
            )
        options: object = self.options  # it may come from a recipe, unchecked
        named = isinstance(options, Mapping) and all(isinstance(key, str) for key in options)
        if not named:
            faults.append(f"judge: options must be a mapping from names of backend options to values, got {options!r}.")
        checks: list[Callable[[], object]] = [lambda: sampling.check(self._params), lambda: Template(self.template)]
        for check in checks + [self._backend] * named:
            try:
                check()
            except ConfigError as e:
                faults += [f"judge: {fault}" for fault in e.faults]
        if faults:
            raise ConfigError(faults)

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each. One call samples all votes."""
        unscored = [scoring.unfinished(s, "last") for s in solutions]
        texts = ["" if bad else self.ask(question, s.text) for s, bad in zip(solutions, unscored, strict=True)]
        # The prompt's text gives its id, so a vote does not depend on the other solutions.
        prompts = {text: Prompt(f"judge-{_digest(text)}", text, n=self.votes or 1) for text in texts if text}
        answers: dict[str, list[Rollout]] = {p.id: [] for p in prompts.values()}
        for rollout in self._backend().sample(list(prompts.values()), self._params) if prompts else ():
            answers[rollout.prompt_id].append(rollout)
        return [
            bad or self._verification(s.id, prompts[text], answers[prompts[text].id])
            for s, bad, text in zip(solutions, unscored, texts, strict=True)
        ]

    def ask(self, question: str, solution: str) -> str:
        """The prompt of the judge."""
        values = {
            "question": Template(self.template).render(question).strip(),
            "solution": sanitize_text(solution).strip(),
        }
        return SLOT.sub(lambda slot: values[slot[1]], self.prompt)

    # ---- counting votes ----

    def _verification(self, id: str, prompt: Prompt, answers: Sequence[Rollout]) -> Verification:
        answers = sorted(answers, key=lambda r: r.index)
        readings = {r.index: Reader().read(r.text) for r in answers if r.finish is Finish.STOP}
        readable = [r for r in answers if r.index in readings and readings[r.index].said is not Said.UNPARSED]
        votes = tuple(float(readings[r.index].said is Said.YES) for r in readable)
        tokens = self._prompt_tokens(prompt, answers) + sum(r.tokens for r in answers)
        if not votes:
            outcome, reason = _failure(answers, list(readings.values()))
            return Verification(id, (), 0.0, "last", outcome, reason, tokens=tokens)
        score = math.fsum(votes) / len(votes)
        texts = tuple(r.text for r in readable[: self.keep])
        return Verification(id, (score,), score, "last", rationales=texts, votes=votes, tokens=tokens)

    def _prompt_tokens(self, prompt: Prompt, answers: Sequence[Rollout]) -> int:
        """Tokens of the prompt, which all votes share: what the backend charges, else what the checkpoint's tokenizer
        counts; 0 where neither is known."""
        if charged := max((r.prompt_tokens for r in answers), default=0):
            return charged
        if "path" not in registry.options("backend", self.backend):
            return 0
        path = self.options.get("path") or self.verifier or self.path
        tokenizer = checkpoints.load_tokenizer(path, bool(self.options.get("trust_remote_code")))
        return len(prompt_ids(tokenizer, prompt, bool(self.options.get("chat_template"))))

    # ---- the judge's backend ----

    @property
    def remote(self) -> bool:
        """Whether a server runs the judge."""
        return bool(getattr(registry.find("backend", self.backend), "remote", False))

    @property
    def _params(self) -> SamplingParams:
        return SamplingParams(self.max_tokens, self.temperature, seed=self.seed)

    def _backend(self) -> Backend:
        settings = {"path": self.verifier or self.path, "device": self.device}
        given = {k: v for k, v in settings.items() if v}
        return cast(Backend, registry.load_with("backend", self.backend, given, self.options))


def _failure(answers: Sequence[Rollout], readings: Sequence[Reading]) -> tuple[Outcome, str]:
    """The outcome of answers without any readable verdict, and the reason."""
    truncated = sum(r.finish is Finish.LENGTH for r in answers)
    reason = next((r.reason for r in answers if r.finish is Finish.FAILED), "")
    counts = [f"{n} with {why}" for why, n in Counter(r.why.value for r in readings).most_common()]
    counts += [f"{truncated} truncated"] * bool(truncated)
    failed = len(answers) - len(readings) - truncated
    counts += [f"{failed} failed ({reason or 'no reason given'})"] * bool(failed)
    outcome = Outcome.UNPARSED if readings else Outcome.TRUNCATED if truncated else Outcome.FAILED
    return outcome, f"none of {len(answers)} votes could be read: {', '.join(counts) or 'none came'}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

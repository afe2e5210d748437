"""LLM-as-a-judge: a model that was never trained to verify is asked to, and votes (Zheng et al. 2023, arXiv
2306.05685), the first baseline of GenRM (Zhang et al. 2024, arXiv 2408.15240, section 4.1).

Each of `votes` answers is a text that ends in a verdict (text/verdicts.py); the score is the share of Yes among those
that could be read. An answer without a readable verdict, a truncated one and one that never came are no votes. Where
none is left the verification is UNPARSED, TRUNCATED or FAILED: "we could not tell" is not "the answer is wrong".

Deviations: the prompt is ours, as the papers' are for one model each; give yours with `prompt`. The solution is shown
without what it says about its own correctness (text/sanitize.py), and only the judge's own words are read. Solutions
that are shown alike share their votes. With a seed the votes are the same again as far as the backend honours seeds.

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
    """Asks the model at `path`, or whatever model the backend has. Raises ConfigError for settings that can't be."""

    path: str = ""  # the judge's checkpoint, a directory or a hub id, for backends that take one
    verifier: str = ""  # directory of a trained verifier that is a language model: it judges in place of `path`
    template: str = "{question}\n"  # how a question is put when it is to be solved; the judge sees it so
    prompt: str = PROMPT  # text with one {question} and one {solution}
    votes: int = 32  # K, answers per solution
    temperature: float = 1.0  # of the answers; 0 makes them all alike, so it asks for votes=1
    max_tokens: int = 1024  # of an answer
    keep: int = 4  # answers that are stored with each verification
    seed: int = 0
    backend: str = "local"  # who runs the judge
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backend, such as chat_template for a chat model
    device: str = "auto"

    def __post_init__(self) -> None:
        faults = []
        if sorted(SLOT.findall(self.prompt)) != ["question", "solution"]:
            faults.append(f"judge: a prompt has one {{question}} and one {{solution}}; got {self.prompt!r}.")
        for name, least in (("votes", 1), ("keep", 0)):
            if getattr(self, name) < least:
                faults.append(f"judge: {name} must be at least {least}, got {getattr(self, name)}.")
        if self.temperature == 0 and self.votes > 1:
            faults.append(f"judge: at temperature 0 all {self.votes} votes are one; give votes=1, or a temperature.")
        given: object = self.options  # from a recipe, where anything may stand
        named = isinstance(given, Mapping) and all(isinstance(key, str) for key in given)
        if not named:
            faults.append(f"judge: options are the backend's, by name; got {given!r}.")
        checks: list[Callable[[], object]] = [lambda: sampling.check(self._params), lambda: Template(self.template)]
        for check in checks + [self._backend] * named:
            try:
                check()
            except ConfigError as e:
                faults += [f"judge: {fault}" for fault in e.faults]
        if faults:
            raise ConfigError(faults)

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each. All votes go to the judge together."""
        bad = [scoring.unfinished(s, "last") for s in solutions]
        asked = ["" if why else self.ask(question, s.text) for s, why in zip(solutions, bad, strict=True)]
        # Named by question and solution as they are shown: what else is judged changes no vote.
        prompts = {text: Prompt(f"judge-{_digest(text)}", text, n=self.votes) for text in asked if text}
        said: dict[str, list[Rollout]] = {p.id: [] for p in prompts.values()}
        for rollout in self._backend().sample(list(prompts.values()), self._params) if prompts else ():
            said[rollout.prompt_id].append(rollout)
        return [
            why or self._verification(s.id, prompts[text], said[prompts[text].id])
            for s, why, text in zip(solutions, bad, asked, strict=True)
        ]

    def ask(self, question: str, solution: str) -> str:
        """What the judge is shown."""
        fill = {
            "question": Template(self.template).render(question).strip(),
            "solution": sanitize_text(solution).strip(),
        }
        return SLOT.sub(lambda slot: fill[slot[1]], self.prompt)

    # ---- counting ----

    def _verification(self, id: str, prompt: Prompt, said: Sequence[Rollout]) -> Verification:
        said = sorted(said, key=lambda r: r.index)
        readings = {r.index: Reader().read(r.text) for r in said if r.finish is Finish.STOP}
        cast_ = [r for r in said if r.index in readings and readings[r.index].said is not Said.UNPARSED]
        votes = tuple(float(readings[r.index].said is Said.YES) for r in cast_)
        tokens = self._read(prompt, said) + sum(r.tokens for r in said)
        if not votes:
            outcome, reason = _why_not(said, list(readings.values()))
            return Verification(id, (), 0.0, "last", outcome, reason, tokens=tokens)
        score = math.fsum(votes) / len(votes)
        texts = tuple(r.text for r in cast_[: self.keep])
        return Verification(id, (score,), score, "last", rationales=texts, votes=votes, tokens=tokens)

    def _read(self, prompt: Prompt, said: Sequence[Rollout]) -> int:
        """Tokens of the prompt, which all votes share: as the backend charges them, else as the checkpoint's tokenizer
        counts them; 0 where nobody knows."""
        if charged := max((r.prompt_tokens for r in said), default=0):
            return charged
        if "path" not in registry.options("backend", self.backend):
            return 0
        path = self.options.get("path") or self.verifier or self.path
        tokenizer = checkpoints.load_tokenizer(path, bool(self.options.get("trust_remote_code")))
        return len(prompt_ids(tokenizer, prompt, bool(self.options.get("chat_template"))))

    # ---- asking ----

    @property
    def _params(self) -> SamplingParams:
        return SamplingParams(self.max_tokens, self.temperature, seed=self.seed)

    def _backend(self) -> Backend:
        taken = registry.options("backend", self.backend)
        own = {"path": self.verifier or self.path, "device": self.device}
        given = {k: v for k, v in own.items() if k in taken and v}
        return cast(Backend, registry.load("backend", self.backend, **given | dict(self.options)))


def _why_not(said: Sequence[Rollout], readings: Sequence[Reading]) -> tuple[Outcome, str]:
    """The outcome of answers of which none could be read, and what became of them."""
    cut = sum(r.finish is Finish.LENGTH for r in said)
    failed = next((r.reason for r in said if r.finish is Finish.FAILED), "")
    counts = [f"{n} with {why}" for why, n in Counter(r.why.value for r in readings).most_common()]
    counts += [f"{cut} truncated"] * bool(cut)
    lost = len(said) - len(readings) - cut
    counts += [f"{lost} failed ({failed or 'no reason given'})"] * bool(lost)
    outcome = Outcome.UNPARSED if readings else Outcome.TRUNCATED if cut else Outcome.FAILED
    return outcome, f"none of {len(said)} votes could be read: {', '.join(counts) or 'none came'}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

"""Generative verifier: verification as next-token prediction (GenRM, Zhang et al., arXiv 2408.15240, section 3).

- mode="direct" (equations 4 and 5): the model reads the solution and the question whether its answer is correct. The
  target is one token, " Yes" or " No". The score is p(Yes).
- mode="cot" (section 3.3): the target is a written verification that ends in that question and its answer. Scoring
  samples `votes` rationales. The score is the mean of p(Yes) after each of them, not the share of rationales that end
  in Yes.
- generation > 0 (equation 6): L = SFT(verification) + lambda * SFT(correct solutions). Each term is a mean over its own
  tokens in an update. The correct solutions are those of the examples and those that a recipe adds: references, and
  the texts that the generator was trained on, so that a small model does not forget them.

The paper leaves these choices open; they are ours. p(Yes) is renormalised over the forms of Yes and No that are one
token for this tokenizer. If a rationale ends without the question, the question is appended. Verification examples are
balanced by label. The solution is read without its claims about its own correctness (text/sanitize.py). All K
rationales of a solution share its encoded text, and solutions with the same text share their votes.

A trained verifier is an ordinary causal language model, so any inference server can serve it:

    stepmark train genrm --base generator/ --option mode=cot --task last_letter --labels L.jsonl --out genrm/
    load_verifier("genrm/", backend="openai", backend_options={"url": ..., "model": ...})
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stepmark.errors import ConfigError
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded, following_ids, token_ids
from stepmark.plugins import registry, verifier_card
from stepmark.protocols import Backend, Chooser
from stepmark.text.prompts import NO, VERDICT, YES, Template
from stepmark.text.sanitize import sanitize, sanitize_text
from stepmark.types import (
    REFERENCE,
    Finish,
    LabelledSolution,
    Outcome,
    Problem,
    Prompt,
    Rollout,
    SamplingParams,
    Solution,
    Verdict,
    Verification,
)

if TYPE_CHECKING:
    import torch

PROMPTS = {"direct": "{problem}{solution}\n", "cot": "{problem}{solution}\nVerification:\n"}
SLOT = re.compile(r"\{(problem|solution)\}")
FORMS = ((YES, "Yes", " yes", "yes"), (NO, "No", " no", "no"))  # the forms of each answer


@dataclass(frozen=True, slots=True)
class Lesson:
    """One training text: an input and its target."""

    given: str  # the input
    said: str  # the target: a verification up to and including its verdict's question, or a solution
    answer: str = ""  # YES or NO, which follows `said`; "" for a solution, which ends with the end token


@dataclass(frozen=True, slots=True)
class GenerativeVerifier:
    """Trains from, or scores with, the checkpoint at `path`."""

    path: str  # a causal language model to start from, or a trained verifier
    mode: Literal["direct", "cot"] = "direct"  # direct: Yes or No at once; cot: after a written verification
    template: str = "{question}\n"  # the prompt that asks to solve a question
    prompt: str = ""  # text with one {problem} (the filled template) and one {solution}; "" takes the mode's default
    generation: float = 0.0  # lambda, the weight of generating correct solutions
    balance: bool = True  # learn from as many verifications of right solutions as of wrong ones
    examples: int | None = (
        None  # largest number of verifications to learn from; null takes all; 0 learns generation only, as a control
    )
    votes: int | None = None  # K, rationales per solution; null: 32, or 1 at temperature 0
    temperature: float = 1.0  # of the rationales; at 0 they are all equal, so there is one
    max_tokens: int = 512  # of a rationale
    keep: int = 4  # number of rationales stored with each verification
    seed: int = 0  # of the rationales
    backend: str = "local"  # runs the model when scoring; it needs `choice_probs` (protocols.Chooser)
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"  # of the weights while scoring; auto: bfloat16 where it is faster and agrees (precision.py)
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run

    generates: ClassVar[bool] = True  # it can learn from correct solutions without a verification

    def __post_init__(self) -> None:
        votes = self.votes if self.votes is not None else 32 if self.temperature else 1
        object.__setattr__(self, "votes", votes)
        faults = []
        if self.mode not in PROMPTS:
            faults.append(f"genrm: mode must be {' or '.join(PROMPTS)}, got {self.mode!r}.")
        if self.prompt and sorted(SLOT.findall(self.prompt)) != ["problem", "solution"]:
            faults.append(f"genrm: prompt needs exactly one {{problem}} and one {{solution}}, got {self.prompt!r}.")
        if self.examples is not None and self.examples < 2 and not (self.examples == 0 and self.generation > 0):
            faults.append(f"genrm: examples must be at least 2, or 0 where generation is above 0; got {self.examples}.")
        for name, minimum in (("votes", 1), ("max_tokens", 1), ("keep", 0), ("temperature", 0), ("generation", 0)):
            if getattr(self, name) < minimum:
                faults.append(f"genrm: {name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.temperature == 0 and votes > 1 and self.mode == "cot":
            faults.append(
                f"genrm: at temperature 0 all {votes} votes are equal; set votes=1, or a temperature above 0."
            )
        if faults:
            raise ConfigError(faults)

    # ---- text to token ids, for training and scoring alike ----

    def ask(self, question: str, solution: str) -> str:
        """The prompt: problem, solution, and in mode "direct" the verdict's question."""
        values = {"problem": Template(self.template).render(question), "solution": sanitize_text(solution).rstrip()}
        prompt = SLOT.sub(lambda slot: values[slot[1]], self.prompt or PROMPTS[self.mode])
        return prompt + VERDICT if self.mode == "direct" else prompt

    def corpus(self) -> tuple[str, ...]:
        """Texts that a new tokenizer for this verifier should be trained on."""
        return tuple(self.ask("", "").removesuffix(VERDICT) + VERDICT + answer for answer in (YES, NO))

    # ---- training ----

    def build(self) -> torch.nn.Module:
        return checkpoints.load_model(
            self.path, dtype="float32", device="cpu", trust_remote_code=self.trust_remote_code
        )

    def choose(self, examples: Sequence[tuple[Problem, LabelledSolution]]) -> Sequence[Lesson]:
        """Verifications, with `balance` as many of each verdict; then, with `generation`, correct solutions."""
        verifications = self._subset([lesson for example in examples for lesson in self._verifications(*example)])
        if not self.generation:
            return verifications
        solutions = {
            (p.question, x.solution.text): Lesson(Template(self.template)(p), x.solution.text)
            for p, x in examples
            if x.solution.spans and (x.grade.correct or _only_reference(x))
        }
        return [*verifications, *solutions.values()]

    def _subset(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """The lessons to learn, at most `examples`, in their order. The hashes of their texts choose them, so a larger
        `examples` keeps the same lessons and adds others."""
        # Indices, not lessons: a text may occur twice.
        by_hash = sorted(range(len(lessons)), key=lambda i: _digest(repr(lessons[i])))
        limit = len(lessons) if self.examples is None else self.examples
        chosen = by_hash[:limit]
        if self.balance:
            per_answer = [[i for i in by_hash if lessons[i].answer == answer] for answer in (YES, NO)]
            size = min(limit // 2, *map(len, per_answer))
            chosen = [i for indices in per_answer for i in indices[:size]]
        return [lessons[i] for i in sorted(chosen)]

    def _verifications(self, problem: Problem, labelled: LabelledSolution) -> Iterator[Lesson]:
        verdict = labelled.grade.verdict
        if verdict is Verdict.UNGRADABLE or not sanitize(labelled.solution).kept or _only_reference(labelled):
            return
        prompt = self.ask(problem.question, labelled.solution.text)
        answer = YES if verdict is Verdict.CORRECT else NO
        if self.mode == "direct":
            yield Lesson(prompt, "", answer)
            return
        for rationale in labelled.rationales:
            if rationale.kept:
                yield Lesson(prompt, rationale.text.removesuffix(VERDICT + answer) + VERDICT, answer)

    def encode_example(self, lesson: Lesson) -> Encoded:
        tokenizer = self._tokenizer()
        prompt = token_ids(tokenizer, lesson.given)[0]
        target = following_ids(tokenizer, lesson.given, lesson.said) if lesson.said else ()
        if not lesson.answer:
            ids = (*prompt, *target, tokenizer.eos_token_id)
            at = range(len(prompt) - 1, len(ids) - 1)  # the positions that predict the solution's tokens
            return Encoded(ids, at=tuple(at), targets=(1.0,) * len(at))
        answer = following_ids(tokenizer, lesson.said or lesson.given, lesson.answer)
        weights = (*(0.0,) * len(prompt), *(1.0,) * (len(target) + len(answer)))
        if self.mode == "direct":
            return Encoded((*prompt, *answer), weights=weights)
        return Encoded((*prompt, *target, *answer, tokenizer.eos_token_id), weights=(*weights, 1.0))

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """Equation 6, in nats: the mean over the update's verification tokens, plus lambda times the mean over the
        tokens of its correct solutions."""
        hidden, head = scoring.outputs(model, batch), scoring.output_layer(model)
        loss = packing.next_token_loss_of(hidden, head, batch) / totals.next_tokens
        if len(batch.rows):
            nats = packing.losses(
                hidden[batch.rows, batch.columns], head, batch.ids[batch.rows, batch.columns + 1]
            ).sum()
            loss = loss + self.generation * nats / totals.scores
        return loss

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, self._tokenizer())  # type: ignore[arg-type]
        skipped = ("path", "device", "backend", "backend_options")
        options = {k: v for k, v in asdict(self).items() if k not in skipped}
        verifier_card.write_card(out, "genrm", options, {}, Template(self.template).hash)

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(self._tokenizer())

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each."""
        return self.verify_many([(question, solutions)])

    def verify_many(self, asked: Sequence[tuple[str, Sequence[Solution]]]) -> list[Verification]:
        """`verify` for several questions in one call, which makes larger batches.

        `asked` holds a question and its solutions; the result has one verification per solution, in order."""
        verifier_card.check_card(self.path, {}, Template(self.template).hash)
        flat = [(question, s) for question, solutions in asked for s in solutions]
        unscored = [scoring.unfinished(s, "last") for _, s in flat]
        texts = ["" if bad else self.ask(question, s.text) for (question, s), bad in zip(flat, unscored, strict=True)]
        # The prompt's text gives its id, so equal solutions share their votes.
        prompts = {text: Prompt(_digest(text), text) for text in texts if text}
        sizes = {text: len(token_ids(self._tokenizer(), text)[0]) for text in prompts}
        fitting = [prompt for text, prompt in prompts.items() if sizes[text] < self._limit]
        votes = (self._direct_votes if self.mode == "direct" else self._rationale_votes)(fitting)
        verifications = []
        for (_, s), bad, text in zip(flat, unscored, texts, strict=True):
            bad = bad or scoring.too_long(s, "last", sizes[text] + 1, self._limit)
            verifications.append(bad or votes[prompts[text].id].verification(s.id, sizes[text]))
        return verifications

    def _direct_votes(self, prompts: Sequence[Prompt]) -> dict[str, _Votes]:
        probabilities = self._yes_probabilities([p.context for p in prompts])
        return {p.id: _Votes((p_yes,), direct=True) for p, p_yes in zip(prompts, probabilities, strict=True)}

    def _rationale_votes(self, prompts: Sequence[Prompt]) -> dict[str, _Votes]:
        """Per prompt id: `votes` sampled rationales, and p(Yes) after each."""
        yes, no = self._forms
        choices = (*yes, *no)
        params = SamplingParams(self.max_tokens, self.temperature, stop=(VERDICT,), seed=self.seed, choices=choices)
        by_prompt: dict[str, list[Rollout]] = {p.id: [] for p in prompts}
        requests = [replace(p, n=self.votes or 1) for p in prompts]
        for r in self._backend.sample(requests, params) if requests else ():
            by_prompt[r.prompt_id].append(r)
        contexts = {p.id: p.context for p in prompts}
        ended = [r for rollouts in by_prompt.values() for r in rollouts if r.finish is Finish.STOP]
        # Two cases need a second request: the backend gave no choices, or the question did not begin a line. A server
        # can't tell the latter from a text that ended without the question, and both must get the same score.
        p_yes = {r.key: sum(r.choices[: len(yes)]) for r in ended if r.choices and _ends_line(r.text)}
        unread = [r for r in ended if not (r.choices and _ends_line(r.text))]
        probabilities = self._yes_probabilities([contexts[r.prompt_id] + _closed(r.text) for r in unread])
        p_yes.update(zip((r.key for r in unread), probabilities, strict=True))
        votes = {}
        for prompt_id, rollouts in by_prompt.items():
            rollouts.sort(key=lambda r: r.index)
            complete = [r for r in rollouts if r.key in p_yes]
            votes[prompt_id] = _Votes(
                tuple(p_yes[r.key] for r in complete),
                tuple(_closed(r.text) for r in complete[: self.keep]),
                sum(r.tokens for r in rollouts),
                truncated=sum(r.finish is Finish.LENGTH for r in rollouts),
                reason=next((r.reason for r in rollouts if r.finish is Finish.FAILED), ""),
            )
        return votes

    def _yes_probabilities(self, texts: Sequence[str]) -> list[float]:
        """p(Yes) after each text. Equal texts are asked once."""
        (yes, no), distinct = self._forms, list(dict.fromkeys(texts))
        probabilities = self._backend.choice_probs(distinct, [*yes, *no]) if distinct else ()
        p_yes = {text: sum(choices[: len(yes)]) for text, choices in zip(distinct, probabilities, strict=True)}
        return [p_yes[text] for text in texts]

    @property
    def remote(self) -> bool:
        """Whether a server runs the model."""
        return bool(getattr(registry.find("backend", self.backend), "remote", False))

    @property
    def _forms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _forms(self._tokenizer())

    @property
    def _limit(self) -> float:
        """Tokens that the model can read. A server is assumed to serve the model in this directory."""
        return checkpoints.positions(self.path, self.trust_remote_code)

    @property
    def _backend(self) -> Any:
        settings = {k: getattr(self, k) for k in ("path", "dtype", "device", "trust_remote_code")}
        backend = registry.load_with("backend", self.backend, settings, self.backend_options)
        if not (isinstance(backend, Backend) and isinstance(backend, Chooser)):
            raise ConfigError(
                f"genrm: backend {self.backend!r} can't give the probability of Yes (it has no choice_probs). "
                "Use another backend."
            )
        return backend

    def _tokenizer(self) -> Any:
        return checkpoints.load_tokenizer(self.path, self.trust_remote_code)


@lru_cache(maxsize=8)
def _forms(tokenizer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The forms of Yes and of No that are one token. If an answer has no such form, the first form of each."""
    yes, no = (tuple(f for f in forms if len(following_ids(tokenizer, VERDICT, f)) == 1) for forms in FORMS)
    return (yes, no) if yes and no else ((YES,), (NO,))


@dataclass(frozen=True, slots=True)
class _Votes:
    """The votes on one prompt."""

    p_yes: tuple[float, ...]  # after each rationale that ended
    rationales: tuple[str, ...] = ()
    tokens: int = 0  # generated
    truncated: int = 0  # rationales that ran out of tokens
    reason: str = ""  # why a rollout failed; "" if none did
    direct: bool = False

    def verification(self, id: str, prompt_tokens: int) -> Verification:
        """The verification of solution `id`, whose prompt has `prompt_tokens` tokens."""
        tokens = prompt_tokens + self.tokens
        if not self.p_yes:
            outcome = Outcome.TRUNCATED if self.truncated else Outcome.FAILED
            reason = "no rationale came to its end" if self.truncated else self.reason or "no rationale came"
            return Verification(id, (), 0.0, "last", outcome, reason, tokens=tokens)
        score = math.fsum(self.p_yes) / len(self.p_yes)
        votes = () if self.direct else self.p_yes
        return Verification(id, (score,), score, "last", rationales=self.rationales, votes=votes, tokens=tokens)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _ends_line(rationale: str) -> bool:
    """Whether the next text begins a line."""
    return not rationale or rationale.endswith("\n")


def _closed(rationale: str) -> str:
    """The rationale with the verdict's question at its end, on its own line."""
    return rationale + VERDICT if _ends_line(rationale) else f"{rationale}\n{VERDICT}"


def _only_reference(labelled: LabelledSolution) -> bool:
    return bool(labelled.labels) and all(label.source == REFERENCE for label in labelled.labels)

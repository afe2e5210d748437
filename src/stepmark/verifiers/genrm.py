"""Generative verifier: verification as next-token prediction (GenRM, Zhang et al., arXiv 2408.15240, section 3).

- mode="direct" (equations 4 and 5): the target is one token, " Yes" or " No", after the solution and the question
  whether its answer is correct; the score is p(Yes).
- mode="cot" (section 3.3): the target is a written verification that ends in that question and its answer. To score,
  `votes` rationales are sampled, and the score is the mean of p(Yes) after each: not a vote on what they say.
- generation > 0 (equation 6): L = SFT(verification) + lambda * SFT(correct solutions), each term a mean over its own
  tokens of an update. The correct solutions are those of the examples, and those that a recipe adds: references, and
  texts that the generator learned from, lest a small model forget them.

Choices of ours, which the paper leaves open: p(Yes) is renormalised over the forms of Yes and No that are one token to
this tokenizer; a rationale that ends without the question is asked it anyway; verification examples are balanced by
label; the solution is read without what it says about its own correctness (text/sanitize.py). All K rationales of a
solution share its encoded text, and solutions of the same text share their votes.

A trained verifier is an ordinary causal language model, which an ordinary server serves:

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
FORMS = ((YES, "Yes", " yes", "yes"), (NO, "No", " no", "no"))  # of each answer


@dataclass(frozen=True, slots=True)
class Lesson:
    """One text to learn: what is given, and what is to be said."""

    given: str
    said: str  # a verification up to its verdict's question; a solution
    answer: str = ""  # YES or NO; "" for a solution, which ends with the end token


@dataclass(frozen=True, slots=True)
class GenerativeVerifier:
    """Trains from, or scores with, the checkpoint at `path`."""

    path: str  # a causal language model to start from, or a trained verifier
    mode: Literal["direct", "cot"] = "direct"
    template: str = "{question}\n"  # how a question is put when it is to be solved
    prompt: str = ""  # text with one {problem}, the question so put, and one {solution}; "" takes the mode's own
    generation: float = 0.0  # lambda, the weight of generating correct solutions
    balance: bool = True  # learn from equally many verifications of right and of wrong solutions
    examples: int | None = (
        None  # most verifications to learn from; null takes all; 0 learns generation alone, a control
    )
    votes: int = 32  # K, rationales per solution
    temperature: float = 1.0  # of the rationales; 0 makes them all alike, so it asks for votes=1
    max_tokens: int = 512  # of a rationale
    keep: int = 4  # rationales that are stored with each verification
    seed: int = 0  # of the rationales
    backend: str = "local"  # what runs the model when scoring: one that can tell probabilities (protocols.Chooser)
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False

    generates: ClassVar[bool] = True  # it can learn from correct solutions that nobody verified

    def __post_init__(self) -> None:
        faults = []
        if self.mode not in PROMPTS:
            faults.append(f"genrm: mode is {' or '.join(PROMPTS)}, got {self.mode!r}.")
        if self.prompt and sorted(SLOT.findall(self.prompt)) != ["problem", "solution"]:
            faults.append(f"genrm: a prompt has one {{problem}} and one {{solution}}; got {self.prompt!r}.")
        if self.examples is not None and self.examples < 2 and not (self.examples == 0 and self.generation > 0):
            faults.append(f"genrm: examples must be at least 2, or 0 where generation is above 0; got {self.examples}.")
        for name, least in (("votes", 1), ("max_tokens", 1), ("keep", 0), ("temperature", 0), ("generation", 0)):
            if getattr(self, name) < least:
                faults.append(f"genrm: {name} must be at least {least}, got {getattr(self, name)}.")
        if self.temperature == 0 and self.votes > 1 and self.mode == "cot":
            faults.append(f"genrm: at temperature 0 all {self.votes} votes are one; give votes=1, or a temperature.")
        if faults:
            raise ConfigError(faults)

    # ---- text to ids: the one place, for training and scoring ----

    def ask(self, question: str, solution: str) -> str:
        """What the model is given: problem, solution, and for "direct" the verdict's question."""
        read_as = sanitize_text(solution).rstrip()
        fill = {"problem": Template(self.template).render(question), "solution": read_as}
        asked = SLOT.sub(lambda slot: fill[slot[1]], self.prompt or PROMPTS[self.mode])
        return asked + VERDICT if self.mode == "direct" else asked

    def corpus(self) -> tuple[str, ...]:
        """Texts that a tokenizer made for it should know."""
        return tuple(self.ask("", "").removesuffix(VERDICT) + VERDICT + answer for answer in (YES, NO))

    # ---- training ----

    def build(self) -> torch.nn.Module:
        return checkpoints.load_model(
            self.path, dtype="float32", device="cpu", trust_remote_code=self.trust_remote_code
        )

    def choose(self, examples: Sequence[tuple[Problem, LabelledSolution]]) -> Sequence[Lesson]:
        """Verifications, equally many of each verdict with `balance`; then correct solutions, with `generation`."""
        verifications = [lesson for example in examples for lesson in self._verifications(*example)]
        verifications = self._some(verifications)
        if not self.generation:
            return verifications
        solutions = {
            (p.question, x.solution.text): Lesson(Template(self.template)(p), x.solution.text)
            for p, x in examples
            if x.solution.spans and (x.grade.correct or _only_reference(x))
        }
        return [*verifications, *solutions.values()]

    def _some(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Those that are learned, in their order. Their texts' hashes say which: whoever may learn from more learns
        from the same ones and from others."""
        ordered = sorted(range(len(lessons)), key=lambda i: _name(repr(lessons[i])))  # places: a text may come twice
        most = len(lessons) if self.examples is None else self.examples
        kept = ordered[:most]
        if self.balance:
            each = [[i for i in ordered if lessons[i].answer == answer] for answer in (YES, NO)]
            least = min(most // 2, *map(len, each))
            kept = [i for some in each for i in some[:least]]
        return [lessons[i] for i in sorted(kept)]

    def _verifications(self, problem: Problem, labelled: LabelledSolution) -> Iterator[Lesson]:
        verdict = labelled.grade.verdict
        if verdict is Verdict.UNGRADABLE or not sanitize(labelled.solution).kept or _only_reference(labelled):
            return
        given = self.ask(problem.question, labelled.solution.text)
        answer = YES if verdict is Verdict.CORRECT else NO
        if self.mode == "direct":
            yield Lesson(given, "", answer)
            return
        for rationale in labelled.rationales:
            if rationale.kept:
                yield Lesson(given, rationale.text.removesuffix(VERDICT + answer) + VERDICT, answer)

    def encode_example(self, lesson: Lesson) -> Encoded:
        tokenizer = self._tokenizer()
        given = token_ids(tokenizer, lesson.given)[0]
        said = following_ids(tokenizer, lesson.given, lesson.said) if lesson.said else ()
        if not lesson.answer:
            ids = (*given, *said, tokenizer.eos_token_id)
            at = range(len(given) - 1, len(ids) - 1)  # where each token of the solution is predicted
            return Encoded(ids, at=tuple(at), targets=(1.0,) * len(at))
        answer = following_ids(tokenizer, lesson.said or lesson.given, lesson.answer)
        weights = (*(0.0,) * len(given), *(1.0,) * (len(said) + len(answer)))
        if self.mode == "direct":
            return Encoded((*given, *answer), weights=weights)
        return Encoded((*given, *said, *answer, tokenizer.eos_token_id), weights=(*weights, 1.0))

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """Equation 6, in nats: the mean over an update's verification tokens plus lambda times that over the tokens of
        its correct solutions."""
        import torch

        hidden = scoring.outputs(model, batch)
        head = model.get_output_embeddings()  # type: ignore[operator]
        loss = packing.next_token_loss_of(hidden, head, batch) / totals.next_tokens
        if len(batch.rows):
            logits = head(hidden[batch.rows, batch.columns]).float()
            nats = torch.nn.functional.cross_entropy(logits, batch.ids[batch.rows, batch.columns + 1], reduction="sum")
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
        """The same for the solutions of several questions at once, which fills the engine."""
        verifier_card.check_card(self.path, {}, Template(self.template).hash)
        flat = [(question, s) for question, solutions in asked for s in solutions]
        bad = [scoring.unfinished(s, "last") for _, s in flat]
        given = ["" if why else self.ask(question, s.text) for (question, s), why in zip(flat, bad, strict=True)]
        # Named by what is asked: the same solution drawn twice shares its votes.
        prompts = {text: Prompt(_name(text), text) for text in given if text}
        sizes = {text: len(token_ids(self._tokenizer(), text)[0]) for text in prompts}
        short = [prompt for text, prompt in prompts.items() if sizes[text] < self._limit]
        made = (self._direct if self.mode == "direct" else self._voted)(short)
        found = []
        for (_, s), why, text in zip(flat, bad, given, strict=True):
            why = why or scoring.too_long(s, "last", sizes[text] + 1, self._limit)
            found.append(why or made[prompts[text].id].verification(s.id, sizes[text]))
        return found

    def _direct(self, prompts: Sequence[Prompt]) -> dict[str, _Said]:
        chances = self._chances([p.context for p in prompts])
        return {p.id: _Said((chance,), direct=True) for p, chance in zip(prompts, chances, strict=True)}

    def _voted(self, prompts: Sequence[Prompt]) -> dict[str, _Said]:
        """`votes` rationales of each, and p(Yes) after each."""
        yes, no = self._forms
        choices = (*yes, *no)
        params = SamplingParams(self.max_tokens, self.temperature, stop=(VERDICT,), seed=self.seed, choices=choices)
        said: dict[str, list[Rollout]] = {p.id: [] for p in prompts}
        asked = [replace(p, n=self.votes) for p in prompts]
        for r in self._backend.sample(asked, params) if asked else ():
            said[r.prompt_id].append(r)
        contexts = {p.id: p.context for p in prompts}
        ended = [r for rollouts in said.values() for r in rollouts if r.finish is Finish.STOP]
        # Asked again: where the backend can't say in passing, and where the question came amid a line. A server can't
        # tell that from a text that ended without it, and both have to come to one score.
        again = [r for r in ended if not (r.choices and _own_line(r.text))]
        chances = {r.key: sum(r.choices[: len(yes)]) for r in ended if r.choices and _own_line(r.text)}
        more = self._chances([contexts[r.prompt_id] + _closed(r.text) for r in again])
        chances.update(zip((r.key for r in again), more, strict=True))
        found = {}
        for name, rollouts in said.items():
            rollouts.sort(key=lambda r: r.index)
            whole = [r for r in rollouts if r.key in chances]
            found[name] = _Said(
                tuple(chances[r.key] for r in whole),
                tuple(_closed(r.text) for r in whole[: self.keep]),
                sum(r.tokens for r in rollouts),
                cut=sum(r.finish is Finish.LENGTH for r in rollouts),
                reason=next((r.reason for r in rollouts if r.finish is Finish.FAILED), ""),
            )
        return found

    def _chances(self, texts: Sequence[str]) -> list[float]:
        """p(Yes) after each text."""
        (yes, no), asked = self._forms, list(dict.fromkeys(texts))
        told = self._backend.choice_probs(asked, [*yes, *no]) if asked else ()
        chances = {text: sum(found[: len(yes)]) for text, found in zip(asked, told, strict=True)}
        return [chances[text] for text in texts]

    @property
    def _forms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _forms(self._tokenizer())

    @property
    def _limit(self) -> float:
        """Tokens that the model reads; a server's model is taken to be this directory's."""
        return checkpoints.positions(self.path, self.trust_remote_code)

    @property
    def _backend(self) -> Any:
        taken = registry.options("backend", self.backend)
        own = {k: getattr(self, k) for k in ("path", "dtype", "device", "trust_remote_code")}
        given = {k: v for k, v in own.items() if k in taken} | dict(self.backend_options)
        made = registry.load("backend", self.backend, **given)
        if not (isinstance(made, Backend) and isinstance(made, Chooser)):
            raise ConfigError(f"genrm: backend {self.backend!r} can't tell probabilities (it has no choice_probs).")
        return made

    def _tokenizer(self) -> Any:
        return checkpoints.load_tokenizer(self.path, self.trust_remote_code)


@lru_cache(maxsize=8)
def _forms(tokenizer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The forms of Yes and of No that are one token; where an answer has none, the first form of each."""
    found = tuple(tuple(f for f in forms if len(following_ids(tokenizer, VERDICT, f)) == 1) for forms in FORMS)
    return (found[0], found[1]) if all(found) else ((YES,), (NO,))


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said of one solution."""

    chances: tuple[float, ...]  # p(Yes), after each rationale that ended
    rationales: tuple[str, ...] = ()
    tokens: int = 0  # written
    cut: int = 0  # rationales that ran out of tokens
    reason: str = ""  # why some never came
    direct: bool = False

    def verification(self, id: str, read: int) -> Verification:
        """`read`: tokens of what was asked."""
        tokens = read + self.tokens
        if not self.chances:
            outcome = Outcome.TRUNCATED if self.cut else Outcome.FAILED
            why = "no rationale came to its end" if self.cut else self.reason or "no rationale came"
            return Verification(id, (), 0.0, "last", outcome, why, tokens=tokens)
        score = math.fsum(self.chances) / len(self.chances)
        votes = () if self.direct else self.chances
        return Verification(id, (score,), score, "last", rationales=self.rationales, votes=votes, tokens=tokens)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _own_line(rationale: str) -> bool:
    """Whether what follows begins a line."""
    return not rationale or rationale.endswith("\n")


def _closed(rationale: str) -> str:
    """With the verdict's question at its end, on a line of its own."""
    return rationale + VERDICT if _own_line(rationale) else f"{rationale}\n{VERDICT}"


def _only_reference(labelled: LabelledSolution) -> bool:
    return bool(labelled.labels) and all(label.source == REFERENCE for label in labelled.labels)

"""Outcome verifier: one score for a whole solution (Math-Shepherd, equation 1; GenRM's discriminative baseline).

- head="token": one logit at the end token (AutoModelForSequenceClassification, one label), binary cross-entropy.
- head="tag": a language model predicts <good> or <bad> at a tag after the solution, as the process verifier does after
  each step. Only this head can also learn the text itself (`language_weight`), which a model that starts from random
  weights needs.

The label is the grade of the solution's final answer. Ungradable solutions are not learned from. Two options get more
from the same labels; both are off by default:
- every_token: the model also learns to predict the label at each token of the solution (Cobbe et al., arXiv 2110.14168,
  section 4.2). Only the score at the end is used.
- balance: as many right as wrong solutions of each question (ours). Otherwise the model can learn to tell easy
  questions from hard ones, which does not help to rank the solutions of one question.

    stepmark train orm --base generator/ --task arithmetic --labels L.jsonl --out orm/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepmark.errors import ConfigError
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded, boundaries, token_ids
from stepmark.models.tags import Tags, prepare, tags_of
from stepmark.plugins import verifier_card
from stepmark.text.prompts import Template
from stepmark.text.sanitize import sanitize, sanitize_text
from stepmark.types import LabelledSolution, Problem, Solution, Verdict, Verification

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OutcomeVerifier:
    """Trains from, or scores with, the checkpoint at `path`."""

    path: str  # a causal language model to start from, or a trained verifier
    # token: one logit at the end; tag: the probabilities of two words after a tag. auto: tag with a language_weight,
    # else token
    head: Literal["auto", "token", "tag"] = "auto"
    template: str = "{question}\n"
    # These three are one token each; a tokenizer that lacks the usual ones gets others (models/tags.py).
    tag: str = checkpoints.STEP  # head="token" reads none of them
    good: str = checkpoints.GOOD  # the text that stands for a right step or solution, one token
    bad: str = checkpoints.BAD  # the text that stands for a wrong one, one token
    language_weight: float = 0.0  # weight of the solution's own next-token loss
    every_token: float = 0.0  # share of the verification loss that falls on the solution's tokens before its end
    balance: bool = False  # train on equally many right and wrong solutions of each question
    dtype: str = "auto"  # of the weights while scoring; auto: bfloat16 where it is faster and agrees (precision.py)
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run

    def __post_init__(self) -> None:
        if self.head == "auto":
            object.__setattr__(self, "head", "tag" if self.language_weight else "token")
        if self.head == "token" and self.language_weight:
            raise ConfigError(
                "orm: language_weight needs head=tag; a one-logit head has no vocabulary to predict with."
            )
        if not 0 <= self.every_token <= 1:
            raise ConfigError(f"orm: every_token is a share of the loss, from 0 to 1, got {self.every_token}.")

    # ---- text to token ids, for training and scoring alike ----

    def encode(self, question: str, solution: Solution, grade: Verdict | None = None) -> Encoded:
        """Question, solution without its claims about itself, and one closing token whose output carries the score."""
        tokenizer = self._tokenizer()
        context = Template(self.template).render(question)
        ids, spans = token_ids(tokenizer, context + sanitize_text(solution.text).rstrip())
        at: tuple[int, ...] = (len(ids),)
        if grade is None:
            return Encoded((*ids, self._close), at=at)
        (start,) = boundaries(spans, [len(context)])
        if self.every_token:
            at = tuple(range(start, len(ids) + 1))
        weights = (*(float(t >= start) for t in range(len(ids))), 0.0) if self.language_weight else ()
        return Encoded(
            (*ids, self._close), at=at, targets=(float(grade is Verdict.CORRECT),) * len(at), weights=weights
        )

    # ---- training ----

    def build(self) -> torch.nn.Module:
        config: dict[str, Any] = {}
        if self.head == "token":
            config = {"num_labels": 1, "pad_token_id": self.pad_id, "new_head": True}
        model = checkpoints.load_model(
            self.path,
            self._auto_class(),
            dtype="float32",
            device="cpu",
            trust_remote_code=self.trust_remote_code,
            **config,
        )
        return prepare(model, self._tags(), self.path)  # type: ignore[no-any-return]

    def choose(
        self, examples: Sequence[tuple[Problem, LabelledSolution]]
    ) -> Sequence[tuple[Problem, LabelledSolution]]:
        """All examples; with `balance`, equally many of each grade per question, the first ones. The order stays."""
        if not self.balance:
            return examples
        verdicts = [(p.question, x.grade.verdict) for p, x in examples]
        counts = Counter(verdicts)
        seen: Counter[tuple[str, Verdict]] = Counter()
        kept = []
        for example, (question, verdict) in zip(examples, verdicts, strict=True):
            opposite = Verdict.INCORRECT if verdict is Verdict.CORRECT else Verdict.CORRECT
            seen[question, verdict] += 1
            if verdict is not Verdict.UNGRADABLE and seen[question, verdict] <= counts[question, opposite]:
                kept.append(example)
        return kept

    def encode_example(self, example: tuple[Problem, LabelledSolution]) -> Encoded | None:
        problem, labelled = example
        if labelled.grade.verdict is Verdict.UNGRADABLE or not sanitize(labelled.solution).kept:
            return None
        return self.encode(problem.question, labelled.solution, labelled.grade.verdict)

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """-[y log r + (1 - y) log(1 - r)], the mean over the update's solutions. The share `every_token` of the loss is
        spread over the tokens before the end."""
        import torch

        hidden = scoring.outputs(model, batch)
        # At a text token the whole vocabulary predicts the text, so the score there compares the two words only.
        log_bad, log_good = self._log_probs(model, hidden[batch.rows, batch.columns], among_all=not self.every_token)
        if self.every_token:
            end = batch.ids[batch.rows, batch.columns] == self._close
            shares = torch.where(
                end,
                (1 - self.every_token) / totals.sequences,
                self.every_token / max(1.0, totals.scores - totals.sequences),
            )
            loss = scoring.cross_entropy(log_bad * shares, log_good * shares, batch.targets)
        else:
            loss = scoring.cross_entropy(log_bad, log_good, batch.targets) / totals.scores
        if self.language_weight:
            text = packing.next_token_loss_of(hidden, scoring.output_layer(model), batch)
            loss = loss + self.language_weight * text / totals.next_tokens
        return loss

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, self._tokenizer())  # type: ignore[arg-type]
        options = {k: v for k, v in asdict(self).items() if k not in ("path", "device")} | dict(self._tags().texts)
        verifier_card.write_card(out, "orm", options, self._ids(), Template(self.template).hash)

    @property
    def _close(self) -> int:
        return int(self._ids()["tag"] if self.head == "tag" else self._tokenizer().eos_token_id)

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(self._tokenizer())

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each."""
        model = scoring.cached_model(self.path, self._auto_class(), self.dtype, self.device, self.trust_remote_code)
        verifier_card.check_card(self.path, self._ids(), Template(self.template).hash)
        return scoring.verify(
            solutions,
            lambda s: self.encode(question, s),
            lambda b: self._log_probs(model, scoring.outputs(model, b)[b.rows, b.columns])[1].exp(),
            aggregate="last",
            max_length=scoring.max_length(model),
            pad_id=self.pad_id,
            device=str(model.device),
        )

    # ---- shared by training and scoring ----

    def _log_probs(
        self, model: Any, hidden: torch.Tensor, among_all: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[K, D] -> log p(bad), log p(good), each [K]. `among_all`: over the whole vocabulary."""
        if self.head == "token":
            from torch.nn.functional import logsigmoid

            logit = model.score(hidden)[:, 0].float()
            return logsigmoid(-logit), logsigmoid(logit)
        ids = self._ids()
        log_probs = packing.log_probs_at(hidden, scoring.output_layer(model), (ids["bad"], ids["good"]))
        log_bad, log_good = (log_probs if among_all else log_probs.log_softmax(-1)).unbind(-1)
        return log_bad, log_good

    def _auto_class(self) -> str:
        return "CausalLM" if self.head == "tag" else "SequenceClassification"

    def _tokenizer(self) -> Any:
        return self._tags().tokenizer

    def _ids(self) -> Mapping[str, int]:
        return self._tags().ids

    def _tags(self) -> Tags:
        texts = {"tag": self.tag, "good": self.good, "bad": self.bad} if self.head == "tag" else {}
        return tags_of(self.path, self.trust_remote_code, **texts)

"""Outcome verifier: one score for a whole solution (Math-Shepherd, equation 1; GenRM's discriminative baseline).

- head="token": one logit at the end token (AutoModelForSequenceClassification, one label), binary cross-entropy.
- head="tag": a language model that says <good> or <bad> at a tag after the solution, as the process verifier
  does after each step. Only this head can learn from the text itself too (`language_weight`), which a model that
  starts from random weights needs.

The label is the grade of the solution's final answer. An ungradable solution teaches nothing.

    stepmark train orm --base generator/ --problems P.jsonl --labels L.jsonl --out orm/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepmark import checkpoints, packing, scoring
from stepmark.encoding import Encoded, token_ids
from stepmark.errors import ConfigError
from stepmark.prompts import Template
from stepmark.types import LabelledSolution, Problem, Solution, Verdict, Verification

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OutcomeVerifier:
    """Trains from, or scores with, the checkpoint at `path`."""

    path: str  # a causal language model to start from, or a trained verifier
    head: Literal["token", "tag"] = "token"
    template: str = "{question}\n"
    tag: str = checkpoints.STEP  # each of these three is one token; head="token" reads none of them
    good: str = checkpoints.GOOD
    bad: str = checkpoints.BAD
    language_weight: float = 0.0  # weight of the text's own next-token loss
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.head == "token" and self.language_weight:
            raise ConfigError(
                "orm: language_weight needs head=tag; a one-logit head has no vocabulary to predict with."
            )

    # ---- text to ids: the one place, for training and scoring ----

    def encode(self, question: str, solution: Solution, grade: Verdict | None = None) -> Encoded:
        """Question, solution, and one closing token whose output carries the score."""
        tokenizer = self._tokenizer()
        ids, _ = token_ids(tokenizer, Template(self.template).render(question) + solution.text.rstrip())
        close = self._ids()["tag"] if self.head == "tag" else tokenizer.eos_token_id
        at = (len(ids),)
        if grade is None:
            return Encoded((*ids, close), at=at)
        weights = (*(1.0 for _ in ids), 0.0) if self.language_weight else ()
        return Encoded((*ids, close), at=at, targets=(1.0 if grade is Verdict.CORRECT else 0.0,), weights=weights)

    # ---- training ----

    def build(self) -> torch.nn.Module:
        config: dict[str, Any] = {}
        if self.head == "token":
            config = {"num_labels": 1, "pad_token_id": self.pad_id, "new_head": True}
        return checkpoints.load_model(
            self.path, self._auto(), dtype="float32", device="cpu", trust_remote_code=self.trust_remote_code, **config
        )

    def encode_example(self, example: tuple[Problem, LabelledSolution]) -> Encoded | None:
        problem, labelled = example
        if labelled.grade.verdict is Verdict.UNGRADABLE or not labelled.solution.spans:
            return None
        return self.encode(problem.question, labelled.solution, labelled.grade.verdict)

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """-[y log r + (1 - y) log(1 - r)], the mean over the update's solutions."""
        hidden = scoring.outputs(model, batch)
        log_bad, log_good = self._logs(model, hidden[batch.rows, batch.columns], among_all=True)
        loss = scoring.cross_entropy(log_bad, log_good, batch.targets) / totals.scores
        if self.language_weight:
            logits: torch.Tensor = model.get_output_embeddings()(hidden)  # type: ignore[operator]
            loss = loss + self.language_weight * packing.next_token_loss(logits, batch) / totals.next_tokens
        return loss

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, self._tokenizer())  # type: ignore[arg-type]
        options = {k: v for k, v in asdict(self).items() if k not in ("path", "device")}
        scoring.write_card(out, "orm", options, self._ids(), Template(self.template).hash)

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(self._tokenizer())

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with a single score each."""
        model = scoring.cached_model(self.path, self._auto(), self.dtype, self.device, self.trust_remote_code)
        scoring.check_card(self.path, self._ids(), Template(self.template).hash)
        return scoring.verify(
            solutions,
            lambda s: self.encode(question, s),
            lambda b: self._logs(model, scoring.outputs(model, b)[b.rows, b.columns])[1].exp(),
            aggregate="last",
            max_length=scoring.max_length(model),
            pad_id=self.pad_id,
            device=str(model.device),
        )

    # ---- shared by both ----

    def _logs(self, model: Any, hidden: torch.Tensor, among_all: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """[K, D] -> log p(bad), log p(good), each [K]. `among_all`: of the whole vocabulary, not of the two."""
        if self.head == "token":
            from torch.nn.functional import logsigmoid

            logit = model.score(hidden)[:, 0].float()
            return logsigmoid(-logit), logsigmoid(logit)
        ids = self._ids()
        logits = model.lm_head(hidden).float()
        logs = (logits if among_all else logits[:, [ids["bad"], ids["good"]]]).log_softmax(-1)
        return (logs[:, ids["bad"]], logs[:, ids["good"]]) if among_all else (logs[:, 0], logs[:, 1])

    def _auto(self) -> str:
        return "CausalLM" if self.head == "tag" else "SequenceClassification"

    def _tokenizer(self) -> Any:
        return checkpoints.load_tokenizer(self.path, self.trust_remote_code)

    def _ids(self) -> Mapping[str, int]:
        tags = (("tag", self.tag), ("good", self.good), ("bad", self.bad))
        return scoring.tag_ids(self.path, self.trust_remote_code, *tags) if self.head == "tag" else {}

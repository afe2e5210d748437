"""Process verifier: one score per step, as in Math-Shepherd (section 3.4, equation 6).

A tag follows each step, and at the tag the model predicts good or bad.
- head="tag", the paper's form: a language model trained with cross-entropy on the token <good> or <bad> at the
  tag's own position. The score is the softmax over the logits of those two tokens.
- head="token": a two-class linear head at the tag (AutoModelForTokenClassification), as TRL and Qwen train it. The
  score is the probability of class 1.

The tag stays in the text that the next steps see. Training and scoring read the model's output at the same index, the
tag's own, without a shift. Hard labels are 0 or 1; soft labels are a two-point distribution. A step without evidence
has no target but keeps its tag.

    stepmark train prm --base generator/ --task arithmetic --labels L.jsonl --out prm/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stepmark.errors import ConfigError, EncodingError
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded, boundaries, token_ids
from stepmark.models.tags import Tags, prepare, tags_of
from stepmark.plugins import verifier_card
from stepmark.text.prompts import Template
from stepmark.text.sanitize import sanitize
from stepmark.types import LabelledSolution, Problem, Solution, StepLabel, Verification

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ProcessVerifier:
    """Trains from, or scores with, the checkpoint at `path`."""

    per_step: ClassVar[bool] = True  # a score for each step

    path: str  # a causal language model to start from, or a trained verifier
    # tag: the probabilities of two words at each tag; token: one logit at each tag
    head: Literal["tag", "token"] = "tag"
    labels: Literal["hard", "soft"] = "hard"  # the estimate of a step label to learn
    aggregate: str = "min"  # how step scores are combined into the solution's score
    template: str = "{question}\n"  # how the question is put before the solution
    # These three are one token each; a tokenizer that lacks the usual ones gets others (models/tags.py).
    tag: str = checkpoints.STEP  # head="token" reads only the first
    good: str = checkpoints.GOOD  # the text that stands for a right step or solution, one token
    bad: str = checkpoints.BAD  # the text that stands for a wrong one, one token
    language_weight: float = (
        0.0  # weight of the text's own next-token loss; helps a model that starts from random weights
    )
    dtype: str = "auto"  # of the weights while scoring; auto: bfloat16 where it is faster and agrees (precision.py)
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run

    def __post_init__(self) -> None:
        if self.head == "token" and self.language_weight:
            raise ConfigError("prm: language_weight needs head=tag; a token head has no vocabulary to predict with.")

    # ---- text to token ids, for training and scoring alike ----

    def encode(self, question: str, solution: Solution, labels: tuple[StepLabel, ...] | None = None) -> Encoded:
        """Question, then each step and its tag. With labels, each step that has evidence gets a target. The solution's
        claims about itself are left out, and so are steps that consist of nothing else.

        Raises EncodingError when the numbers of labels and steps differ."""
        if labels is not None and len(labels) != len(solution.spans):
            raise EncodingError(f"solution {solution.id} has {len(solution.spans)} steps and {len(labels)} labels.")
        sanitized = sanitize(solution)
        solution, labels = sanitized.solution, labels and sanitized.labels(labels)
        context = Template(self.template).render(question)
        ids, spans = token_ids(self._tokenizer(), context + solution.text)
        ends = [len(context) + start + len(solution.text[start:end].rstrip()) for start, end in solution.spans]
        tag, tagged, tags, start = self._ids()["tag"], list[int](), list[int](), 0
        for end in boundaries(spans, ends):
            tagged += ids[start:end]
            tags.append(len(tagged))
            tagged.append(tag)
            start = end
        if labels is None:
            return Encoded(tuple(tagged), at=tuple(tags))
        weights = tuple(0.0 if i == tag else 1.0 for i in tagged) if self.language_weight else ()
        known = [i for i, label in enumerate(labels) if label.known]
        targets = tuple(labels[i].hard if self.labels == "hard" else labels[i].soft for i in known)
        return Encoded(tuple(tagged), at=tuple(tags[i] for i in known), targets=targets, weights=weights)

    # ---- training ----

    def build(self) -> torch.nn.Module:
        config: dict[str, Any] = {} if self.head == "tag" else {"num_labels": 2, "new_head": True}
        model = checkpoints.load_model(
            self.path,
            self._auto_class(),
            dtype="float32",
            device="cpu",
            trust_remote_code=self.trust_remote_code,
            **config,
        )
        return prepare(model, self._tags(), self.path)  # type: ignore[no-any-return]

    def encode_example(self, example: tuple[Problem, LabelledSolution]) -> Encoded | None:
        problem, labelled = example
        encoded = self.encode(problem.question, labelled.solution, labelled.labels)
        return encoded if encoded.targets else None

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """-sum_i [y_i log r_i + (1 - y_i) log(1 - r_i)] over the update's labelled steps, divided by their
        number. With head="tag", log r_i is over the whole vocabulary: the model also learns to predict no other token
        there."""
        hidden = scoring.outputs(model, batch)
        log_bad, log_good = self._log_probs(model, hidden[batch.rows, batch.columns]).unbind(-1)
        loss = scoring.cross_entropy(log_bad, log_good, batch.targets) / totals.scores
        if self.language_weight:
            text = packing.next_token_loss_of(hidden, scoring.output_layer(model), batch)
            loss = loss + self.language_weight * text / totals.next_tokens
        return loss

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, self._tokenizer())  # type: ignore[arg-type]
        options = {k: v for k, v in asdict(self).items() if k not in ("path", "device")} | dict(self._tags().texts)
        verifier_card.write_card(out, "prm", options, self._ids(), Template(self.template).hash)

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(self._tokenizer())

    # ---- scoring ----

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order, with one score per step."""
        model = scoring.cached_model(self.path, self._auto_class(), self.dtype, self.device, self.trust_remote_code)
        verifier_card.check_card(self.path, self._ids(), Template(self.template).hash)
        return scoring.verify(
            solutions,
            lambda s: self.encode(question, s),
            lambda b: self._log_probs(model, scoring.outputs(model, b)[b.rows, b.columns]).softmax(-1)[:, 1],
            aggregate=self.aggregate,
            max_length=scoring.max_length(model),
            pad_id=self.pad_id,
            device=str(model.device),
            per_step=True,
        )

    # ---- shared by training and scoring ----

    def _log_probs(self, model: Any, hidden: torch.Tensor) -> torch.Tensor:
        """[K, D] outputs at the tags' own positions -> [K, 2] log-probabilities of bad and good: with head="tag" among
        the whole vocabulary."""
        if self.head == "tag":
            ids = self._ids()
            return packing.log_probs_at(hidden, scoring.output_layer(model), (ids["bad"], ids["good"]))
        log_probs: torch.Tensor = model.score(hidden).float().log_softmax(-1)
        return log_probs

    def _auto_class(self) -> str:
        return "CausalLM" if self.head == "tag" else "TokenClassification"

    def _tokenizer(self) -> Any:
        return self._tags().tokenizer

    def _ids(self) -> Mapping[str, int]:
        return self._tags().ids

    def _tags(self) -> Tags:
        texts = {"tag": self.tag, "good": self.good, "bad": self.bad} if self.head == "tag" else {"tag": self.tag}
        return tags_of(self.path, self.trust_remote_code, **texts)

"""One training loop for everything that learns: the generator, outcome and process verifiers.

What differs is the *trainee*: how it turns an example into token ids and targets, and its loss. A verifier's
trainee is the verifier itself, so what is trained and what is scored can't drift apart. The loop packs, casts,
accumulates, logs and checkpoints; killed at any moment, the same call goes on from the last checkpoint and
ends with the weights that an undisturbed run ends with.

    OUT/                    a Hugging Face checkpoint when training is over, and then trained.json
    OUT/train.jsonl         one line per logged update
    OUT/tensorboard/        the same figures for TensorBoard
    OUT/.training/          the newest checkpoint (weights, optimiser, place in the data), while it lasts

    stepmark train prm --base generator/ --labels labels.jsonl --out prm/
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from stepmark.data import store
from stepmark.data.store import write_json
from stepmark.errors import ConfigError, DataError
from stepmark.models import checkpoints, optimization, packing, training_log
from stepmark.models.encoding import Encoded, token_ids
from stepmark.text.prompts import Template
from stepmark.types import Place, Problem, Progress

if TYPE_CHECKING:
    import torch

Example = TypeVar("Example", contravariant=True)

KEPT = ".training"  # the checkpoint's directory


class Trainee(Protocol[Example]):
    """What the loop needs to know of the thing that learns."""

    def build(self) -> torch.nn.Module:
        """The module to train, with its starting weights."""
        ...

    def encode_example(self, example: Example) -> Encoded | None:
        """Ids and targets; None for an example that teaches nothing."""
        ...

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """This batch's share of the update's loss: summed over batches it is the update's mean."""
        ...

    def save(self, model: torch.nn.Module, out: Path) -> None:
        """Writes a checkpoint directory that scoring or sampling can load."""
        ...

    @property
    def pad_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. Raises ConfigError at once for values that can't be."""

    epochs: float = 1.0  # passes over the data
    lr: float = 1e-3  # peak learning rate (AdamW); a pretrained 7B model wants about 1e-6
    batch_tokens: int = 8192  # tokens per optimiser update
    accumulate: int = 1  # forward and backward passes that an update is split into, to save memory
    row_tokens: int = 256  # length of a packed row
    warmup: float = 0.05  # share of the updates over which the rate rises
    final_lr: float = 0.1  # rate at the end of the cosine, as a share of the peak
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # larger gradients are scaled down to this norm
    precision: str = "auto"  # float32, or bfloat16 autocast; auto picks what is faster here
    checkpoint_seconds: float = 30.0  # at most this much work is lost to a kill
    log_every: int = 10  # updates
    tensorboard: bool = True  # write event files too, where tensorboard is installed
    device: str = "auto"
    threads: int = 1  # CPU threads in a matrix product: two gain a third when idle, lose nine tenths when busy
    seed: int = 0  # order of the data, and new heads

    def __post_init__(self) -> None:
        faults = [
            f"train: {k} must be above 0, got {getattr(self, k)}."
            for k in (
                "epochs",
                "lr",
                "batch_tokens",
                "accumulate",
                "row_tokens",
                "max_grad_norm",
                "log_every",
                "threads",
            )
            if not getattr(self, k) > 0
        ]
        if not 0 <= self.warmup < 1:
            faults.append(f"train: warmup is a share of the updates, from 0 to below 1, got {self.warmup}.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            faults.append(f"train: precision is auto, float32 or bfloat16, got {self.precision!r}.")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to."""

    path: str  # the checkpoint directory
    examples: int  # sequences trained on
    skipped: int  # examples that taught nothing, or were longer than the model's positions
    updates: int
    tokens: int  # tokens seen, all epochs together
    loss: float  # mean over the last tenth of the updates
    seconds: float  # spent training, all sittings together


@dataclass(frozen=True, slots=True)
class Generator:
    """The trainee that makes a generator: next-token loss on demonstrations (supervised fine-tuning)."""

    path: str  # checkpoint to start from
    template: str = "{question}\n"
    prompt_loss_weight: float = 0.0  # next-token weight of the question's own tokens; above 0 helps from random weights
    trust_remote_code: bool = False

    def build(self) -> torch.nn.Module:
        return checkpoints.load_model(
            self.path, dtype="float32", device="cpu", trust_remote_code=self.trust_remote_code
        )

    def encode_example(self, example: Problem) -> Encoded | None:
        text = example.demonstration or example.reference
        if not text:
            return None
        tokenizer = checkpoints.load_tokenizer(self.path, self.trust_remote_code)
        context = Template(self.template)(example)
        ids, spans = token_ids(tokenizer, context + text)
        weights = [self.prompt_loss_weight if start < len(context) else 1.0 for start, _ in spans]
        return Encoded((*ids, tokenizer.eos_token_id), weights=(*weights, 1.0))

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).logits
        return packing.next_token_loss(logits, batch) / totals.next_tokens

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, checkpoints.load_tokenizer(self.path, self.trust_remote_code))  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(checkpoints.load_tokenizer(self.path, self.trust_remote_code))


def train(
    trainee: Trainee[Example],
    examples: Sequence[Example],
    out: Place,
    settings: TrainSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Trains, or goes on training, or returns at once when `out` holds the finished result of the same call.

    Raises ConfigChanged when `out` holds another configuration's, DataError when no example teaches anything."""
    settings = settings or TrainSettings()
    out = Path(out)
    if callable(getattr(trainee, "fit", None)):
        return _fit(trainee, examples, out)
    choose = getattr(trainee, "choose", None)  # optional: which of the examples are worth training on
    chosen = choose(examples) if choose is not None else examples
    encoded = [e for e in map(trainee.encode_example, chosen) if e is not None]
    if not encoded:
        raise DataError(
            f"none of the {len(examples)} examples has anything to learn from: no demonstration, or no label."
        )
    identity = {"trainee": _describe(trainee), "settings": asdict(settings), "data": _digest(encoded)}
    training_log.claim(out, identity)
    if (out / "trained.json").exists():
        return Trained(**json.loads((out / "trained.json").read_text()))
    return _Loop(trainee, encoded, out, settings, progress, skipped=max(0, len(examples) - len(encoded))).run()


def _fit(trainee: Any, examples: Sequence[Any], out: Path) -> Trained:
    """For a trainee of a few numbers, which has a closed way to them: `fit(examples, out)` returns on how many
    targets it did so. What it wrote is whole once trained.json is there."""
    facts = [(p.question, x.key, x.solution.text, x.labels, x.grade.verdict) for p, x in examples]
    data = hashlib.sha256(repr(facts).encode())
    training_log.claim(out, {"trainee": _describe(trainee), "data": data.hexdigest()[:16]})
    if not (out / "trained.json").exists():
        began = time.monotonic()
        try:
            count = trainee.fit(examples, out)
        except BaseException:  # nothing was computed that other data could spoil
            (out / "training.json").unlink(missing_ok=True)
            raise
        result = Trained(str(out), count, 0, 0, 0, 0.0, round(time.monotonic() - began, 2))
        write_json(out / "trained.json", asdict(result))
    return Trained(**json.loads((out / "trained.json").read_text()))


def _describe(trainee: object) -> dict[str, Any]:
    return {"kind": type(trainee).__name__, **{k: v for k, v in vars_of(trainee).items() if k != "device"}}


def vars_of(settings: object) -> dict[str, Any]:
    """A dataclass's fields, or nothing for an object that is none."""
    return asdict(settings) if hasattr(settings, "__dataclass_fields__") else {}  # type: ignore[call-overload]


def _digest(encoded: Sequence[Encoded]) -> str:
    h = hashlib.sha256()
    for e in encoded:
        h.update(repr((e.ids, e.at, e.targets, e.weights, *((e.parts,) if e.parts else ()))).encode())
    return h.hexdigest()[:16]


class _Loop(Generic[Example]):
    """The state of one training run. What update u does is a pure function of the seed, u and the weights."""

    def __init__(
        self,
        trainee: Trainee[Example],
        encoded: list[Encoded],
        out: Path,
        settings: TrainSettings,
        progress: Callable[[Progress], None] | None,
        skipped: int,
    ) -> None:
        import torch

        self.trainee, self.out, self.settings, self.progress = trainee, out, settings, progress
        self.device = checkpoints.resolve_device(settings.device)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        self.model = trainee.build().to(self.device).train()
        # Scoring refuses what is longer than the model's positions, so nothing longer is learned from either.
        limit = getattr(getattr(self.model, "config", None), "max_position_embeddings", math.inf)
        self.encoded = [e for e in encoded if e.longest <= limit]
        self.skipped = skipped + len(encoded) - len(self.encoded)
        if not self.encoded:
            raise DataError(f"each of the {len(encoded)} examples is longer than the model's {limit} positions.")
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
        self.rows_per_update = max(1, settings.batch_tokens // settings.row_tokens)
        self.plan = self._plan()
        self.updates = len(self.plan)
        self.update, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []

    def _plan(self) -> list[list[list[int]]]:
        """All updates. Epochs pack into more or fewer of them, so none is assumed to be as long as another."""
        whole = int(self.settings.epochs)
        plan = [update for epoch in range(whole) for update in self._epoch(epoch)]
        if part := self.settings.epochs - whole:
            last = self._epoch(whole)
            plan += last[: math.ceil(part * len(last))]
        return plan

    def _epoch(self, epoch: int) -> list[list[list[int]]]:
        """The epoch's updates: each a list of rows, each a list of sequences. Sequences too long for a row get
        their own."""
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.encoded))
        rows = packing.pack([len(e) for e in self.encoded], order.tolist(), self.settings.row_tokens)
        # Packing closes full rows first: shuffle, or the epoch would end on the leftovers.
        mix = np.random.default_rng([self.settings.seed, epoch, 1]).permutation(len(rows))
        size = self.rows_per_update
        return [[rows[r] for r in mix[i : i + size]] for i in range(0, len(rows), size)]

    def run(self) -> Trained:
        self._resume()
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        with self._writer() as write:
            for rows in self.plan[self.update :]:
                self.losses.append(self._step(rows))
                self.update += 1
                self.seconds = time.monotonic() - began
                if self.update % self.settings.log_every == 0 or self.update == self.updates:
                    write(self.update, float(np.mean(self.losses[-self.settings.log_every :])))
                if time.monotonic() - saved > self.settings.checkpoint_seconds:
                    self._checkpoint()
                    saved = time.monotonic()
        return self._finish()

    def _step(self, rows: list[list[int]]) -> float:
        import torch

        groups = [[[self.encoded[i] for i in row] for row in part] for part in _split(rows, self.settings.accumulate)]
        flat = [e for group in groups for row in group for e in row]
        totals = packing.Totals(
            scores=max(1.0, float(sum(len(e.targets) for e in flat))),
            next_tokens=max(1e-9, float(sum(sum(e.weights[1:]) for e in flat))),
            sequences=float(len(flat)),
        )
        torch.manual_seed(self.settings.seed * 1_000_003 + self.update)  # dropout is the same after a kill
        rate = self._rate(self.update)
        for g in self.optimizer.param_groups:
            g["lr"] = rate
        total = 0.0
        for group in groups:
            b = packing.batch(group, self.trainee.pad_id, self.device)
            with optimization.autocast(self.settings.precision, self.device):
                loss = self.trainee.loss(self.model, b, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm))
        for what, value in (("loss", total), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise DataError(
                    f"the {what} became {value} at update {self.update}; the weights were left as they were before it. "
                    f"Lower lr ({self.settings.lr}), in another directory, or look at the data."
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += sum(len(e) for e in flat)
        return total

    def _rate(self, update: int) -> float:
        s = self.settings
        return optimization.learning_rate(update, self.updates, s.lr, s.warmup, s.final_lr)

    # ---- what survives a kill ----

    def _checkpoint(self) -> None:
        """There is always a whole one, the old or the new."""
        import torch

        place = {"update": self.update, "tokens": self.tokens, "seconds": self.seconds, "losses": self.losses}
        with store.replacing(self.out / KEPT) as new:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, new / "state.pt")
            write_json(new / "place.json", place)

    def _resume(self) -> None:
        import torch

        kept = store.settled(self.out / KEPT)
        if not (kept / "place.json").exists():
            return
        state = torch.load(kept / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        place = json.loads((kept / "place.json").read_text())
        self.update, self.tokens = place["update"], place["tokens"]
        self.seconds, self.losses = place["seconds"], place["losses"]

    def _finish(self) -> Trained:
        self.trainee.save(self.model.eval(), self.out)
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        result = Trained(
            path=str(self.out),
            examples=len(self.encoded),
            skipped=self.skipped,
            updates=self.update,
            tokens=self.tokens,
            loss=float(np.mean(tail)),
            seconds=round(self.seconds, 2),
        )
        write_json(self.out / "trained.json", asdict(result))
        for place in self.out.glob(KEPT + "*"):
            shutil.rmtree(place, ignore_errors=True)
        return result

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Callable[[int, float], None]]:
        """Logs to train.jsonl, TensorBoard and the progress callback."""
        with training_log.writer(self.out, "train.jsonl", self.update, self.settings.tensorboard) as line:

            def write(update: int, loss: float) -> None:
                rate = self._rate(update - 1)
                line(update, {"loss": loss, "lr": rate}, {"tokens": self.tokens, "seconds": round(self.seconds, 3)})
                if self.progress is not None:
                    note = f"loss {loss:.4f}, {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s"
                    self.progress(Progress("train " + self.out.name, update, self.updates, self.seconds, note))

            yield write


def _split(rows: list[list[int]], parts: int) -> list[list[list[int]]]:
    size = -(-len(rows) // parts)
    return [rows[i : i + size] for i in range(0, len(rows), size)]

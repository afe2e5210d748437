"""One training loop for everything that learns: the generator, outcome and process verifiers.

Only the *trainee* differs: it encodes an example as token ids and targets, and computes the loss. A verifier is its
own trainee, so training and scoring use the same encoding. The loop packs sequences, sets the precision, accumulates
gradients, logs, and writes checkpoints. After a kill the same call resumes from the last checkpoint and ends with the
same weights as an uninterrupted run.

    OUT/                    a Hugging Face checkpoint and trained.json, written when training is finished
    OUT/train.jsonl         one line per logged update
    OUT/tensorboard/        the same figures for TensorBoard
    OUT/.training/          the newest training state (weights, optimiser, position in the data), removed at the end

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
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from stepmark.data import store
from stepmark.data.fingerprint import of_model
from stepmark.data.no_signal import without_signal
from stepmark.data.store import write_json
from stepmark.errors import ConfigError, DataError
from stepmark.models import checkpoints, first_pass, lora, optimization, packing, row_plan, throughput, training_log
from stepmark.models.encoding import Encoded, groups_to_learn, joint
from stepmark.models.generator import Generator as Generator
from stepmark.models.precision import is_large
from stepmark.models.training_progress import Reporter
from stepmark.types import Place, Progress

if TYPE_CHECKING:
    import torch

Example = TypeVar("Example", contravariant=True)

KEPT = ".training"  # directory of the training state


class Trainee(Protocol[Example]):
    """What the loop needs from a generator or verifier that is trained."""

    def build(self) -> torch.nn.Module:
        """The module to train, with its starting weights."""
        ...

    def encode_example(self, example: Example) -> Encoded | None:
        """Token ids and targets; None for an example without a training signal."""
        ...

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        """This batch's share of the update's loss. The sum over the update's batches is the mean loss."""
        ...

    def save(self, model: torch.nn.Module, out: Path) -> None:
        """Writes a checkpoint directory that scoring or sampling can load."""
        ...

    @property
    def pad_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of the training loop. Raises ConfigError for values out of range, all of them at once."""

    epochs: float = 1.0  # passes over the data
    lr: float = 1e-3  # peak learning rate (AdamW); a pretrained 7B model wants about 1e-6
    batch_tokens: int = 8192  # tokens per update
    accumulate: int = 1  # fewest forward and backward passes per update; more are made where memory is short
    row_tokens: int = 256  # length of a packed row
    # examples that begin alike, as solutions of a question do, have that once and share a row; auto: for large models
    share_prompts: bool | Literal["auto"] = "auto"
    warmup: float = 0.05  # share of the updates over which the learning rate rises
    final_lr: float = 0.1  # learning rate at the end of the cosine, as a share of the peak
    weight_decay: float = 0.01  # of AdamW, for matrices only
    max_grad_norm: float = 1.0  # larger gradients are scaled down to this norm
    lora: int = 0  # rank of LoRA adapters, which then learn in place of all weights; 0 for none
    lora_alpha: int = 0  # the adapters' output counts alpha / rank times; 0 takes twice the rank
    # keep only the inputs of layers and compute the rest again, which takes a third longer; auto: where memory is short
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    precision: str = "auto"  # float32, or bfloat16 autocast; auto: bfloat16 where it is faster and learns the same
    checkpoint_seconds: float = 30.0  # seconds between checkpoints: a kill loses at most this much work
    log_every: int = 10  # updates between log lines
    tensorboard: bool = True  # also write event files, if tensorboard is installed
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ...; auto is cuda or cpu
    threads: int = 1  # CPU threads of a matrix product: two are 1/3 faster on an idle machine, 10x slower on a busy one
    seed: int = 0  # of the order of the data and the weights of new heads

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
        faults += [
            f"train: {k} must be at least 0, got {getattr(self, k)}."
            for k in ("lora", "lora_alpha")
            if not getattr(self, k) >= 0
        ]
        if not 0 <= self.warmup < 1:
            faults.append(f"train: warmup must be a share of the updates, from 0 to below 1, got {self.warmup}.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            faults.append(f"train: precision must be auto, float32 or bfloat16, got {self.precision!r}.")
        faults += [
            f"train: {k} must be auto, true or false, got {getattr(self, k)!r}."
            for k in ("share_prompts", "gradient_checkpointing")
            if getattr(self, k) not in ("auto", True, False)
        ]
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training run, as trained.json stores it."""

    path: str  # the checkpoint directory
    examples: int  # sequences trained on
    skipped: int  # examples without a training signal, or longer than the model's positions
    updates: int
    tokens: int  # tokens seen, all epochs together
    loss: float  # mean over the last tenth of the updates
    seconds: float  # time spent training, summed over resumed calls
    tokens_per_second: float = 0.0
    share_of_peak: float | None = None  # of the device's matrix products (models/throughput.py); null: not measured
    precision: str = ""  # in which it was computed; unknown for a training of an earlier version
    gradient_checkpointing: bool = False  # whether activations were computed again for the gradients


def train(
    trainee: Trainee[Example],
    examples: Sequence[Example],
    out: Place,
    settings: TrainSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Trains, or resumes training, or returns at once when `out` holds the finished result of the same call.

    Raises ConfigChanged when `out` belongs to another configuration, and DataError when no example has a training
    signal."""
    settings = settings or TrainSettings()
    out = Path(out)
    if callable(getattr(trainee, "fit", None)):
        return _fit(trainee, examples, out)
    if settings.lora:
        lora.need()
    reporter = Reporter("train " + out.name, progress)
    reporter.say(f"encoding {len(examples):,} examples")
    choose = getattr(trainee, "choose", None)  # optional method of a trainee: selects the examples to train on
    chosen = choose(examples) if choose is not None else examples
    encoded = [e for x in reporter.encoding(chosen, len(chosen)) if (e := trainee.encode_example(x)) is not None]
    if not encoded:
        raise DataError(without_signal(examples))
    identity = {"trainee": _describe(trainee), "settings": asdict(settings), "data": _digest(encoded)} | _base(trainee)
    training_log.claim(out, identity)
    if (out / "trained.json").exists():
        return Trained(**json.loads((out / "trained.json").read_text()))
    return _Loop(trainee, encoded, out, settings, reporter, skipped=max(0, len(examples) - len(encoded))).run()


def _fit(trainee: Any, examples: Sequence[Any], out: Path) -> Trained:
    """Trains a trainee that has `fit` instead of a loss, such as a regression on a few features. `fit(examples, out)`
    writes the parameters and returns the number of targets. The result is complete once trained.json exists."""
    training_data = [(p.question, x.key, x.solution.text, x.labels, x.grade.verdict) for p, x in examples]
    data_digest = hashlib.sha256(repr(training_data).encode())
    training_log.claim(out, {"trainee": _describe(trainee), "data": data_digest.hexdigest()[:16]} | _base(trainee))
    if not (out / "trained.json").exists():
        started = time.monotonic()
        try:
            count = trainee.fit(examples, out)
        except BaseException:  # nothing is stored yet, so that a call with other data may use the directory
            (out / "training.json").unlink(missing_ok=True)
            raise
        result = Trained(str(out), count, 0, 0, 0, 0.0, round(time.monotonic() - started, 2))
        write_json(out / "trained.json", asdict(result))
    return Trained(**json.loads((out / "trained.json").read_text()))


def _describe(trainee: object) -> dict[str, Any]:
    return {"kind": type(trainee).__name__, **{k: v for k, v in vars_of(trainee).items() if k != "device"}}


def _base(trainee: object) -> dict[str, Any]:
    """The content of the checkpoints that a training starts from or uses. Their paths are among its settings."""
    places = [getattr(trainee, name, ()) for name in ("path", "verifier", "verifiers")]
    paths = [path for place in places for path in ([place] if isinstance(place, str) else place)]
    contents = [content for path in paths if (content := of_model(path)) is not None]
    return {training_log.BASE: contents} if contents else {}


def vars_of(settings: object) -> dict[str, Any]:
    """The fields of a dataclass; an empty dictionary for any other object."""
    return asdict(settings) if hasattr(settings, "__dataclass_fields__") else {}  # type: ignore[call-overload]


def _digest(encoded: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for e in encoded:
        digest.update(
            repr(
                (
                    e.ids,
                    e.at,
                    e.targets,
                    e.weights,
                    *((e.parts,) if e.parts else ()),
                )
            ).encode()
        )
    return digest.hexdigest()[:16]


class _Loop(Generic[Example]):
    """The state of one training run. Update u is a pure function of the seed, u and the weights."""

    def __init__(
        self,
        trainee: Trainee[Example],
        encoded: list[Encoded],
        out: Path,
        settings: TrainSettings,
        reporter: Reporter,
        skipped: int,
    ) -> None:
        import torch

        self.trainee, self.out, self.settings, self.reporter = trainee, out, settings, reporter
        reporter.say("loading the model")
        self.device = checkpoints.resolve_device(settings.device)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        self.model = trainee.build()
        self.adapted = lora.attach(self.model, settings.lora, settings.lora_alpha) if settings.lora else None
        self.model.to(self.device).train()
        # Scoring refuses sequences longer than the model's positions, so training leaves them out too.
        limit = getattr(getattr(self.model, "config", None), "max_position_embeddings", math.inf)
        self.encoded = [e for e in encoded if e.longest <= limit]
        self.skipped = skipped + len(encoded) - len(self.encoded)
        if not self.encoded:
            raise DataError(
                f"each of the {len(encoded)} examples is longer than the model's {limit} positions. "
                "Give shorter examples, or a model with more positions."
            )
        self.counts = [1] * len(self.encoded)  # examples in each sequence
        if settings.share_prompts is True or (settings.share_prompts == "auto" and is_large(self.model)):
            alike = groups_to_learn(self.encoded, settings.row_tokens)
            self.encoded = [joint([self.encoded[i] for i in group], learning=True) for group in alike]
            self.counts = [len(group) for group in alike]
        named = self.model.named_parameters(remove_duplicate=False)
        self.frozen = {name for name, p in named if not p.requires_grad}  # they are as the base has them
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
        self.rows = row_plan.Rows([len(e) for e in self.encoded], settings.row_tokens, settings.seed)
        self.plan = self.rows.updates(settings.epochs, settings.batch_tokens)
        self.updates = len(self.plan)
        self.update, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self.chosen = first_pass.Chosen()
        self.began = time.monotonic()
        self.work = throughput.work(self.model)
        self.peak = 0.0  # operations a second that the device can do; 0 where it was not measured
        tokens = sum(self.rows.width(row) for update in self.plan for row in update)
        reporter.updates, reporter.tokens = self.updates, tokens

    def run(self) -> Trained:
        import numpy as np

        resumed = self._resume()
        if not resumed:
            self.chosen = self._choose()
        if is_large(self.model):
            self.reporter.say("measuring the speed of the device")
            self.peak = throughput.peak(self.chosen.precision, self.device)
        self.reporter.note = str(self.chosen)
        self.reporter.at(self.update, 0, self.seconds, "going on" if resumed else "first update", self.reporter.note)
        started, last_save = time.monotonic() - self.seconds, time.monotonic()
        self.began = started
        with self._writer() as write:
            for rows in self.plan[self.update :]:
                self.losses.append(self._run_update(rows))
                self.update += 1
                self.seconds = time.monotonic() - started
                if self.update % self.settings.log_every == 0 or self.update == self.updates:
                    write(self.update, float(np.mean(self.losses[-self.settings.log_every :])))
                if time.monotonic() - last_save > self.settings.checkpoint_seconds:
                    self._checkpoint()
                    last_save = time.monotonic()
        return self._finish()

    def _run_update(self, rows: list[list[int]]) -> float:
        import torch

        groups = [
            [[self.encoded[i] for i in row] for row in rows_part]
            for part in row_plan.split(rows, self.settings.accumulate)
            for rows_part in self.rows.passes(part, self.chosen.pass_tokens)
        ]
        sequences = [e for group in groups for row in group for e in row]
        totals = packing.Totals(
            scores=max(1.0, float(sum(len(e.targets) for e in sequences))),
            next_tokens=max(1e-9, float(sum(sum(e.weights[1:]) for e in sequences))),
            sequences=float(sum(self.counts[i] for row in rows for i in row)),
        )
        torch.manual_seed(self.settings.seed * 1_000_003 + self.update)  # the same dropout after a resume
        rate = self._rate(self.update)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = rate
        total, done = 0.0, 0
        for group in groups:
            total += self._learn(group, totals, self.chosen.precision)
            done += sum(len(e) for row in group for e in row)
            last = self.losses[-1] if self.losses else None
            self.reporter.within(self.update, self.tokens + done, time.monotonic() - self.began, last)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm))
        for quantity, value in (("loss", total), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise DataError(
                    f"the {quantity} became {value} at update {self.update}; that update was not applied. "
                    f"Check the data, or train in another directory with a lower lr ({self.settings.lr})."
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += sum(len(e) for e in sequences)
        return total

    def _learn(self, rows: list[list[Encoded]], totals: packing.Totals, precision: str) -> float:
        """One pass forwards and backwards. Returns its share of the update's loss."""
        batch = packing.batch(rows, self.trainee.pad_id, self.device)
        with optimization.autocast(precision, self.device):
            loss = self.trainee.loss(self.model, batch, totals)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _choose(self) -> first_pass.Chosen:
        import torch

        def learn(row: list[int], precision: str) -> float:
            torch.manual_seed(self.settings.seed)
            return self._learn([[self.encoded[i] for i in row]], packing.Totals(1.0, 1.0, 1.0), precision)

        return first_pass.choose(
            self.model,
            self.settings.precision,
            self.settings.gradient_checkpointing,
            self.rows,
            self.plan,
            max(map(len, row_plan.split(self.plan[0], self.settings.accumulate))),
            torch.device(self.device),
            learn,
            self.reporter.say,
        )

    def _rate(self, update: int) -> float:
        s = self.settings
        return optimization.learning_rate(update, self.updates, s.lr, s.warmup, s.final_lr)

    # ---- saving and resuming ----

    def _checkpoint(self) -> None:
        """Replaces the stored training state. At any moment either the old or the new one is complete."""
        import torch

        progress = {"update": self.update, "tokens": self.tokens, "seconds": self.seconds, "losses": self.losses}
        progress["chosen"] = asdict(self.chosen)
        with store.replacing(self.out / KEPT) as new:
            weights = {k: v for k, v in self.model.state_dict().items() if k not in self.frozen}
            torch.save({"model": weights, "optimizer": self.optimizer.state_dict()}, new / "state.pt")
            write_json(new / "place.json", progress)

    def _resume(self) -> bool:
        """Whether there was a stored training state to go on from."""
        import torch

        checkpoint = store.settled(self.out / KEPT)
        if not (checkpoint / "place.json").exists():
            return False
        state = torch.load(checkpoint / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"], strict=not self.frozen)
        self.optimizer.load_state_dict(state["optimizer"])
        progress = json.loads((checkpoint / "place.json").read_text())
        self.update, self.tokens = progress["update"], progress["tokens"]
        self.seconds, self.losses = progress["seconds"], progress["losses"]
        asked = self.settings.precision
        if "chosen" in progress:
            self.chosen = first_pass.Chosen(**progress["chosen"])
        else:  # of an earlier version, which compared nothing
            narrow = asked == "bfloat16" or (asked == "auto" and self.device.startswith("cuda"))
            self.chosen = first_pass.Chosen("bfloat16" if narrow else "float32", False, progress.get("pass_tokens", 0))
        self.chosen = first_pass.resumed(self.chosen, asked, self.model, self.device)
        return True

    def _finish(self) -> Trained:
        import numpy as np

        if self.adapted is not None:
            lora.save(self.adapted, self.out, self.trainee.save)
        else:
            self.trainee.save(self.model.eval(), self.out)
        last_losses = self.losses[-max(1, len(self.losses) // 10) :]
        result = Trained(
            path=str(self.out),
            examples=sum(self.counts),
            skipped=self.skipped,
            updates=self.update,
            tokens=self.tokens,
            loss=float(np.mean(last_losses)),
            seconds=round(self.seconds, 2),
            tokens_per_second=round(self.tokens / max(self.seconds, 1e-9), 1),
            share_of_peak=self._share(0, self.seconds),
            precision=self.chosen.precision,
            gradient_checkpointing=self.chosen.checkpointing,
        )
        write_json(self.out / "trained.json", asdict(result))
        for directory in self.out.glob(KEPT + "*"):
            shutil.rmtree(directory, ignore_errors=True)
        return result

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Callable[[int, float], None]]:
        """A function that logs to train.jsonl, TensorBoard and the progress callback."""
        with training_log.writer(self.out, "train.jsonl", self.update, self.settings.tensorboard) as line:
            before = [self.update, self.tokens, self.seconds]  # at the line before

            def write(update: int, loss: float) -> None:
                seconds = max(self.seconds - before[2], 1e-9)
                figures = {"loss": loss, "lr": self._rate(update - 1)}
                figures["tokens_per_second"] = round((self.tokens - before[1]) / seconds, 1)
                share = self._share(int(before[0]), seconds)
                figures |= {"share_of_peak": share} if share is not None else {}
                line(update, figures, {"tokens": self.tokens, "seconds": round(self.seconds, 3)})
                notes = [f"loss {loss:.4f}", *([f"{share:.0%} of peak"] if share is not None else ())]
                self.reporter.at(update, self.tokens, self.seconds, *notes)
                before[:] = [update, self.tokens, self.seconds]

            yield write

    def _share(self, first: int, seconds: float) -> float | None:
        """The share of the device's peak in the updates from `first` on, done in `seconds`; None if not measured."""
        if not self.peak:
            return None
        done = (self.encoded[i] for rows in self.plan[first : self.update] for row in rows for i in row)
        return round(self.work.of_training(done) / max(seconds, 1e-9) / self.peak, 4)

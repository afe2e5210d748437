"""Continuous batched decoding over shared prefixes, with the model's own Hugging Face modules.

The model's embeddings, projections, rotary code and head run unchanged. Only attention is replaced, through
transformers' AttentionInterface, by an attention in which rows share a trunk (cohort.py). Every pass is one flat
sequence of tokens, each with its own position, so the matrix products contain no padding. What all trunks of a call
begin with, such as a few-shot prompt, is encoded once.

Rows of different cohorts decode together. Rows that finish free their places, and when enough places are free, the next
trunks are encoded and join. Rollouts that draw the same tokens share a row, so the number of new trunks is chosen such
that about `batch` rows are expected. If a model's attention can't be replaced exactly, plain.py decodes instead, slower
and with the same results. The engine compares logits at its start to find out (check.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface

from stepmark.backends.local.check import fault
from stepmark.backends.local.cohort import Cohort, Decoding, Encoding, Root, Trunk
from stepmark.backends.local.draw import draw, numbers, uniforms
from stepmark.data import notes, token_meter
from stepmark.models import memory
from stepmark.models.attention import Unsupported, rule_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ATTENTION = "stepmark_shared"
ENCODE_TOKENS = {"cpu": 2048, "cuda": 16384}  # flat positions per encoding pass; bounds its activations
MEMORY = 0.6  # share of the free memory for rollouts, if all have full length and no two share a row
ALIKE = 4  # largest ratio of rollouts to rows if earlier rollouts shared rows, since later ones may split
REFILL = 0.5  # share of places that must be free before new trunks are encoded
UNSHARED = "Each prefix is encoded anew, which makes labels take about four times as long."  # measured: 171 s, not 39
ROOT = 16  # fewest tokens that are worth a pass of their own


@dataclass(frozen=True, slots=True)
class Draws:
    """The sampling settings, and the rule that ends a rollout."""

    temperature: float
    top_p: float
    ends: np.ndarray  # [V] bool: tokens that end a text
    watched: np.ndarray  # [V] bool: tokens that may complete a stop string
    stopped: Callable[[int, np.ndarray], bool]  # (stream's name, own tokens) -> whether their text has a stop string
    choices: np.ndarray | None = None  # [C] tokens whose probabilities after a stop string are wanted


@dataclass(frozen=True, slots=True)
class Done:
    """A finished rollout."""

    name: int
    ids: tuple[int, ...]  # own tokens, end token included
    stopped: bool  # True at an end token or stop string; False when the budget ran out
    logprob: float  # sum over `ids`, in nats
    choices: tuple[float, ...] = ()  # after a stop string, the probability of each of `Draws.choices` among them


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rollout: Root | Encoding | Decoding | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: [1, heads, P, D] in, [1, P, heads, D] out. `rollout` decides which
    positions each query sees."""
    if rollout is None or query.shape[0] != 1:
        raise Unsupported("the model doesn't pass its keyword arguments to attention")
    rule = rule_of(module, query.shape[-1], scaling, options)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return rollout.attend(int(module.layer_idx), q, k, v, rule).unsqueeze(0), None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, shared_attention)


class Engine:
    """A loaded model that samples rollouts. `text`: token ids of ordinary text, to check the shared attention with.
    `said`: notes about how the model was loaded."""

    def __init__(
        self, model: PreTrainedModel, batch: int = 0, text: Sequence[int] = (), said: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.device = model.device
        self.config: Any = model.config.get_text_config()
        # On a CPU a batch should be large compared with the cost of calling an operation, and fit into the caches. The
        # best size was measured at about 512 rows for a 256-wide model, and 2048 rows for a 64-wide one.
        default = 1024 if self.device.type == "cuda" else min(2048, max(128, 131072 // self.config.hidden_size))
        self.batch = batch or default  # rows
        self.bound = batch or 1 << 30  # concurrent rollouts; an explicit batch limits these too
        self.limit = int(getattr(self.config, "max_position_embeddings", None) or 1 << 30)
        self.plain_attention: str = model.config._attn_implementation
        self.kept: tuple[list[tuple[int, int]], Root] | None = None  # the last root, and the weights that it is of
        self.fault = fault(self, text)  # why prefixes can't be shared; "" if they can
        self.kept = None  # the comparison had windows of its own
        if self.fault:
            unshared = f"{type(model).__name__} is decoded without prefix sharing: {self.fault}. {UNSHARED}"
        self.notes = (*said, *([unshared] if self.fault else []))
        self.say()

    def say(self) -> None:
        """Says what is slower with this model than it could be."""
        for note in self.notes:
            notes.say(log, note)

    @property
    def sharing(self) -> bool:
        """Whether rollouts share the keys and values of their prefixes."""
        return not self.fault

    @property
    def packs(self) -> bool:
        """Whether the attention for packed rows can take the place of the model's own."""
        return bool(getattr(self.model, "_supports_attention_backend", False))

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return int(head.weight.shape[0])

    def end_ids(self, tokenizer_end: int | None) -> set[int]:
        """Tokens that end a text. The checkpoint's generation settings and its tokenizer may have different ones."""
        config = self.model.generation_config
        configured = config.eos_token_id if config is not None else None
        ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer_end}
        return {int(e) for e in ends if e is not None}

    # -- which attention -------------------------------------------------------------------------------------

    def use(self, attention: str) -> None:
        """Switches the model between shared attention and its plain attention."""
        if self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)

    # -- passes ----------------------------------------------------------------------------------------------

    def _pass(
        self, ids: np.ndarray, positions: np.ndarray, rollout: Root | Encoding | Decoding, keep: np.ndarray | None
    ) -> torch.Tensor:
        """Logits [P, V] of the flat positions in `keep`, or of all positions."""
        self.use(ATTENTION)  # at every pass, since the caller may use the model between two rollouts
        inputs = torch.from_numpy(np.stack([ids, positions])).to(self.device)
        out = self.model(
            input_ids=inputs[:1],
            position_ids=inputs[1:],
            use_cache=False,
            logits_to_keep=0 if keep is None else torch.from_numpy(keep).to(self.device),
            rollout=rollout,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    @torch.inference_mode()
    def root(self, trunks: Sequence[Trunk]) -> Root:
        """What all trunks begin with, encoded; empty if that is too short to be worth it. Each row keeps a token of its
        prefix for its trunk, since that gives its first logits.

        The last root serves again, so a few-shot prompt is read once for all calls."""
        ends = (min(t.ids for t in trunks), max(t.ids for t in trunks)) if len(trunks) > 1 else ((), ())
        common = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
        length = min([common, *(x.at - 1 for t in trunks for x in t.streams)])
        weights = [(p.data_ptr(), p._version) for p in self.model.parameters()]  # a policy learns between two calls
        if self.kept is not None and self.kept[0] == weights:
            old = self.kept[1]
            same = next((i for i, (a, b) in enumerate(zip(old.ids, ends[0], strict=False)) if a != b), len(old.ids))
            if min(same, length) >= max(ROOT, length - ROOT):
                return old.beginning(min(same, length))
        root = Root(ends[0][:length] if length >= ROOT else ())
        if root.ids:
            ids = np.array(root.ids)
            self._pass(ids, np.arange(length), root, np.array([length - 1]))
            self.kept = weights, root
        return root

    def encode(self, trunks: Sequence[Trunk], root: Root | None = None) -> tuple[Cohort, torch.Tensor]:
        """A cohort with its trunks encoded, and the logits after each row's prefix, [R, V]."""
        cohort = Cohort(trunks, self.device, root)
        skip = len(cohort.root.ids)
        lengths = [len(t.ids) - skip for t in trunks]
        logits: list[torch.Tensor] = []
        start = 0
        while start < len(trunks):
            end, width = start + 1, lengths[start]
            max_tokens = ENCODE_TOKENS.get(self.device.type, 2048)
            while end < len(trunks) and max(width, lengths[end]) * (end + 1 - start) <= max_tokens:
                width = max(width, lengths[end])
                end += 1
            part = trunks[start:end]
            ids = np.zeros((len(part), width), dtype=np.int64)
            for g, trunk in enumerate(part):
                ids[g, : len(trunk.ids) - skip] = trunk.ids[skip:]
            positions = np.broadcast_to(np.arange(skip, skip + width), ids.shape)
            rows = (cohort.trunk_of >= start) & (cohort.trunk_of < end)
            keep = (cohort.trunk_of[rows] - start) * width + cohort.at[rows] - skip - 1
            logits.append(self._pass(ids.ravel(), positions.ravel(), Encoding(cohort, start, len(part), width), keep))
            start = end
        return cohort, torch.cat(logits)

    def decode(self, cohorts: Sequence[Cohort]) -> torch.Tensor:
        """Stores every row's newest token and returns the logits after it, [R over all cohorts, V]."""
        ids = np.concatenate([c.last for c in cohorts])
        positions = np.concatenate([c.positions for c in cohorts])
        logits = self._pass(ids, positions, Decoding(cohorts), None)
        for cohort in cohorts:
            cohort.advance()
        return logits

    def room(self, reach: int) -> int:
        """Largest number of concurrent rollouts of `reach` positions: limited by memory and by the caller's `batch`."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        position = 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize
        drawing = 4 * 4 * self.vocab  # float32 logits and the arrays computed from them
        return max(1, min(self.bound, int(MEMORY * memory.free(self.device) / (reach * position + drawing))))

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self, trunks: Iterable[Trunk], draws: Draws) -> Iterator[Done]:
        """Samples every stream."""
        trunks = list(trunks)
        root = self.root(trunks) if trunks else Root()
        reach = max((len(t.ids) + max(x.budget for x in t.streams) for t in trunks), default=1)
        max_streams = self.room(reach - len(root.ids))
        batch = min(self.batch, max_streams)
        waiting = deque(Trunk(t.ids, t.streams[a : a + batch]) for t in trunks for a in range(0, len(t.streams), batch))
        cohorts: list[Cohort] = []
        share = 1.0  # rows per rollout in the latest finished cohort
        while waiting or cohorts:
            # A cohort starts with one row per prefix. Its later number of rows is estimated from earlier cohorts.
            free = batch - sum(max(c.live, share * len(c.names)) for c in cohorts)
            left = min(max_streams, ALIKE * batch) - sum(len(c.names) for c in cohorts)
            part: list[Trunk] = []
            if not cohorts or free >= REFILL * batch:
                while waiting and len(waiting[0].streams) <= left and (rows := _rows(waiting[0], share)) <= free:
                    part.append(waiting.popleft())
                    free -= rows
                    left -= len(part[-1].streams)
            yield from self._advance([] if part else cohorts, part, root, draws, cohorts)
            for finished in (c for c in cohorts if not c.live):
                share = finished.peak / finished.admitted
            cohorts = [c for c in cohorts if c.live]

    @torch.inference_mode()
    def _advance(
        self, active: Sequence[Cohort], new_trunks: Sequence[Trunk], root: Root, draws: Draws, cohorts: list[Cohort]
    ) -> list[Done]:
        """Draws one more token for every stream of `active`, or the first token for the streams of `new_trunks`, which
        join `cohorts`."""
        if new_trunks:
            cohort, logits = self.encode(new_trunks, root)
            active = [cohort]
            cohorts.append(cohort)
        else:
            logits = self.decode(active)
        starts = np.cumsum([0, *(c.live for c in active)])
        row_of = np.concatenate([c.row_of + start for c, start in zip(active, starts[:-1], strict=True)])
        rank, u = np.zeros_like(row_of), None  # rank: number of a stream among the streams of its row
        if draws.temperature > 0:
            counts = np.bincount(row_of)
            rank = np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts)
            keys = np.concatenate([c.keys for c in active])
            t = np.repeat([c.step for c in active], [len(c.keys) for c in active])
            grid = np.zeros((len(counts), counts.max()))
            grid[row_of, rank] = uniforms(keys, t)
            u = numbers(grid, self.device)
        drawn = draw(logits, u, draws.temperature, draws.top_p)
        ids, logprobs = (x.cpu().numpy()[row_of, rank] for x in drawn)
        done: list[Done] = []
        first = 0
        for cohort, start in zip(active, starts[:-1], strict=True):
            part = slice(first, first + len(cohort.names))
            first = part.stop
            closing = cohort.closing[: cohort.live]
            chosen = chances(logits[start : start + cohort.live], closing, draws.choices)
            unfinished = ~closing[cohort.row_of]  # a token drawn after the end of a text does not belong to it
            token_meter.add(int(unfinished.sum()))
            cohort.put(ids[part] * unfinished, logprobs[part] * unfinished)
            done += self._finish(cohort, draws, chosen)
        return done

    def _finish(self, cohort: Cohort, draws: Draws, chosen: dict[int, tuple[float, ...]]) -> list[Done]:
        """The rollouts that end with their newest token. `chosen` has the choices' probabilities for the closing rows,
        whose text ended one token ago and which stayed for one more pass."""
        newest, length = cohort.last, cohort.step + 1
        closed = cohort.closing[: cohort.live].copy()
        ended, staying = draws.ends[newest] & ~closed, np.zeros_like(closed)
        for r in np.flatnonzero(draws.watched[newest] & ~ended & ~closed):
            name = int(cohort.names[np.searchsorted(cohort.row_of, r)])
            if draws.stopped(name, cohort.tokens[r, :length]):
                (ended if draws.choices is None else staying)[r] = True
        row_of = cohort.row_of
        gone = (ended | closed)[row_of] | ((cohort.budgets <= length) & ~staying[row_of])
        done = [
            Done(
                name=int(cohort.names[b]),
                ids=tuple(cohort.tokens[r, : length - closed[r]].tolist()),
                stopped=bool(ended[r] or closed[r]),
                logprob=float(cohort.logprobs[b]),
                choices=chosen.get(int(r), ()),
            )
            for b, r in zip(np.flatnonzero(gone), row_of[gone], strict=True)
        ]
        cohort.closing[: cohort.live] |= staying
        if done:
            cohort.drop(gone)
        return done


def _rows(trunk: Trunk, share: float) -> float:
    """Expected number of rows of a trunk: at least one for each of its prefixes."""
    return max(share * len(trunk.streams), len({x.at for x in trunk.streams}))


def chances(logits: torch.Tensor, closing: np.ndarray, choices: np.ndarray | None) -> dict[int, tuple[float, ...]]:
    """For each closing row, the probability of each token of `choices` among them."""
    rows = np.flatnonzero(closing)
    if choices is None or not len(rows):
        return {}
    index, tokens = (torch.from_numpy(x).to(logits.device) for x in (rows, choices))
    probabilities = logits.index_select(0, index)[:, tokens].cpu().double().softmax(-1)
    return {int(r): tuple(p) for r, p in zip(rows, probabilities.tolist(), strict=True)}

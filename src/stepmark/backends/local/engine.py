"""Continuous batched decoding over shared prefixes, with the model's own Hugging Face modules.

The model's embeddings, projections, rotary code and head run unchanged. Only attention is replaced, through
transformers' AttentionInterface, by an attention in which rows share a trunk (cohort.py). Every pass is one flat
sequence of tokens, each with its own position, so the matrix products contain no padding.

Rows of different cohorts decode together. Rows that finish free their places, and when enough places are free, the next
trunks are encoded and join. Rollouts that draw the same tokens share a row, so the number of new trunks is chosen such
that about `batch` rows are expected. If a model's attention can't be replaced exactly, plain.py decodes instead, slower
and with the same results. The engine compares logits at its start to find out.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface

from stepmark import machine
from stepmark.backends.local.cohort import Cohort, Decoding, Encoding, Stream, Trunk
from stepmark.backends.local.draw import draw, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ATTENTION = "stepmark_shared"
ENCODE_TOKENS = {"cpu": 2048, "cuda": 16384}  # flat positions per encoding pass; bounds its activations
MEMORY = 0.6  # share of the free memory for rollouts, if all have full length and no two share a row
ALIKE = 4  # largest ratio of rollouts to rows if earlier rollouts shared rows, since later ones may split
REFILL = 0.5  # share of places that must be free before new trunks are encoded
# In standard deviations of the logits, see `_check`
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}


class Unsupported(Exception):
    """The model's attention needs a feature that shared attention lacks."""


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
    rollout: Encoding | Decoding | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: [1, heads, P, D] in, [1, P, heads, D] out. `rollout` decides which
    positions each query sees."""
    if rollout is None or query.shape[0] != 1:
        raise Unsupported("the model doesn't pass its keyword arguments to attention")
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise Unsupported(f"its attention uses {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return rollout.attend(int(module.layer_idx), q, k, v, scale).unsqueeze(0), None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, shared_attention)


class Engine:
    """A loaded model that samples rollouts."""

    def __init__(self, model: PreTrainedModel, batch: int = 0) -> None:
        self.model = model
        self.device = model.device
        # On a CPU a batch should be large compared with the cost of calling an operation, and fit into the caches. The
        # best size was measured at about 512 rows for a 256-wide model, and 2048 rows for a 64-wide one.
        default = 1024 if self.device.type == "cuda" else min(2048, max(128, 131072 // model.config.hidden_size))
        self.batch = batch or default  # rows
        self.bound = batch or 1 << 30  # concurrent rollouts; an explicit batch limits these too
        self.limit = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        self.plain_attention: str = model.config._attn_implementation
        self.sharing = self._check()

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

    @property
    def window(self) -> int:
        """Length of the longest sequence in which every position sees all positions before it."""
        config = self.model.config
        sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min((size for size in sizes if size), default=self.limit)

    def use(self, attention: str) -> None:
        """Switches the model between shared attention and its plain attention."""
        if self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)

    @torch.inference_mode()
    def _check(self) -> bool:
        """Whether shared attention gives this model's logits. Compares two prefixes, and one more token."""
        if not getattr(self.model, "_supports_attention_backend", False):
            return self._refuse("it doesn't use transformers' attention interface")
        if str(getattr(self.model.config, "rope_parameters", None) or "").find("'dynamic'") >= 0:
            return self._refuse("its rotary embeddings depend on the length of the sequence")
        ids = [(7919 * i + 11) % self.vocab for i in range(min(12, self.limit))]
        cuts = sorted({max(1, len(ids) // 2), len(ids) - 1})
        plain = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0].float()
        try:
            trunk = Trunk(tuple(ids), tuple(Stream(i, cut, 0, 2) for i, cut in enumerate(cuts)))
            cohort, first = self.encode([trunk])
            cohort.put(np.array([ids[cut] for cut in cuts]), np.zeros(len(cuts)))
            second = self.decode([cohort])
        except Exception as e:  # a model's own code may raise anything here; plain decoding still works
            self.use(self.plain_attention)
            return self._refuse(str(e))
        spread = plain.std().item() or 1.0
        expected = torch.cat([plain[[c - 1 for c in cuts]], plain[cuts]])
        error = (torch.cat([first, second]).float() - expected).abs().max().item() / spread
        if not error < TOLERANCE.get(self.model.dtype, 1e-3):
            self.use(self.plain_attention)
            return self._refuse(f"its logits differ by {error:.2g} standard deviations")
        return True

    def _refuse(self, reason: str) -> bool:
        log.warning("%s is decoded without prefix sharing: %s.", type(self.model).__name__, reason)
        return False

    # -- passes ----------------------------------------------------------------------------------------------

    def _pass(
        self, ids: np.ndarray, positions: np.ndarray, rollout: Encoding | Decoding, keep: np.ndarray | None
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

    def encode(self, trunks: Sequence[Trunk]) -> tuple[Cohort, torch.Tensor]:
        """A cohort with its trunks encoded, and the logits after each row's prefix, [R, V]."""
        cohort = Cohort(trunks, self.device)
        logits: list[torch.Tensor] = []
        start = 0
        while start < len(trunks):
            end, width = start + 1, len(trunks[start].ids)
            max_tokens = ENCODE_TOKENS.get(self.device.type, 2048)
            while end < len(trunks) and max(width, len(trunks[end].ids)) * (end + 1 - start) <= max_tokens:
                width = max(width, len(trunks[end].ids))
                end += 1
            part = trunks[start:end]
            ids = np.zeros((len(part), width), dtype=np.int64)
            for g, trunk in enumerate(part):
                ids[g, : len(trunk.ids)] = trunk.ids
            positions = np.broadcast_to(np.arange(width), ids.shape)
            rows = (cohort.trunk_of >= start) & (cohort.trunk_of < end)
            keep = (cohort.trunk_of[rows] - start) * width + cohort.at[rows] - 1
            logits.append(self._pass(ids.ravel(), positions.ravel(), Encoding(cohort, start, len(part), width), keep))
            start = end
        return cohort, torch.cat(logits)

    def decode(self, cohorts: Sequence[Cohort]) -> torch.Tensor:
        """Stores every row's newest token and returns the logits after it, [R over all cohorts, V]."""
        ids = np.concatenate([c.last for c in cohorts])
        positions = np.concatenate([c.positions for c in cohorts])
        logits = self._pass(ids, positions, Decoding(cohorts), None)
        for cohort in cohorts:
            cohort.step += 1
        return logits

    def room(self, reach: int) -> int:
        """Largest number of concurrent rollouts of `reach` positions: limited by memory and by the caller's `batch`."""
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        position = 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize
        drawing = 4 * 4 * self.vocab  # float32 logits and the arrays computed from them
        return max(1, min(self.bound, int(MEMORY * _free_memory(self.device) / (reach * position + drawing))))

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self, trunks: Iterable[Trunk], draws: Draws) -> Iterator[Done]:
        """Samples every stream."""
        trunks = list(trunks)
        max_streams = self.room(max((len(t.ids) + max(x.budget for x in t.streams) for t in trunks), default=1))
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
            yield from self._advance([] if part else cohorts, part, draws, cohorts)
            for finished in (c for c in cohorts if not c.live):
                share = finished.peak / finished.admitted
            cohorts = [c for c in cohorts if c.live]

    @torch.inference_mode()
    def _advance(
        self, active: Sequence[Cohort], new_trunks: Sequence[Trunk], draws: Draws, cohorts: list[Cohort]
    ) -> list[Done]:
        """Draws one more token for every stream of `active`, or the first token for the streams of `new_trunks`, which
        join `cohorts`."""
        if new_trunks:
            cohort, logits = self.encode(new_trunks)
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
            u = torch.from_numpy(grid).to(self.device)
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
    probabilities = logits.index_select(0, index)[:, tokens].double().softmax(-1)
    return {int(r): tuple(p) for r, p in zip(rows, probabilities.tolist(), strict=True)}


def _free_memory(device: torch.device) -> int:
    """Bytes that this process can use: the GPU's free memory, or the machine's free memory divided by its cores."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved by torch
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        free = (machine.memory() or 8 * 2**30) // 2  # 8 GiB where the system says nothing
    return free // (os.cpu_count() or 1)

"""A cohort: rollouts that start together, with attention over the keys and values that they share.

A *trunk* is one token sequence (a whole solution), encoded once. A rollout continues a slice of it, the prefix that
ends after some step. Keys and values of a trunk are stored once for all its prefixes and their rollouts; each rollout
adds only the keys and values of its own tokens. At each position one softmax runs over both parts:

    softmax([ q . K_root | q . K_trunk  (masked beyond the row's own prefix) | q . K_own ])

The *root* is what all trunks of a call begin with, such as a few-shot prompt. It is encoded once, and the trunks hold
what comes after it. The queries of all rows and the root's keys are one matrix product, and so are those of the rows of
a trunk and its keys, which makes sharing cheap. This is the idea of Hydragen (Juravsky et al. 2024, arXiv 2402.05099)
and of cascade inference. They compute one softmax for each part and merge them; here the scores of all parts are
concatenated, which is simpler and exact.

Each rollout has its own stream of random numbers. Streams of one prefix that have drawn the same tokens so far are one
row, computed once. A row splits when its streams draw different tokens. Streams that split early cost little extra. A
model that is nearly deterministic writes K verifications for little more than the cost of one.

All rows of a cohort have the same number of own tokens at any time, so own keys need a mask only where a chunk begins
among them (attention.py). The last row moves to the place of a finished row, so no computation is spent on finished
rows.

Axis names: B streams, R rows, G trunks, W rows per trunk at most, P root positions, T trunk positions, N own positions,
H heads, K key-value heads, E query heads per key-value head, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stepmark.backends.local.attention import causal
from stepmark.models.attention import Rule

FIRST_CAPACITY = 16  # own positions stored at first; doubled when they run out
STREAMS = ("names", "keys", "budgets", "logprobs", "row_of")  # arrays of a cohort with one entry per stream
ROWS = ("at", "trunk_of", "tokens", "closing")  # arrays with one entry per row


@dataclass(frozen=True, slots=True)
class Stream:
    """One rollout to sample."""

    name: int  # the caller's number for it
    at: int  # length of its prefix, at least 1: it continues the first `at` tokens of its trunk
    key: int  # of its randomness (see draw.key)
    budget: int  # largest number of tokens to generate, at least 1


@dataclass(frozen=True, slots=True)
class Trunk:
    """A token sequence and the rollouts that continue slices of it."""

    ids: tuple[int, ...]
    streams: tuple[Stream, ...]


class Root:
    """What all trunks of a call begin with: its tokens, and their keys and values in each layer, [K, P, D]."""

    def __init__(self, ids: tuple[int, ...] = ()) -> None:
        self.ids = ids
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def beginning(self, length: int) -> Root:
        """Its first `length` tokens."""
        if length == len(self.ids):
            return self
        root = Root(self.ids[:length])
        root.layers = [(k[:, :length], v[:, :length]) for k, v in self.layers]
        return root

    def attend(
        self, layer: int, q_PHD: torch.Tensor, k_PKD: torch.Tensor, v_PKD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """Attention of the pass that encodes the root."""
        q, k, v = (x.transpose(0, 1) for x in (q_PHD, k_PKD, v_PKD))
        self.layers.append((k.contiguous(), v.contiguous()))
        return causal(q[None], k[None], v[None], rule)[0].transpose(0, 1)


class Encoding:
    """Attention of the pass that encodes trunks `first`, `first + 1`, ... of a cohort, `width` positions each."""

    def __init__(self, cohort: Cohort, first: int, count: int, width: int) -> None:
        self.cohort, self.first, self.count, self.width = cohort, first, count, width

    def attend(
        self, layer: int, q_PHD: torch.Tensor, k_PKD: torch.Tensor, v_PKD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """P = count * width flat positions. Padding is at the end of each trunk, where the causal mask hides it."""
        q, k, v = (x.reshape(self.count, self.width, *x.shape[1:]).transpose(1, 2) for x in (q_PHD, k_PKD, v_PKD))
        self.cohort.store(layer, self.first, k, v)
        if self.cohort.root.ids:
            before = (x.expand(self.count, *x.shape) for x in self.cohort.root.layers[layer])
            k, v = (torch.cat([x, new], dim=2) for x, new in zip(before, (k, v), strict=True))
        return causal(q, k, v, rule).transpose(1, 2).flatten(0, 1)


class Decoding:
    """Attention of a pass that adds one token to every row of the cohorts."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = cohorts

    def attend(
        self, layer: int, q_RHD: torch.Tensor, k_RKD: torch.Tensor, v_RKD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        if len(self.cohorts) == 1:
            return self.cohorts[0].attend(layer, q_RHD, k_RKD, v_RKD, rule)
        sizes = [c.live for c in self.cohorts]
        parts = zip(self.cohorts, *(torch.split(x, sizes) for x in (q_RHD, k_RKD, v_RKD)), strict=True)
        return torch.cat([c.attend(layer, q, k, v, rule) for c, q, k, v in parts])


@dataclass(frozen=True, slots=True)
class _View:
    """What the newest tokens of a cohort's rows see by one rule: columns from `root`, `trunk` and `own` on."""

    root: int
    trunk: int
    own: int
    mask: torch.Tensor | None  # [R, 1, 1, first columns], -inf where a row doesn't see one; all rows see those after


class Cohort:
    """Trunks and streams that start together. Streams are in the order of their rows; row arrays hold the live rows in
    their first `live` entries."""

    def __init__(self, trunks: Sequence[Trunk], device: torch.device, root: Root | None = None) -> None:
        streams = [(g, stream) for g, trunk in enumerate(trunks) for stream in trunk.streams]
        prefixes = {prefix: r for r, prefix in enumerate(dict.fromkeys((g, stream.at) for g, stream in streams))}
        self.device = device
        self.trunks = trunks
        self.root = root or Root()
        self.width = max(len(t.ids) for t in trunks) - len(self.root.ids)  # trunk positions after the root
        self.step = 0  # own tokens per row whose keys and values are stored
        self.names = np.array([stream.name for _, stream in streams])
        self.keys = np.array([stream.key for _, stream in streams], dtype=np.uint64)
        self.budgets = np.array([stream.budget for _, stream in streams])
        self.logprobs = np.zeros(len(streams))
        self.row_of = np.array([prefixes[g, stream.at] for g, stream in streams])
        self.live = len(prefixes)
        self.trunk_of = np.array([g for g, _ in prefixes])
        self.at = np.array([at for _, at in prefixes])
        self.tokens = np.zeros((self.live, FIRST_CAPACITY), dtype=np.int64)
        self.closing = np.zeros(self.live, dtype=bool)  # rows whose text has ended, and that need one more pass
        self.admitted, self.peak = len(streams), self.live  # streams at the start, largest number of rows at any time
        self._trunk: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer: keys, values [G, K, T, D]
        self._own: list[tuple[torch.Tensor, ...]] = []  # per layer: keys, values [R, K, capacity, D]
        self._changed = True  # rows changed since the maps below were built
        self._slots: torch.Tensor | None = None  # [G * W] row of each grid place; None for the same order
        self._places: torch.Tensor | None = None  # [R] grid place of each row
        self._views: dict[tuple[int | None, int | None], _View] = {}  # by window and chunk of the rule
        self._grid = (0, 0)  # G, W
        self._sort()

    # -- streams and rows --------------------------------------------------------------------------------------

    @property
    def last(self) -> np.ndarray:
        """[R] the newest token of each row, whose keys are not stored yet."""
        return self.tokens[: self.live, self.step]

    @property
    def positions(self) -> np.ndarray:
        """[R] the position of that token in its sequence."""
        return self.at[: self.live] + self.step

    def advance(self) -> None:
        """To be called when all layers have stored the newest tokens."""
        self.step += 1
        self._views = {seen: view for seen, view in self._views.items() if seen == (None, None)}

    def put(self, ids_B: np.ndarray, logprobs_B: np.ndarray) -> None:
        """Adds the next own token of every stream. A row splits when its streams drew different tokens."""
        if self.step == self.tokens.shape[1]:
            self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)], axis=1)
        self.logprobs += logprobs_B
        if len(ids_B) == self.live:  # each stream has its own row
            self.tokens[: self.live, self.step] = ids_B
            return
        drawn = self.row_of * (int(ids_B.max()) + 1) + ids_B
        _, first, group = np.unique(drawn, return_index=True, return_inverse=True)
        source = self.row_of[first]
        new = np.append(False, source[1:] == source[:-1])  # the first group of each row keeps the row
        place = source.copy()
        place[new] = self.live + np.arange(new.sum())
        self.row_of = place[group]
        if new.any():
            self._split(source[new])
        self.tokens[self.row_of, self.step] = ids_B
        self._sort()

    def _split(self, source_F: np.ndarray) -> None:
        """Adds a copy of each of the rows `source_F` after the live rows."""
        live = self.live + len(source_F)
        for name in ROWS:
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array[: self.live], array[source_F]]))
        if self._own and live > (capacity := self._own[0][0].shape[0]):
            added = min(max(live, 2 * capacity), len(self.names)) - capacity
            for layer in range(len(self._own)):  # layer by layer, so that only one layer's cache exists twice
                self._own[layer] = tuple(self._resized(x, capacity + added, x.shape[2]) for x in self._own[layer])
        self._copy(source_F, np.arange(self.live, live))
        self.live = live
        self.peak = max(self.peak, live)
        self._changed = True

    def drop(self, gone_B: np.ndarray) -> None:
        """Ends the streams `gone_B`, [B] bool, and frees rows without streams. Last rows take their places."""
        self._select_streams(~gone_B)
        gone = np.flatnonzero(np.bincount(self.row_of, minlength=self.live) == 0)
        if not len(gone):
            return
        left = self.live - len(gone)
        movers = np.setdiff1d(np.arange(left, self.live), gone, assume_unique=True)
        holes = gone[gone < left]
        for name in ROWS:
            getattr(self, name)[holes] = getattr(self, name)[movers]
        self._copy(movers, holes)
        target = np.arange(self.live)
        target[movers] = holes
        self.row_of = target[self.row_of]
        self.live = left
        self._changed = True
        self._sort()
        if left and self._own and left <= self._own[0][0].shape[0] // 2:
            self._repack()

    def _copy(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copies the own keys and values of the rows `source` to the rows `target`. The two sets do not overlap."""
        if not (len(target) and self._own):
            return
        source_rows, target_rows = (torch.from_numpy(x).to(self.device) for x in (source, target))
        for pair in self._own:
            for cache in pair:
                filled = cache[:, :, : self.step]
                filled.index_copy_(0, target_rows, filled.index_select(0, source_rows))

    def _sort(self) -> None:
        if (self.row_of[1:] < self.row_of[:-1]).any():
            self._select_streams(np.argsort(self.row_of, kind="stable"))

    def _select_streams(self, kept: np.ndarray) -> None:
        for name in STREAMS:
            setattr(self, name, getattr(self, name)[kept])

    def _repack(self) -> None:
        """Frees the memory of finished rows, and of trunks without live rows."""
        for layer in range(len(self._own)):
            self._own[layer] = tuple(self._resized(x, self.live, x.shape[2]) for x in self._own[layer])
        kept, self.trunk_of = np.unique(self.trunk_of[: self.live], return_inverse=True)
        if len(kept) < self._trunk[0][0].shape[0]:
            index = torch.from_numpy(kept).to(self.device)
            self._trunk = [(k.index_select(0, index), v.index_select(0, index)) for k, v in self._trunk]

    # -- keys and values -------------------------------------------------------------------------------------

    def store(self, layer: int, first: int, k_GKTD: torch.Tensor, v_GKTD: torch.Tensor) -> None:
        """Stores the keys and values of trunks `first`, `first + 1`, ..."""
        if layer == len(self._trunk):
            self._trunk.append(
                (
                    k_GKTD.new_zeros(len(self.trunks), k_GKTD.shape[1], self.width, k_GKTD.shape[3]),
                    v_GKTD.new_zeros(len(self.trunks), v_GKTD.shape[1], self.width, v_GKTD.shape[3]),
                )
            )
        for cache, new in zip(self._trunk[layer], (k_GKTD, v_GKTD), strict=True):
            cache[first : first + new.shape[0], :, : new.shape[2]] = new

    def _own_cache(self, layer: int, k_RKD: torch.Tensor, v_RKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The own keys and values of a layer, with space for one more position."""
        if layer == len(self._own):
            k, v = (x.new_empty(self.live, x.shape[1], FIRST_CAPACITY, x.shape[2]) for x in (k_RKD, v_RKD))
            self._own.append((k, v))
        k, v = self._own[layer]
        if self.step == k.shape[2]:
            k, v = (self._resized(x, x.shape[0], 2 * x.shape[2]) for x in (k, v))
            self._own[layer] = k, v
        return k, v

    def _resized(self, own_RKND: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
        """A cache of another size with what is filled: memory that is not touched yet costs nothing."""
        new = own_RKND.new_empty(rows, own_RKND.shape[1], capacity, own_RKND.shape[3])
        filled = slice(min(self.live, rows)), slice(None), slice(self.step)
        new[filled] = own_RKND[filled]
        return new

    def _build_maps(self) -> None:
        """Builds the maps between rows in their order and a grid of trunks by rows per trunk."""
        trunk_of = self.trunk_of[: self.live]
        trunks = self._trunk[0][0].shape[0]
        counts = np.bincount(trunk_of, minlength=trunks)
        width = int(counts.max())
        order = np.argsort(trunk_of, kind="stable")
        rank = np.empty(self.live, dtype=np.int64)
        rank[order] = np.arange(self.live) - np.repeat(np.cumsum(counts) - counts, counts)
        places = trunk_of * width + rank
        self._grid = trunks, width
        if self.live == trunks * width and np.array_equal(places, np.arange(self.live)):
            self._slots = self._places = None
        else:
            slots = np.zeros(trunks * width, dtype=np.int64)
            slots[places] = np.arange(self.live)
            self._slots = torch.from_numpy(slots).to(self.device)
            self._places = torch.from_numpy(places).to(self.device)
        self._views = {}
        self._changed = False

    def _view(self, rule: Rule, dtype: torch.dtype) -> _View:
        """What the rows see, kept until rows change or, where that moves with each token, until the next token."""
        view = self._views.get((rule.window, rule.chunk))
        if view is None:
            at, lowest = self.at[: self.live], rule.first(self.positions)
            start, end = len(self.root.ids), len(self.root.ids) + self.width
            first = int(min(lowest.min(), end))
            own = int(max(0, (lowest - at).min()))
            column = np.concatenate([np.arange(first, end), np.zeros(self.step + 1 - own, dtype=np.int64)])
            hidden = (column >= at[:, None]) | (column < lowest[:, None])
            hidden[:, end - first :] = at[:, None] + np.arange(own, self.step + 1) < lowest[:, None]
            partly = np.flatnonzero(hidden.any(0))
            mask = None
            if len(partly):
                covered = torch.from_numpy(hidden[:, : partly[-1] + 1]).to(self.device)
                mask = torch.zeros(covered.shape, dtype=dtype, device=self.device)
                mask = mask.masked_fill_(covered, -torch.inf)[:, None, None]
            view = _View(min(first, start), max(0, first - start), own, mask)
            self._views[rule.window, rule.chunk] = view
        return view

    def attend(
        self, layer: int, q_RHD: torch.Tensor, k_RKD: torch.Tensor, v_RKD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """[R, H, D] attention of every row's newest token over the root, its prefix and its own tokens, this token
        included."""
        if self._changed:
            self._build_maps()
        view = self._view(rule, q_RHD.dtype)
        k_own, v_own = self._own_cache(layer, k_RKD, v_RKD)
        k_own[: self.live, :, self.step] = k_RKD
        v_own[: self.live, :, self.step] = v_RKD
        k_own, v_own = (x[: self.live, :, view.own : self.step + 1] for x in (k_own, v_own))
        k_trunk, v_trunk = (x[:, :, view.trunk :] for x in self._trunk[layer])
        q_RKED = (q_RHD * rule.scale).reshape(self.live, k_RKD.shape[1], -1, q_RHD.shape[-1])
        root, trunk = len(self.root.ids) - view.root, self.width - view.trunk  # columns of each that are seen
        scores = [q_RKED @ k_own.transpose(-1, -2)]  # [R, K, E, N]
        if trunk:
            scores.insert(0, self._to_rows(self._to_grid(q_RKED) @ k_trunk.transpose(-1, -2)))
        if root:
            k_root, v_root = (x[:, view.root :] for x in self.root.layers[layer])
            scores.insert(0, _each_row(q_RKED, k_root.transpose(-1, -2)))
        shares = rule.shares(torch.cat(scores, dim=-1), view.mask)
        out = shares[..., root + trunk :] @ v_own
        if trunk:
            out += self._to_rows(self._to_grid(shares[..., root : root + trunk]) @ v_trunk)
        if root:
            out += _each_row(shares[..., :root], v_root)
        return out.reshape(self.live, -1, out.shape[-1])

    def _to_grid(self, x_RKEX: torch.Tensor) -> torch.Tensor:
        """[R, K, E, X] -> [G, K, W * E, X]."""
        if self._slots is not None:
            x_RKEX = x_RKEX.index_select(0, self._slots)
        return x_RKEX.reshape(*self._grid, *x_RKEX.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _to_rows(self, x_GKYX: torch.Tensor) -> torch.Tensor:
        """[G, K, W * E, X] -> [R, K, E, X]."""
        trunks, heads, _, width = x_GKYX.shape
        x = x_GKYX.reshape(trunks, heads, self._grid[1], -1, width).transpose(1, 2).flatten(0, 1)
        return x if self._places is None else x.index_select(0, self._places)


def _each_row(x_RKEX: torch.Tensor, y_KXY: torch.Tensor) -> torch.Tensor:
    """[R, K, E, X] times what all rows have in common, [K, X, Y] -> [R, K, E, Y], as one product per key-value head."""
    rows, heads, group, _ = x_RKEX.shape
    product = x_RKEX.transpose(0, 1).flatten(1, 2) @ y_KXY
    return product.view(heads, rows, group, -1).transpose(0, 1)

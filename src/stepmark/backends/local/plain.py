"""Reference sampling without sharing: each prefix is encoded separately, and its rows are decoded in lockstep.

It is slower than engine.py, and correct for any causal language model of transformers with any attention, since it uses
the model and its own cache unchanged. The engine falls back to it, and tests compare with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import torch

from stepmark.backends.local.cohort import Stream, Trunk
from stepmark.backends.local.draw import draw, numbers, uniforms
from stepmark.backends.local.engine import Done, Draws, Engine, chances


def run(engine: Engine, trunks: Iterable[Trunk], draws: Draws) -> Iterator[Done]:
    """Samples every stream, prefix by prefix."""
    for trunk in trunks:
        batch = min(engine.batch, engine.room(len(trunk.ids) + max(x.budget for x in trunk.streams)))
        for at, group in groupby(sorted(trunk.streams, key=lambda x: x.at), key=lambda x: x.at):
            streams = list(group)
            for start in range(0, len(streams), batch):
                yield from _prefix(engine, trunk.ids[:at], streams[start : start + batch], draws)


def _prefix(engine: Engine, prefix: tuple[int, ...], streams: list[Stream], draws: Draws) -> list[Done]:
    done: list[Done] = []
    own = np.zeros((len(streams), max(x.budget for x in streams) + 1), dtype=np.int64)
    logprobs = np.zeros(len(streams))
    live = np.arange(len(streams))
    keys = np.array([x.key for x in streams], dtype=np.uint64)
    budgets = np.array([x.budget for x in streams])
    closing = np.zeros(len(streams), dtype=bool)  # live rows whose text has ended; one more pass reads their choices
    model, device = engine.model, engine.device
    engine.use(engine.plain_attention)  # for the whole prefix, since its rollouts are returned together
    cached = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([prefix], device=device), use_cache=True)
        cache = out[cached]
        logits = out.logits[:, -1].expand(len(streams), -1)
        cache.batch_repeat_interleave(len(streams))
        t = 0
        while True:
            u = numbers(uniforms(keys[live], np.full(len(live), t))[:, None], device)
            ids, lps = (x[:, 0].cpu().numpy() for x in draw(logits, u, draws.temperature, draws.top_p))
            for row, chosen in chances(logits, closing, draws.choices).items():
                r = live[row]
                done.append(Done(streams[r].name, tuple(own[r, :t].tolist()), True, float(logprobs[r]), chosen))
            own[live, t] = ids
            logprobs[live] += lps
            t += 1
            ended = draws.ends[ids] & ~closing
            starts_closing = np.zeros_like(closing)
            for i in np.flatnonzero(draws.watched[ids] & ~ended & ~closing):
                if draws.stopped(streams[live[i]].name, own[live[i], :t]):
                    (ended if draws.choices is None else starts_closing)[i] = True
            finished = (ended | (budgets[live] <= t)) & ~starts_closing
            for i in np.flatnonzero(finished & ~closing):
                r = live[i]
                done.append(Done(streams[r].name, tuple(own[r, :t].tolist()), bool(ended[i]), float(logprobs[r])))
            finished |= closing
            if finished.all():
                return done
            if finished.any():
                kept = torch.from_numpy(np.flatnonzero(~finished)).to(device)
                cache.batch_select_indices(kept)
                live, ids, starts_closing = live[~finished], ids[~finished], starts_closing[~finished]
            closing = starts_closing
            out = model(input_ids=torch.from_numpy(ids)[:, None].to(device), use_cache=True, **{cached: cache})
            cache, logits = out[cached], out.logits[:, -1]

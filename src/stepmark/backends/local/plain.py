"""The reference way to roll out: each prefix encoded alone, its rows decoded in lockstep, nothing shared.

Slower than engine.py and correct for any causal language model of transformers, whatever its attention, because
it uses the model as it is with the cache that it makes itself. The engine falls back to it; tests compare with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import torch

from stepmark.backends.local.cohort import Stream, Trunk
from stepmark.backends.local.draw import draw, uniforms
from stepmark.backends.local.engine import Done, Draws, Engine, chances


def run(engine: Engine, trunks: Iterable[Trunk], draws: Draws) -> Iterator[Done]:
    """Rolls every stream out, prefix by prefix."""
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
    closing = np.zeros(len(streams), dtype=bool)  # of the live: the text has ended, one more pass says what follows
    model, device = engine.model, engine.device
    engine.use(engine.plain_attention)  # for the whole prefix: nothing is handed out before it is done
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([prefix], device=device), use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1].expand(len(streams), -1)
        cache.batch_repeat_interleave(len(streams))
        t = 0
        while True:
            u = torch.from_numpy(uniforms(keys[live], np.full(len(live), t))[:, None]).to(device)
            ids, lps = (x[:, 0].cpu().numpy() for x in draw(logits, u, draws.temperature, draws.top_p))
            for asker, chosen in chances(logits, closing, draws.choices).items():
                r = live[asker]
                done.append(Done(streams[r].name, tuple(own[r, :t].tolist()), True, float(logprobs[r]), chosen))
            own[live, t] = ids
            logprobs[live] += lps
            t += 1
            ended = draws.ends[ids] & ~closing
            asked = np.zeros_like(closing)
            for i in np.flatnonzero(draws.watched[ids] & ~ended & ~closing):
                if draws.stopped(streams[live[i]].name, own[live[i], :t]):
                    (ended if draws.choices is None else asked)[i] = True
            gone = (ended | (budgets[live] <= t)) & ~asked
            for i in np.flatnonzero(gone & ~closing):
                r = live[i]
                done.append(Done(streams[r].name, tuple(own[r, :t].tolist()), bool(ended[i]), float(logprobs[r])))
            gone |= closing
            if gone.all():
                return done
            if gone.any():
                kept = torch.from_numpy(np.flatnonzero(~gone)).to(device)
                cache.batch_select_indices(kept)
                live, ids, asked = live[~gone], ids[~gone], asked[~gone]
            closing = asked
            out = model(input_ids=torch.from_numpy(ids)[:, None].to(device), past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1]

"""Plays a model: a text goes on as one of the attempts in a file does. So a recipe can be tried in seconds, without a
model.

Each row of the file has a `question`, any part of a prompt, and `attempts`, the texts that may follow it. The row whose
question stands last in the prompt is the one. A prefix goes on as one of the attempts that begin with it.

    stepmark run examples/code.yaml
"""

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stepmark.errors import BackendError
from stepmark.types import Finish, Rollout


@dataclass(frozen=True)
class Replay:
    file: str  # of JSON lines, each {"question": ..., "attempts": [...]}

    def sample(self, prompts, params):
        for prompt in prompts:
            attempts = self._attempts(prompt.context)
            going_on = [x[len(prompt.prefix) :] for x in attempts if x.startswith(prompt.prefix)]
            if not going_on:
                raise BackendError(f"{self.file}: no attempt goes on after {prompt.text[-200:]!r}. Add one.")
            for index in range(prompt.first, prompt.first + prompt.n):
                rng = random.Random(f"{params.seed}|{prompt.id}|{index}")
                text = rng.choice(going_on)
                yield Rollout(prompt.id, index, text, Finish.STOP, tokens=len(text.split()))

    def _attempts(self, context):
        places = [(context.rfind(question), len(question), attempts) for question, attempts in _rows(self.file)]
        place, _, attempts = max(places, default=(-1, 0, []), key=lambda x: x[:2])
        return attempts if place >= 0 else []


@lru_cache(maxsize=8)
def _rows(path):
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return [(row["question"], row["attempts"]) for row in rows]
    except (OSError, ValueError, KeyError) as e:
        raise BackendError(f"{path} is no file of attempts: {e!r}") from e

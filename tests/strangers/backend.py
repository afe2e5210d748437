"""A third-party backend: it adds numbers and makes an error in a step with probability `error`. Most of its wrong sums
agree with each other."""

import os
import random
import re
import time
from dataclasses import dataclass
from typing import ClassVar

from stepmark.types import Finish, Rollout


@dataclass(frozen=True)
class Adder:
    free: ClassVar[tuple[str, ...]] = ("delay", "fail_on", "die_on")  # options that change no result

    error: float = 0.4  # probability that a step states a sum off by one
    truncated: float = 0.0  # probability that a rollout runs out of tokens
    delay: float = 0.0  # seconds for each rollout
    fail_on: str = ""  # a prompt whose id begins with this raises ValueError
    die_on: str = ""  # a prompt whose id begins with this kills the process

    def sample(self, prompts, params):
        for prompt in prompts:
            if self.fail_on and prompt.id.startswith(self.fail_on):
                raise ValueError(f"I don't like {prompt.id}")
            if self.die_on and prompt.id.startswith(self.die_on):
                os._exit(9)
            for index in range(prompt.first, prompt.first + prompt.n):
                time.sleep(self.delay)
                rng = random.Random(f"{params.seed}|{prompt.id}|{index}")
                text = self._continue(prompt.context, prompt.prefix, rng)
                finish = Finish.LENGTH if rng.random() < self.truncated else Finish.STOP
                yield Rollout(prompt.id, index, text[: len(text) // 2] if finish is Finish.LENGTH else text, finish, 9)

    def _continue(self, context, prefix, rng):
        total, *rest = map(int, re.findall(r"\d+", context)[:3])
        # A line that was cut off does not count. It is written anew.
        written = re.findall(r"= (\d+)\n|The answer is (\d+)\.", prefix)
        if written:
            total = int("".join(written[-1]))
        lines = []
        for number in rest[len(written) :]:
            stated = total + number + (rng.random() < self.error)
            lines.append(f"{total} + {number} = {stated}")
            total = stated
        if "The answer is" not in prefix:
            lines.append(f"The answer is {total}.")
        return "\n".join(lines)

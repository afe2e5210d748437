"""A third-party backend as slow as a large model on a small machine. It writes down each rollout that it finished.

SLOW_SECONDS: the time of a rollout, 0 by default. SLOW_LOG: the file of the finished rollouts' keys. They are no
options, so that a command with another speed is still the same command."""

import os
import re
import time
from dataclasses import dataclass

from stepmark.data import token_meter
from stepmark.types import Finish, Rollout


@dataclass(frozen=True)
class Slow:
    def sample(self, prompts, params):
        for prompt in prompts:
            for index in range(prompt.first, prompt.first + prompt.n):
                for _ in range(5):
                    time.sleep(float(os.environ.get("SLOW_SECONDS", "0")) / 5)
                    token_meter.add(1)
                rollout = Rollout(prompt.id, index, _text(prompt, index), Finish.STOP, 5)
                if "SLOW_LOG" in os.environ:
                    with open(os.environ["SLOW_LOG"], "a") as log:
                        log.write(f"{rollout.key}\n")
                yield rollout


def _text(prompt, index):
    if "careful grader" in prompt.context:
        return "Verification: Is the answer correct (Yes/No)? Yes"
    a, b, c = map(int, re.findall(r"\d+", prompt.context)[:3])
    begin = "" if prompt.prefix else f"Try number {index}.\n{a} + {b} = {a + b}\n"
    return f"{begin}The answer is {a + b + c}."

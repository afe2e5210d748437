"""A third-party backend that records the requested rollouts, charges 1 for each, and raises an error on request."""

from dataclasses import dataclass, field

from stepmark.errors import BackendError
from stepmark.types import Finish, Rollout


@dataclass(frozen=True)
class Watched:
    """Its rollout is the text "INDEX". It records each key in `asked`."""

    asked: list = field(default_factory=list)
    fails: frozenset = frozenset()  # keys of rollouts that come as failed
    breaks: str = ""  # the key before which it raises BackendError
    price: tuple = (0.0, 1e6)

    def sample(self, prompts, params):
        for prompt in prompts:
            for index in range(prompt.first, prompt.first + prompt.n):
                key = f"{prompt.id}#{index}"
                if key == self.breaks:
                    raise BackendError("broken")
                self.asked.append(key)
                if key in self.fails:
                    yield Rollout(prompt.id, index, "", Finish.FAILED, 0, reason="no")
                else:
                    yield Rollout(prompt.id, index, f"{index}", Finish.STOP, 1)

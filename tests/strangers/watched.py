"""A stranger's backend that remembers what it was asked for, charges one coin a rollout, and breaks when told to."""

from dataclasses import dataclass, field

from stepmark.errors import BackendError
from stepmark.types import Finish, Rollout


@dataclass(frozen=True)
class Watched:
    """Says "INDEX", notes what it was asked for, and breaks or fails where it is told to."""

    asked: list = field(default_factory=list)
    fails: frozenset = frozenset()  # keys
    breaks: str = ""  # the key before which it breaks
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

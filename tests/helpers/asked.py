"""What several test files import: a backend that remembers what it was asked."""

from dataclasses import dataclass, field

from stepmark.backends.scripted import ScriptedBackend


@dataclass
class Asked:
    """A backend that remembers its prompts and how it was to sample."""

    script: ScriptedBackend
    prompts: list = field(default_factory=list)
    params: list = field(default_factory=list)

    def sample(self, prompts, params):
        self.prompts += prompts
        self.params.append(params)
        yield from self.script.sample(prompts, params)

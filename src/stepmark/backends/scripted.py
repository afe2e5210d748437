"""Backend `scripted`: the public fake. It says what it was told to say, so stages can be tried without a model.

    ScriptedBackend({"What is 1 + 1?\\n": ["2\\n", "3\\n"]})          # rollout i says continuation i, round and round
    ScriptedBackend(lambda text: [("it goes on and", Finish.LENGTH)])  # a truncated rollout

It loads nothing and needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stepmark.errors import BackendError
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

Continuation = str | tuple[str, Finish]


@dataclass(frozen=True)
class ScriptedBackend:
    """Continues a prompt's text with what `script` holds for it. Picklable when the script is."""

    # Prompt text (context + prefix) -> its continuations, as a mapping or a function.
    script: Mapping[str, Sequence[Continuation]] | Callable[[str], Sequence[Continuation]] = field(default_factory=dict)
    default: Sequence[Continuation] = ()  # for texts that a mapping lacks

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollout `index` is continuation `index` modulo how many there are; its tokens are its words. Stop strings
        and max_tokens (in words) cut it as they would cut a model. Raises BackendError for a text without any."""
        for prompt in prompts:
            said = self.script(prompt.text) if callable(self.script) else self.script.get(prompt.text, self.default)
            if not said:
                raise BackendError(f"the script has no continuation for {prompt.text!r}. Add one, or a `default`.")
            for index in range(prompt.first, prompt.first + prompt.n):
                yield _rollout(prompt.id, index, said[index % len(said)], params)


def _rollout(prompt_id: str, index: int, said: Continuation, params: SamplingParams) -> Rollout:
    text, finish = (said, Finish.STOP) if isinstance(said, str) else (said[0], Finish(said[1]))
    cuts = [at for at in (text.find(s) for s in params.stop if s) if at >= 0]
    if cuts:
        text, finish = text[: min(cuts)], Finish.STOP
    ends = [i for i in range(1, len(text) + 1) if not text[i - 1].isspace() and text[i : i + 1].strip() == ""]
    if len(ends) > params.max_tokens:
        text, finish = text[: ends[params.max_tokens - 1]], Finish.LENGTH
    return Rollout(prompt_id, index, text, finish, tokens=min(len(ends), params.max_tokens))

"""Backend `scripted`: the public fake. It says what it was told to say, so stages can be tried without a model.

    ScriptedBackend({"What is 1 + 1?\\n": ["2\\n", "3\\n"]})          # rollout i says continuation i, round and round
    ScriptedBackend(lambda text: [("it goes on and", Finish.LENGTH)])  # a truncated rollout
    ScriptedBackend(chances=lambda text: {" Yes": 0.9, " No": 0.1})    # how likely choices are, for choice_probs

It loads nothing and needs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stepmark.errors import BackendError
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

Continuation = str | tuple[str, Finish]
Weights = Mapping[str, float]  # choice -> its weight, at least 0; one that isn't there has none


@dataclass(frozen=True)
class ScriptedBackend:
    """Continues a prompt's text with what `script` holds for it. Picklable when the script is."""

    # Prompt text (context + prefix) -> its continuations, as a mapping or a function.
    script: Mapping[str, Sequence[Continuation]] | Callable[[str], Sequence[Continuation]] = field(default_factory=dict)
    default: Sequence[Continuation] = ()  # for texts that a mapping lacks
    # Text -> how much each choice weighs after it, as a mapping or a function; weights need not sum to 1.
    chances: Mapping[str, Weights] | Callable[[str], Weights] = field(default_factory=dict)
    usual: Weights = field(default_factory=dict)  # for texts that a mapping lacks

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollout `index` is continuation `index` modulo how many there are; its tokens are its words. Stop strings
        and max_tokens (in words) cut it as they would cut a model; where a stop string did and there are chances for
        what came before, the rollout brings its choices. Raises BackendError for a text without any continuation."""
        for prompt in prompts:
            said = self.script(prompt.text) if callable(self.script) else self.script.get(prompt.text, self.default)
            if not said:
                raise BackendError(f"the script has no continuation for {prompt.text!r}. Add one, or a `default`.")
            for index in range(prompt.first, prompt.first + prompt.n):
                rollout, stop = _rollout(prompt.id, index, said[index % len(said)], params)
                weights = self._weights(prompt.text + rollout.text + stop) if stop and params.choices else {}
                yield replace(rollout, choices=_shares(weights, params.choices)) if weights else rollout

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Each choice's weight after a text as a share of all choices'. Raises BackendError where there is none."""
        found = []
        for text in texts:
            weights = self._weights(text)
            shares = _shares(weights, choices)
            if not shares:
                raise BackendError(
                    f"the script has no chances of {', '.join(map(repr, choices))} for {text!r}, but "
                    f"{dict(weights)}. Add them to `chances`, or a `usual`."
                )
            found.append(shares)
        return found

    def _weights(self, text: str) -> Weights:
        return self.chances(text) if callable(self.chances) else self.chances.get(text, self.usual)


def _rollout(prompt_id: str, index: int, said: Continuation, params: SamplingParams) -> tuple[Rollout, str]:
    """The rollout, and the stop string that ended it."""
    text, finish = (said, Finish.STOP) if isinstance(said, str) else (said[0], Finish(said[1]))
    cuts = [(at, s) for s in params.stop if s and (at := text.find(s)) >= 0]
    cut, stop = min(cuts, default=(0, ""))
    if stop:
        text, finish = text[:cut], Finish.STOP
    ends = [i for i in range(1, len(text) + 1) if not text[i - 1].isspace() and text[i : i + 1].strip() == ""]
    if len(ends) > params.max_tokens:
        text, finish, stop = text[: ends[params.max_tokens - 1]], Finish.LENGTH, ""
    return Rollout(prompt_id, index, text, finish, tokens=min(len(ends), params.max_tokens)), stop


def _shares(weights: Weights, choices: Sequence[str]) -> tuple[float, ...]:
    """Of the choices' weights; none where they have none."""
    own = [weights.get(choice, 0.0) for choice in choices]
    total = math.fsum(own)
    return tuple(w / total for w in own) if total > 0 else ()

"""Backend `scripted`: a fake backend that returns given texts, so that stages can be tried without a model.

    ScriptedBackend({"What is 1 + 1?\\n": ["2\\n", "3\\n"]})          # rollout i is continuation i, cyclically
    ScriptedBackend(lambda text: [("it goes on and", Finish.LENGTH)])  # a truncated rollout
    ScriptedBackend(chances=lambda text: {" Yes": 0.9, " No": 0.1})    # weights of choices, for choice_probs

It loads no files and needs no packages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stepmark.errors import BackendError
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

Continuation = str | tuple[str, Finish]
Weights = Mapping[str, float]  # choice -> its weight, at least 0; a missing choice has weight 0


@dataclass(frozen=True)
class ScriptedBackend:
    """Continues a prompt with the continuations that `script` has for its text. Picklable when the script is."""

    # Prompt text (context + prefix) -> its continuations, as a mapping or a function.
    script: Mapping[str, Sequence[Continuation]] | Callable[[str], Sequence[Continuation]] = field(default_factory=dict)
    default: Sequence[Continuation] = ()  # for texts that are not in the mapping
    # Text -> the weight of each choice after it, as a mapping or a function; weights need not sum to 1.
    chances: Mapping[str, Weights] | Callable[[str], Weights] = field(default_factory=dict)
    usual: Weights = field(default_factory=dict)  # for texts that are not in the mapping

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Rollout `index` is continuation `index` modulo their number; its tokens are its words.

        Stop strings and max_tokens (in words) cut it as they cut a model's text. A rollout that a stop string ended has
        `choices`, if there are weights for its text. Raises BackendError for a text without any continuation."""
        for prompt in prompts:
            script = self.script
            texts = script(prompt.text) if callable(script) else script.get(prompt.text, self.default)
            if not texts:
                raise BackendError(f"the script has no continuation for {prompt.text!r}. Add one, or a `default`.")
            for index in range(prompt.first, prompt.first + prompt.n):
                rollout, stop = _rollout(prompt.id, index, texts[index % len(texts)], params)
                weights = self._weights(prompt.text + rollout.text + stop) if stop and params.choices else {}
                yield replace(rollout, choices=_shares(weights, params.choices)) if weights else rollout

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Each choice's share of the weights of all choices after a text. Raises BackendError without any weight."""
        probabilities = []
        for text in texts:
            weights = self._weights(text)
            shares = _shares(weights, choices)
            if not shares:
                raise BackendError(
                    f"the script has no chances of {', '.join(map(repr, choices))} for {text!r}, but "
                    f"{dict(weights)}. Add them to `chances`, or a `usual`."
                )
            probabilities.append(shares)
        return probabilities

    def _weights(self, text: str) -> Weights:
        return self.chances(text) if callable(self.chances) else self.chances.get(text, self.usual)


def _rollout(prompt_id: str, index: int, continuation: Continuation, params: SamplingParams) -> tuple[Rollout, str]:
    """The rollout, and the stop string that ended it ("" for none)."""
    if isinstance(continuation, str):
        text, finish = continuation, Finish.STOP
    else:
        text, finish = continuation[0], Finish(continuation[1])
    cuts = [(position, s) for s in params.stop if s and (position := text.find(s)) >= 0]
    cut, stop = min(cuts, default=(0, ""))
    if stop:
        text, finish = text[:cut], Finish.STOP
    ends = [i for i in range(1, len(text) + 1) if not text[i - 1].isspace() and text[i : i + 1].strip() == ""]
    if len(ends) > params.max_tokens:
        text, finish, stop = text[: ends[params.max_tokens - 1]], Finish.LENGTH, ""
    return Rollout(prompt_id, index, text, finish, tokens=min(len(ends), params.max_tokens)), stop


def _shares(weights: Weights, choices: Sequence[str]) -> tuple[float, ...]:
    """Each choice's share of the choices' weights; () if all weights are 0."""
    chosen = [weights.get(choice, 0.0) for choice in choices]
    total = math.fsum(chosen)
    return tuple(w / total for w in chosen) if total > 0 else ()

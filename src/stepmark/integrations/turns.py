"""Rewards for the turns of an agent, in the style of environments of `verifiers`.

    reward = turns("runs/demo/verifiers/prm", credit="min")
    rubric = verifiers.Rubric(funcs=[reward])               # the whole attempt's reward
    reward.of_turns(prompt, completion, answer)             # one number for each of its assistant messages

Each assistant message is a step (text/trajectories.py), so a process verifier scores each turn with what it led to.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, Unpack

from stepmark.errors import ConfigError
from stepmark.integrations.rewards import Completion, CompletionReward, Rewarder, RewardOptions
from stepmark.protocols import RewardSource, Verifier
from stepmark.text import trajectories
from stepmark.types import Place


def turns(
    source: RewardSource | Verifier | Place, *, lost: float | None = None, **options: Unpack[RewardOptions]
) -> TurnRewards:
    """A reward function for environments of several turns. The options are those of the other reward functions, but
    `steps`: the turns are the steps. `lost` is the reward of an attempt whose reward is lost; None means the mean of
    the latest known rewards. Raises ConfigError for settings that can't be combined."""
    if "steps" in options:
        raise ConfigError("rewards: an agent's turns are its steps, so turns() takes no option steps.")
    return TurnRewards(Rewarder(source, **options), lost)


class TurnRewards:
    """A callable as rubrics of `verifiers` take it."""

    def __init__(self, rewarder: Rewarder, lost: float | None) -> None:
        self.rewarder, self.lost, self.__name__ = rewarder, lost, "stepmark"

    def __call__(
        self, prompt: Any, completion: Any, answer: Any = "", state: MutableMapping[str, Any] | None = None, **_: Any
    ) -> float:
        """The reward of the attempt. With a `state` the rewards of its turns are put there too, as `turn_rewards`."""
        found, trajectory, count = self._of(prompt, completion, answer)
        if state is not None:
            state["turn_rewards"] = _placed(found, trajectory, count)
        if found.total is not None:
            return found.total
        return self.rewarder.mean if self.lost is None else self.lost

    def of_turns(self, prompt: Any, completion: Any, answer: Any = "") -> list[float] | None:
        """The reward of each assistant message of `completion`, in order; what is earned at the end is the last one's.
        None if the reward is lost. Raises DataError for a completion without an assistant message."""
        return _placed(*self._of(prompt, completion, answer))

    def _of(self, prompt: Any, completion: Any, answer: Any) -> tuple[CompletionReward, trajectories.Trajectory, int]:
        before, after = _messages(prompt, "user"), _messages(completion, "assistant")
        trajectory = trajectories.read([*before, *after])
        given = Completion(
            trajectory.question, trajectory.text, "" if answer is None else str(answer), spans=trajectory.spans
        )
        [found] = self.rewarder([given])
        return found, trajectory, len(before)


def _placed(found: CompletionReward, trajectory: trajectories.Trajectory, before: int) -> list[float] | None:
    """Turns of the prompt (examples, or an earlier part of the conversation) are not the policy's, and earn nothing."""
    if found.reward.lost:
        return None
    own = [x for x, turn in zip(found.reward.steps, trajectory.turns, strict=True) if turn >= before]
    if own:
        own[-1] += found.reward.end
    return own


def _messages(turns: Any, role: str) -> Sequence[Any]:
    return [{"role": role, "content": turns}] if isinstance(turns, str) else list(turns)

"""TRL's GRPO trainer with rewards of steps: each token gets the advantage of the steps that end at it or later.

    from stepmark.integrations import rewards
    from stepmark.integrations.trl_steps import StepGRPOTrainer

    reward = rewards.trl("runs/demo/verifiers/prm", credit="sum")
    StepGRPOTrainer(model, reward_funcs=reward, args=GRPOConfig("out"), train_dataset=rows).train()

It is GRPO with process rewards (DeepSeekMath, arXiv 2402.03300, section 4.1.3; rl/advantages.py). TRL takes one number
an attempt from a reward function, but its loss takes an advantage for each token from a subclass. Written for TRL 1.16
(GRPOTrainer._calculate_rewards, _generate_and_score_completions, _compute_loss).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.trainer.grpo_trainer import GRPOTrainer

from stepmark.errors import ConfigError
from stepmark.integrations.response_tokens import offsets
from stepmark.integrations.rewards import TRL, step_tokens, text_of
from stepmark.rl.advantages import group_relative
from stepmark.types import Reward

Placed = tuple[Reward, tuple[int, ...], int]  # a completion's reward, the tokens that end its steps, its tokens


class StepGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """GRPOTrainer that learns from step rewards. `reward_funcs` holds one function of `rewards.trl` with credit "sum";
    what other functions give counts at the end of the attempt. An attempt whose step rewards are lost teaches nothing.

    Raises ConfigError for other reward functions, for tools, and for the Liger loss, which knows no tokens'
    advantages; EncodingError where a completion's text is not what its tokens decode to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ours = [(i, f) for i, f in enumerate(self.reward_funcs) if isinstance(f, TRL)]
        faults = []
        if len(ours) != 1:
            faults.append(f"StepGRPOTrainer needs one reward function of stepmark's rewards.trl, got {len(ours)}.")
        elif (credit := getattr(ours[0][1].rewarder.source, "credit", "sum")) != "sum":
            faults.append(
                f"StepGRPOTrainer needs credit='sum', a score for each step, got {credit!r}. With the other credits "
                "attempts are compared as wholes, which TRL's own GRPOTrainer does."
            )
        if getattr(self.args, "use_liger_kernel", False):
            faults.append("StepGRPOTrainer can't use the Liger loss: set use_liger_kernel=False.")
        if getattr(self, "tools", None) or getattr(self, "environment_factories", None) is not None:
            faults.append("StepGRPOTrainer has no place for rewards of turns with tools. Use GRPOTrainer.")
        if faults:
            raise ConfigError(faults)
        [(self._index, self._reward)] = ours
        self._placed: list[Placed] = []

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        own = by_function[first : first + len(prompts)]  # TRL has gathered those of all processes
        weights = self.reward_weights.to(own.device)
        totals = (own * weights).nansum(dim=1).tolist()
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        self._placed = []
        for found, completion, ids, total in zip(
            self._reward.latest, completions, completion_ids_list, totals, strict=True
        ):
            places = step_tokens(offsets(tokenizer, ids, text_of(completion, "assistant")), found.ends)
            steps = tuple(float(weights[self._index]) * x for x in found.reward.steps)
            reward = Reward("", steps, total - math.fsum(steps), found.reward.lost)
            self._placed.append((reward, tuple(places), len(ids)))
        return by_function

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        ids = output["completion_ids"]
        group = self.num_generations if self.model.training else self.num_generations_eval
        placed: list[Placed] = gather_object(self._placed)
        advantages = [row for i in range(0, len(placed), group) for row in _advantages(placed[i : i + group])]
        first = self.accelerator.process_index * len(ids)
        by_token = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        for row, values in zip(by_token, advantages[first : first + len(ids)], strict=True):
            row[: len(values)] = torch.tensor(values, dtype=torch.float32)
        output["advantages"] = by_token
        return output


def _advantages(group: list[Placed]) -> list[list[float]]:
    """The advantages of the tokens of each attempt of a group; zeros for the lost ones, which no other is compared
    with."""
    known = [(r, ends, length) for r, ends, length in group if not r.lost and length]
    found = iter(
        group_relative([r for r, _, _ in known], [e for _, e, _ in known], [n for _, _, n in known], by_step=True)
        if known
        else ()
    )
    return [[0.0] * length if r.lost or not length else next(found).tolist() for r, _, length in group]

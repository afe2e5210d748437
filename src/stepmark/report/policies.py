"""metrics.json's parts about policies as typed values. run/policy_evaluation.py measures them, for one run or for
several seeds.

stepmark report runs/reinforce_arithmetic
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stepmark.report.reading import Estimate, curve, estimate, fault, items, number

SFT = "sft"  # the generator, before any reinforcement
Curve = tuple[tuple[float, float], ...]  # (updates made, value), in the order of training
EXPLORED = ("same_reward", "empty", "truncated", "entropy")  # curves of the attempts of each update


@dataclass(frozen=True, slots=True)
class Course:
    """The course of one policy's training. For several seeds: means, but sums of tokens and seconds."""

    method: str
    updates: float  # number of updates made, with those that were rolled back
    best: float  # the update whose policy is the result
    stopped: str  # why training ended early; "" if it did not
    tokens: float  # generated for learning
    seconds: float
    kl: float | None  # divergence from the generator, nats per token; None if it was not measured


@dataclass(frozen=True, slots=True)
class Policies:
    """The results of policies. The generator's own figures have the name `sft`."""

    greedy: Mapping[str, Estimate]  # policy -> accuracy
    differences: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)  # (A, B) -> A - B, greedy, paired
    after: Mapping[str, Mapping[str, Mapping[int, Estimate]]] = field(default_factory=dict)  # policy -> method -> N
    # policy -> (A, B) -> N: A - B for two methods on its samples. B may be greedy, or sft: A on samples of sft
    after_differences: Mapping[str, Mapping[tuple[str, str], Mapping[int, Estimate]]] = field(default_factory=dict)
    rewards: Mapping[str, Curve] = field(default_factory=dict)  # policy -> mean reward of the attempts, by update
    accuracies: Mapping[str, Curve] = field(default_factory=dict)  # policy -> greedy, on held-out problems
    held_out_rewards: Mapping[str, Curve] = field(default_factory=dict)  # policy -> of the same attempts
    rewards_by_seed: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)  # policy -> seed -> as above
    accuracies_by_seed: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    courses: Mapping[str, Course] = field(default_factory=dict)
    # one of EXPLORED -> policy, and for several seeds -> seed; runs of earlier versions have none
    explored: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    explored_by_seed: Mapping[str, Mapping[str, Mapping[str, Curve]]] = field(default_factory=dict)

    @property
    def trained(self) -> list[str]:
        """All policies except the generator."""
        return [name for name in self.greedy if name != SFT]

    @property
    def best(self) -> str:
        """The policy with the highest greedy accuracy; it may be sft."""
        return max(self.greedy, key=lambda name: self.greedy[name].mean)

    def difference(self, left: str, right: str) -> Estimate | None:
        """left - right; if right - left is stored, its negative. None if neither is stored."""
        if (left, right) in self.differences:
            return self.differences[left, right]
        if (stored := self.differences.get((right, left))) is None:
            return None
        reversed_ends = [None if end is None else -end for end in (stored.high, stored.low)]
        return Estimate(-stored.mean, *reversed_ends)


def parse(raw: Mapping[str, object]) -> Policies | None:
    """From the decoded metrics.json; None if nothing was reinforced. Raises DataError that names the malformed
    part."""
    if raw.get("greedy") is None:
        return None
    return Policies(
        greedy={name: estimate(x, f"greedy.{name}") for name, x in items(raw["greedy"], "greedy")},
        differences={
            _pair(name): estimate(x, f"greedy_differences.{name}")
            for name, x in items(raw.get("greedy_differences"), "greedy_differences")
        },
        after={
            name: {m: curve(row, f"after.{name}.{m}") for m, row in items(rows, f"after.{name}")}
            for name, rows in items(raw.get("after"), "after")
        },
        after_differences={
            name: {
                _pair(pair): curve(row, f"after_differences.{name}.{pair}")
                for pair, row in items(rows, f"after_differences.{name}")
            }
            for name, rows in items(raw.get("after_differences"), "after_differences")
        },
        rewards=_curves(raw, "reward_curve"),
        accuracies=_curves(raw, "accuracy_curve"),
        held_out_rewards=_curves(raw, "held_out_reward_curve"),
        rewards_by_seed=_by_seed(raw, "reward_curve_per_seed"),
        accuracies_by_seed=_by_seed(raw, "accuracy_curve_per_seed"),
        courses={name: _course(x, f"policies.{name}") for name, x in items(raw.get("policies"), "policies")},
        explored={name: _curves(raw, f"{name}_curve") for name in EXPLORED},
        explored_by_seed={name: _by_seed(raw, f"{name}_curve_per_seed") for name in EXPLORED},
    )


def _pair(name: str) -> tuple[str, str]:
    left, _, right = name.partition(" - ")
    return left, right


def _curves(raw: Mapping[str, object], name: str) -> dict[str, Curve]:
    return {policy: tuple(_points(x, f"{name}.{policy}")) for policy, x in items(raw.get(name), name)}


def _by_seed(raw: Mapping[str, object], name: str) -> dict[str, dict[str, Curve]]:
    return {
        policy: {seed: tuple(_points(x, f"{name}.{policy}.{seed}")) for seed, x in items(by_seed, f"{name}.{policy}")}
        for policy, by_seed in items(raw.get(name), name)
    }


def _points(value: object, where: str) -> Iterator[tuple[float, float]]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise fault(where, value, "a list of [update, value]")
    for i, point in enumerate(value):
        if isinstance(point, str) or not isinstance(point, Sequence) or len(point) != 2:
            raise fault(f"{where}.{i}", point, "[update, value]")
        yield number(point[0], f"{where}.{i}"), number(point[1], f"{where}.{i}")


def _course(value: object, where: str) -> Course:
    raw = dict(items(value, where))
    updates, best, tokens, seconds = (
        number(raw.get(name), f"{where}.{name}") for name in ("updates", "best", "tokens", "seconds")
    )
    kl = None if raw.get("kl") is None else number(raw["kl"], f"{where}.kl")
    return Course(str(raw.get("method") or ""), updates, best, str(raw.get("stopped") or ""), tokens, seconds, kl)

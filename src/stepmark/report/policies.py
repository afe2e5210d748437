"""metrics.json's parts about policies, typed: what run/policy_evaluation.py measured, of one run or of several seeds.

stepmark report runs/reinforce_arithmetic
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stepmark.report.reading import Estimate, curve, estimate, fault, items, number

SFT = "sft"  # the generator, before any reinforcement
Curve = tuple[tuple[float, float], ...]  # (updates made, value), in the order of training


@dataclass(frozen=True, slots=True)
class Course:
    """How one policy's training went; means over seeds where there are several, tokens and seconds added up."""

    method: str
    updates: float  # made, those included that were rolled back
    best: float  # the update whose policy was handed on
    stopped: str  # why it ended early; "" if it didn't
    tokens: float  # generated for learning
    seconds: float
    kl: float | None  # from the generator, nats a token; None where nobody looked


@dataclass(frozen=True, slots=True)
class Policies:
    """What policies came to, the generator's own figures under `sft`."""

    greedy: Mapping[str, Estimate]  # policy -> accuracy
    differences: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)  # (A, B) -> A - B, greedy, paired
    after: Mapping[str, Mapping[str, Mapping[int, Estimate]]] = field(default_factory=dict)  # policy -> method -> N
    # policy -> (A, B) -> N: two ways of choosing on its samples; B may be greedy, or sft: the same on those of sft
    after_differences: Mapping[str, Mapping[tuple[str, str], Mapping[int, Estimate]]] = field(default_factory=dict)
    rewards: Mapping[str, Curve] = field(default_factory=dict)  # policy -> mean reward of the attempts, by update
    accuracies: Mapping[str, Curve] = field(default_factory=dict)  # policy -> greedy, on held-out problems
    held_out_rewards: Mapping[str, Curve] = field(default_factory=dict)  # policy -> of those same greedy attempts
    rewards_by_seed: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)  # policy -> seed -> as above
    accuracies_by_seed: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    courses: Mapping[str, Course] = field(default_factory=dict)

    @property
    def trained(self) -> list[str]:
        """The policies without the generator."""
        return [name for name in self.greedy if name != SFT]

    @property
    def best(self) -> str:
        """The policy that is most accurate greedily, perhaps sft."""
        return max(self.greedy, key=lambda name: self.greedy[name].mean)

    def difference(self, left: str, right: str) -> Estimate | None:
        """left - right, whichever way round it is stored."""
        if (left, right) in self.differences:
            return self.differences[left, right]
        if (found := self.differences.get((right, left))) is None:
            return None
        turned = [None if end is None else -end for end in (found.high, found.low)]
        return Estimate(-found.mean, *turned)


def parse(raw: Mapping[str, object]) -> Policies | None:
    """From the decoded metrics.json; None where nothing was reinforced. Raises DataError naming what isn't as it
    should be."""
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
    )


def _pair(name: str) -> tuple[str, str]:
    left, _, right = name.partition(" - ")
    return left, right


def _curves(raw: Mapping[str, object], name: str) -> dict[str, Curve]:
    return {policy: tuple(_points(x, f"{name}.{policy}")) for policy, x in items(raw.get(name), name)}


def _by_seed(raw: Mapping[str, object], name: str) -> dict[str, dict[str, Curve]]:
    return {
        policy: {seed: tuple(_points(x, f"{name}.{policy}.{seed}")) for seed, x in items(found, f"{name}.{policy}")}
        for policy, found in items(raw.get(name), name)
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

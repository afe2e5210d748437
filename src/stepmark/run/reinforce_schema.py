"""The section `reinforce` of a recipe: which policies learn, from which rewards, and how they are judged.

    reinforce:
      split: train                                     # prompts: problems of the task
      problems: 2000
      held_out: {split: dev, problems: 200}            # what the guards look at
      test: {split: test, problems: 500, n: 16}        # greedy accuracy; votes and best-of-N before and after
      settings: {updates: 40, prompts: 64}             # rl/settings.py, of all policies
      policies:
        rft: {method: rft, samples: 8, train: {epochs: 2}}
        orm_ppo: {reward: orm, credit: outcome}
        step_ppo: {reward: prm, settings: {kl: 0.02}}  # own changes
        mixed: {method: grpo, reward: {prm: 1.0, gold: 0.5}}
      refresh: {verifier: prm, policy: step_ppo, problems: 600, n: 4}

A reward is a verifier of the recipe or `gold`, the reference answers. The generator itself goes by the name `sft`.

    stepmark run recipes/reinforce_arithmetic.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field, WrapValidator, model_validator

from stepmark.plugins import registry
from stepmark.rl.rewards import Credit
from stepmark.rl.settings import ReinforceSettings
from stepmark.run.schema import Generator, Name, Sample, Settings, Train, Verifier, collect_faults
from stepmark.stages.train import TrainSettings

GOLD = "gold"  # the reward that rests on reference answers
SFT = "sft"  # the generator, before any reinforcement
DRAWN = ("temperature", "max_tokens", "stop")  # what attempts share with the recipe's other samples, unless they say so

ReinforceSettings.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
Reinforcing = Annotated[ReinforceSettings, WrapValidator(collect_faults)]


class Policy(Settings):
    """One way to go on from the generator."""

    method: Literal["ppo", "grpo", "rft"] = "ppo"  # step-by-step PPO, GRPO, or rejection sampling fine-tuning
    reward: Name | dict[Name, float] | None = None  # a verifier or `gold`, or several with their weights; rft has none
    credit: Credit | None = None  # what scores become; null: min (grpo: sum) for a verifier of steps, else outcome
    settings: Reinforcing = ReinforceSettings()  # rft takes only `temperature`, `max_tokens`, `stop` and `seed` of them
    samples: int = Field(default=8, ge=1)  # attempts of rft at each problem
    train: Train | None = None  # how rft learns from those it keeps

    @model_validator(mode="after")
    def _whole(self) -> Policy:
        if self.method == "rft":
            for name in ("reward", "credit"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: rft keeps what the grader finds correct; leave it out")
            return self
        if not self.reward:
            raise ValueError("reward is missing: name a verifier of the recipe, or gold")
        if self.train is not None or ("samples" in self.model_fields_set and self.samples != 8):
            raise ValueError(f"train and samples are rft's; {self.method} has settings, settings.samples among them")
        if self.credit is not None and set(self.rewards) == {GOLD}:
            raise ValueError("credit: gold answers say nothing of steps; leave it out")
        if weights := [w for w in self.rewards.values() if not 0 < w < float("inf")]:
            raise ValueError(f"reward: a weight must be above 0, got {weights[0]}")
        return self

    @property
    def rewards(self) -> dict[str, float]:
        """What it earns by, with weights."""
        return {self.reward: 1.0} if isinstance(self.reward, str) else dict(sorted((self.reward or {}).items()))

    @property
    def training(self) -> TrainSettings:
        """How rft learns."""
        return self.train or TrainSettings()


class HeldOut(Settings):
    """Problems that guards look at while policies learn."""

    split: str = "dev"
    problems: int = Field(default=200, ge=1)


class PolicyTest(Settings):
    """Problems that policies are judged on when they have learned."""

    split: str = "test"
    problems: int | None = Field(default=500, ge=1)  # null takes all
    n: int = Field(default=16, ge=1, le=256)  # samples of each problem, for votes and best-of-N; 1 measures greedy only


class Refresh(Settings):
    """A verifier trained anew, on labelled samples of a policy beside what it learned from before."""

    verifier: Name  # the verifier to train anew
    policy: Name  # the policy whose solutions it learns from
    problems: int | None = Field(default=None, ge=1)  # the first of those that policies learn from; null takes all
    n: int = Field(default=4, ge=1)  # samples of each
    keep: bool = True  # whether it also learns from what it learned from before
    # 2: the policy goes on with the refreshed verifier, as POLICY_2; 3: that one refreshes it again, and so on
    rounds: int = Field(default=1, ge=1)

    def verifier_of(self, round: int) -> str:
        """The name of the verifier that the policy of a round, from 1, is the source of."""
        return f"{self.verifier}_refreshed" + (f"_{round}" if round > 1 else "")

    def policy_of(self, round: int) -> str:
        """The name of the policy that learns in a round, from 1."""
        return self.policy + (f"_{round}" if round > 1 else "")

    @property
    def made(self) -> tuple[str, ...]:
        """The names of all verifiers that it makes."""
        return tuple(self.verifier_of(i) for i in range(1, max(1, self.rounds - 1) + 1))


class Reinforce(Settings):
    """What reinforcement is made of."""

    split: str = "train"  # of the task: problems that policies learn from
    problems: int | None = Field(default=2000, ge=1)  # null takes all
    held_out: HeldOut = HeldOut()  # problems that are looked at while policies learn
    test: PolicyTest = PolicyTest()  # problems that policies are tested on
    settings: Reinforcing = ReinforceSettings()  # of all policies; each may have changes of its own
    policies: dict[Name, Policy] = Field(min_length=1)  # what learns, by name
    verifiers: tuple[Name, ...] | None = None  # those that choose among the test's samples; null: all of the recipe
    refresh: Refresh | None = None  # train a verifier anew on what a policy writes

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, value: Any) -> Any:
        """Each policy has the settings of all, with its own changes; its method is one of them."""
        if not isinstance(value, Mapping) or not isinstance(value.get("policies"), Mapping):
            return value
        shared = value.get("settings") or {}
        try:
            pydantic.TypeAdapter(Reinforcing).validate_python(shared)
        except pydantic.ValidationError:
            return value  # its faults are said once, not for every policy
        policies = {name: _with(shared, p) if isinstance(p, Mapping) else p for name, p in value["policies"].items()}
        return {**value, "policies": policies}

    def misfits(
        self, generator: Generator | None, sample: Sample, verifiers: Mapping[str, Verifier], task: object
    ) -> Iterator[str]:
        """What of it does not fit the rest of the recipe."""
        if task is None or generator is None or not generator.has_model:
            yield "reinforce: policies start from the generator's model; that needs a task and a generator with a model"
        yield from self._overlaps(generator, sample)
        for name, policy in self.policies.items():
            yield from self._unrewarded(name, policy, verifiers, generator)
        known = [*verifiers, *(self.refresh.made if self.refresh else ())]
        for name in verifiers:
            if name == GOLD or (self.refresh is not None and name in self.refresh.made):
                yield f"verifiers.{name}: the name is taken by reinforce; rename it"
        for name in self.verifiers or ():
            if name not in known:
                yield f"reinforce.verifiers has {name}; there are {', '.join(known) or 'none'}"
        if self.refresh is not None:
            yield from self._stale(self.refresh, verifiers)

    def _overlaps(self, generator: Generator | None, sample: Sample) -> Iterator[str]:
        """Problems that would be learned from, or looked at, and then be a test."""
        parts = {"split": self.split, "held_out.split": self.held_out.split}
        if self.split == self.held_out.split:
            yield f"reinforce.held_out.split is {self.split!r}, which policies learn from: guards would see nothing"
        learned = {"sample.train.split": sample.train.split}
        if generator is not None and generator.train is not None:
            learned["generator.split"] = generator.split
        for what, split in ({f"reinforce.{k}": v for k, v in parts.items()} | learned).items():
            if split == self.test.split:
                yield f"reinforce.test.split is {split!r}, and so is {what}: what is learned from can't be a test"

    def _unrewarded(
        self, name: str, policy: Policy, verifiers: Mapping[str, Verifier], generator: Generator | None
    ) -> Iterator[str]:
        if name == SFT:
            yield f"reinforce.policies.{SFT}: that is the generator's own name; rename it"
        for reward in policy.rewards:
            if reward not in (*verifiers, GOLD):
                yield f"reinforce.policies.{name}.reward is {reward!r}; it can be {', '.join((*verifiers, GOLD))}"
        if policy.method == "rft":
            if generator is not None and generator.backend.options.get("chat_template"):
                yield f"reinforce.policies.{name}: rft learns plain prompts, not chat_template; use ppo"
            other = [k for k in self.settings.__slots__ if k not in ("method", "seed", *DRAWN)]
            if changed := [k for k in other if getattr(policy.settings, k) != getattr(self.settings, k)]:
                yield (
                    f"reinforce.policies.{name}.settings has {', '.join(changed)}, which rft does not read; "
                    "it has samples and train"
                )

    def _stale(self, refresh: Refresh, verifiers: Mapping[str, Verifier]) -> Iterator[str]:
        policy = self.policies.get(refresh.policy)
        if policy is None:
            yield f"reinforce.refresh.policy is {refresh.policy!r}; it can be {', '.join(self.policies)}"
        elif refresh.rounds > 1 and refresh.verifier not in policy.rewards:
            yield f"reinforce.refresh.rounds: {refresh.policy} is not rewarded by {refresh.verifier}: it can't go on"
        for round in range(2, refresh.rounds + 1):
            if (name := refresh.policy_of(round)) in self.policies:
                yield f"reinforce.policies.{name}: the name is taken by refresh.rounds; rename it"
        found = verifiers.get(refresh.verifier)
        if found is None:
            yield f"reinforce.refresh.verifier is {refresh.verifier!r}; it can be {', '.join(verifiers) or 'none'}"
            return
        why = "learns nothing" if not found.learns else "builds on another" if found.below else ""
        if not why and getattr(registry.find("verifier", found.kind), "generates", False):
            why = "learns from written verifications"
        if why:
            yield f"reinforce.refresh.verifier: {refresh.verifier} {why}; it can be one that learns from labels"


def filled(reinforce: Any, sample: Any) -> Any:
    """The section where attempts are drawn as the recipe's other samples are, unless it says otherwise."""
    if not isinstance(reinforce, Mapping) or not isinstance(sample, Mapping):
        return reinforce
    settings = reinforce.get("settings") or {}
    if not isinstance(settings, Mapping):
        return reinforce
    return {**reinforce, "settings": {k: sample[k] for k in DRAWN if k in sample} | dict(settings)}


def _with(shared: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    own = policy.get("settings") or {}
    if not isinstance(own, Mapping):
        return dict(policy)
    usual = {**shared, **own}
    method = policy.get("method", usual.get("method", "ppo"))
    # GRPO's own checks, such as that of its group, are made with the method that it has.
    return {**policy, "method": method, "settings": usual | ({"method": method} if method in ("ppo", "grpo") else {})}

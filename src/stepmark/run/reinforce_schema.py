"""The section `reinforce` of a recipe: the policies, their rewards, and the problems that they are tested on.

    reinforce:
      split: train                                     # problems of the task to learn from
      problems: 2000
      held_out: {split: dev, problems: 200}            # the guards watch accuracy on these
      test: {split: test, problems: 500, n: 16}        # greedy accuracy; votes and best-of-N before and after
      settings: {updates: 40, prompts: 64}             # settings of all policies (rl/settings.py)
      policies:
        rft: {method: rft, samples: 8, train: {epochs: 2}}
        orm_ppo: {reward: orm, credit: outcome}
        step_ppo: {reward: prm, settings: {kl: 0.02}}  # its own changes
        mixed: {method: grpo, reward: {prm: 1.0, gold: 0.5}}
      refresh: {verifier: prm, policy: step_ppo, problems: 600, n: 4}

A reward is a verifier of the recipe, or `gold`: the grade against the reference answer. The generator itself has the
name `sft`.

The comment at a setting is its description on the documentation site.

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

GOLD = "gold"  # the reward that is the grade against the reference answer
SFT = "sft"  # the generator, before any reinforcement
# settings of sampling that attempts take from the section `sample`, unless `settings` has them
DRAWN = ("temperature", "max_tokens", "stop")

ReinforceSettings.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
Reinforcing = Annotated[ReinforceSettings, WrapValidator(collect_faults)]


class Policy(Settings):
    """A policy: a copy of the generator that is trained further."""

    # the algorithm: step-by-step PPO, GRPO, or rejection sampling fine-tuning
    method: Literal["ppo", "grpo", "rft"] = "ppo"
    reward: Name | dict[Name, float] | None = None  # a verifier or `gold`, or several with their weights; none for rft
    # how the reward's scores become rewards of tokens; null: `min` (for grpo `sum`) where it scores steps, else
    # `outcome`
    credit: Credit | None = None
    # settings of its training, instead of those of all policies; rft uses only `temperature`, `max_tokens`, `stop`
    # and `seed`
    settings: Reinforcing = ReinforceSettings()
    samples: int = Field(default=8, ge=1)  # only for rft: attempts at each problem
    train: Train | None = None  # only for rft: settings of its training on the attempts that it keeps

    @model_validator(mode="after")
    def _check_method(self) -> Policy:
        if self.method == "rft":
            for name in ("reward", "credit"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: rft keeps the attempts that the grader finds correct; leave it out")
            return self
        if not self.reward:
            raise ValueError("reward is missing: name a verifier of the recipe, or gold")
        if self.train is not None or ("samples" in self.model_fields_set and self.samples != 8):
            raise ValueError(
                f"train and samples are only for rft; {self.method} has settings, and samples is one of them"
            )
        if self.credit is not None and set(self.rewards) == {GOLD}:
            raise ValueError("credit: gold grades whole solutions, not steps; leave it out")
        if weights := [w for w in self.rewards.values() if not 0 < w < float("inf")]:
            raise ValueError(f"reward: a weight must be above 0, got {weights[0]}")
        return self

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards, a verifier's name or `gold` -> weight."""
        return {self.reward: 1.0} if isinstance(self.reward, str) else dict(sorted((self.reward or {}).items()))

    @property
    def training(self) -> TrainSettings:
        """Settings of rft's training."""
        return self.train or TrainSettings()


class HeldOut(Settings):
    """Problems that guards watch a policy's accuracy on while it learns."""

    split: str = "dev"  # split of the task
    problems: int = Field(default=200, ge=1)  # number of problems


class PolicyTest(Settings):
    """Problems that trained policies are tested on."""

    split: str = "test"  # split of the task
    problems: int | None = Field(default=500, ge=1)  # number of problems; null means all
    # samples of each problem, for votes and best-of-N; 1 means none: only greedy accuracy is measured
    n: int = Field(default=16, ge=1, le=256)


class Refresh(Settings):
    """A verifier that is trained again, on labelled solutions of a policy in addition to its first training data."""

    verifier: Name  # the verifier to train again
    policy: Name  # the policy whose solutions it learns from
    # number of problems, the first of those that policies learn from; null means all
    problems: int | None = Field(default=None, ge=1)
    n: int = Field(default=4, ge=1)  # solutions of each problem
    keep: bool = True  # also train on the verifier's first training data
    # 1: only the verifier is trained again; 2: then the policy is trained further with it, as POLICY_2; 3: then the
    # verifier is trained again on solutions of POLICY_2, and POLICY_3 with it, and so on
    rounds: int = Field(default=1, ge=1)

    def verifier_of(self, round: int) -> str:
        """The name of the verifier that is trained on solutions of the policy of a round; rounds count from 1."""
        return f"{self.verifier}_refreshed" + (f"_{round}" if round > 1 else "")

    def policy_of(self, round: int) -> str:
        """The name of the policy that learns in a round; rounds count from 1."""
        return self.policy + (f"_{round}" if round > 1 else "")

    @property
    def made(self) -> tuple[str, ...]:
        """The names of all refreshed verifiers."""
        return tuple(self.verifier_of(i) for i in range(1, max(1, self.rounds - 1) + 1))


class Reinforce(Settings):
    """Reinforcement: policies start from the generator and learn from rewards."""

    split: str = "train"  # split of the task that policies learn from
    problems: int | None = Field(default=2000, ge=1)  # number of problems that policies learn from; null means all
    held_out: HeldOut = HeldOut()  # problems that accuracy is watched on while policies learn
    test: PolicyTest = PolicyTest()  # problems that policies are tested on
    settings: Reinforcing = ReinforceSettings()  # training settings of all policies; a policy can change its own
    policies: dict[Name, Policy] = Field(min_length=1)  # the policies to train, by name
    verifiers: tuple[Name, ...] | None = None  # verifiers that choose among the test's samples; null: all of the recipe
    refresh: Refresh | None = None  # train a verifier again on solutions of a policy; null: no verifier

    @model_validator(mode="before")
    @classmethod
    def _share_settings(cls, value: Any) -> Any:
        """Each policy gets the settings of all, with its own changes; the method is one of these settings."""
        if not isinstance(value, Mapping) or not isinstance(value.get("policies"), Mapping):
            return value
        shared = value.get("settings") or {}
        try:
            pydantic.TypeAdapter(Reinforcing).validate_python(shared)
        except pydantic.ValidationError:
            return value  # its faults are reported once, not for every policy
        policies = {
            name: _with_shared(shared, policy) if isinstance(policy, Mapping) else policy
            for name, policy in value["policies"].items()
        }
        return {**value, "policies": policies}

    def misfits(
        self, generator: Generator | None, sample: Sample, verifiers: Mapping[str, Verifier], task: object
    ) -> Iterator[str]:
        """Messages about settings that do not fit the rest of the recipe."""
        if task is None or generator is None or not generator.has_model:
            yield "reinforce: policies start from the generator's model; give a task and a generator with a model"
        yield from self._split_faults(generator, sample)
        for name, policy in self.policies.items():
            yield from self._policy_faults(name, policy, verifiers, generator)
        known = [*verifiers, *(self.refresh.made if self.refresh else ())]
        for name in verifiers:
            if name == GOLD or (self.refresh is not None and name in self.refresh.made):
                yield f"verifiers.{name}: the section reinforce uses this name; rename the verifier"
        for name in self.verifiers or ():
            if name not in known:
                yield f"reinforce.verifiers has {name}; allowed are {', '.join(known) or 'none'}"
        if self.refresh is not None:
            yield from self._refresh_faults(self.refresh, verifiers)

    def _split_faults(self, generator: Generator | None, sample: Sample) -> Iterator[str]:
        """Splits that are used twice: to learn from, to watch, or to test on."""
        parts = {"split": self.split, "held_out.split": self.held_out.split}
        if self.split == self.held_out.split:
            yield f"reinforce.held_out.split is {self.split!r}, which policies learn from; choose another"
        learned = {"sample.train.split": sample.train.split}
        if generator is not None and generator.train is not None:
            learned["generator.split"] = generator.split
        for key, split in ({f"reinforce.{k}": v for k, v in parts.items()} | learned).items():
            if split == self.test.split:
                yield f"reinforce.test.split is {split!r}, and so is {key}; test on another split"

    def _policy_faults(
        self, name: str, policy: Policy, verifiers: Mapping[str, Verifier], generator: Generator | None
    ) -> Iterator[str]:
        if name == SFT:
            yield f"reinforce.policies.{SFT}: that is the generator's own name; rename the policy"
        for reward in policy.rewards:
            if reward not in (*verifiers, GOLD):
                yield f"reinforce.policies.{name}.reward is {reward!r}; it can be {', '.join((*verifiers, GOLD))}"
        if policy.method == "rft":
            if generator is not None and generator.backend.options.get("chat_template"):
                yield f"reinforce.policies.{name}: rft can't train with chat_template; use ppo or grpo"
            unused = [k for k in self.settings.__slots__ if k not in ("method", "seed", *DRAWN)]
            if changed := [k for k in unused if getattr(policy.settings, k) != getattr(self.settings, k)]:
                yield (
                    f"reinforce.policies.{name}.settings has {', '.join(changed)}, which rft does not use; "
                    "rft has samples and train"
                )

    def _refresh_faults(self, refresh: Refresh, verifiers: Mapping[str, Verifier]) -> Iterator[str]:
        policy = self.policies.get(refresh.policy)
        if policy is None:
            yield f"reinforce.refresh.policy is {refresh.policy!r}; it can be {', '.join(self.policies)}"
        elif refresh.rounds > 1 and refresh.verifier not in policy.rewards:
            yield f"reinforce.refresh.rounds: {refresh.policy} is not rewarded by {refresh.verifier}; leave it out"
        for round in range(2, refresh.rounds + 1):
            if (name := refresh.policy_of(round)) in self.policies:
                yield f"reinforce.policies.{name}: refresh.rounds uses this name; rename the policy"
        verifier = verifiers.get(refresh.verifier)
        if verifier is None:
            yield f"reinforce.refresh.verifier is {refresh.verifier!r}; it can be {', '.join(verifiers) or 'none'}"
            return
        reason = "is not trained" if not verifier.learns else "builds on another" if verifier.below else ""
        if not reason and getattr(registry.find("verifier", verifier.kind), "generates", False):
            reason = "learns from written verifications"
        if reason:
            yield f"reinforce.refresh.verifier: {refresh.verifier} {reason}; choose one that learns from step labels"


def filled(reinforce: Any, sample: Any) -> Any:
    """The section with the settings of sampling that it leaves out; these come from the section `sample`."""
    if not isinstance(reinforce, Mapping) or not isinstance(sample, Mapping):
        return reinforce
    settings = reinforce.get("settings") or {}
    if not isinstance(settings, Mapping):
        return reinforce
    return {**reinforce, "settings": {k: sample[k] for k in DRAWN if k in sample} | dict(settings)}


def _with_shared(shared: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    own = policy.get("settings") or {}
    if not isinstance(own, Mapping):
        return dict(policy)
    settings = {**shared, **own}
    method = policy.get("method", settings.get("method", "ppo"))
    # The settings know the method too: some checks, such as that of GRPO's group size, depend on it.
    return {
        **policy,
        "method": method,
        "settings": settings | ({"method": method} if method in ("ppo", "grpo") else {}),
    }

"""Stages `reinforce` and `reinforce ROUND`: policies learn from the rewards of their attempts.

In the first round all policies of the recipe learn. Where a verifier is refreshed, its policy is trained further in
later rounds, with rewards from the verifier that was refreshed on its own samples. Math-Shepherd reinforces with one
verifier that was trained before (section 4.4); later rounds are an addition of ours.

stepmark run recipes/reinforce_arithmetic.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stepmark.protocols import Grader, RewardSource
from stepmark.rl.rewards import reward_source
from stepmark.run.context import RunContext
from stepmark.run.policies import Policies, TrainedPolicy, trained_name
from stepmark.run.reinforce_schema import GOLD, SFT, Policy
from stepmark.run.stage import State
from stepmark.text.prompts import Template
from stepmark.types import Problem, SamplingParams, Solution

if TYPE_CHECKING:
    from stepmark.rl.settings import ReinforceSettings
    from stepmark.stages.train import TrainSettings


@dataclass(frozen=True, slots=True)
class _Job:
    """A policy to train."""

    name: str
    method: str
    start: str  # the checkpoint that it starts from
    place: Path  # its directory
    source: RewardSource | None  # None for rft
    settings: ReinforceSettings
    samples: int  # only for rft
    training: TrainSettings  # only for rft


@dataclass(frozen=True, slots=True)
class TrainPolicies:
    """Trains the policies of one round, as many at a time as there are workers."""

    round: int = 1

    @property
    def name(self) -> str:
        return "reinforce" if self.round == 1 else f"reinforce {self.round}"

    def inputs(self, context: RunContext) -> Sequence[str]:
        policies = Policies(context)
        files = ["problems/reinforce.jsonl", "problems/held_out.jsonl"]
        if policies.recipe.generator is not None and policies.recipe.generator.train is not None:
            files.append("generator/")
        rewards = {name for policy in policies.settings.policies.values() for name in policy.rewards}
        files += [f"verifiers/{name}/" for name, v in context.recipe.verifiers.items() if name in rewards and v.learns]
        if self.round > 1:
            refresh = policies.settings.refresh
            assert refresh is not None
            before = self.round - 1
            files += [f"policies/{refresh.policy_of(before)}/", f"verifiers/{refresh.verifier_of(before)}/"]
        return files

    def outputs(self, context: RunContext) -> Sequence[str]:
        return [f"{trained_name(self.round)}.jsonl", *(f"policies/{name}/" for name in self._policies(context))]

    def state(self, context: RunContext) -> State:
        stored = {x.policy for x in Policies(context).all_trained()}
        names = self._policies(context)
        return State(sum(name in stored for name in names), len(names))

    def run(self, context: RunContext) -> None:
        policies = Policies(context)
        stored = {x.policy for x in policies.all_trained()}
        todo = {name: policy for name, policy in self._policies(context).items() if name not in stored}
        jobs = [self._job(policies, name, policy) for name, policy in todo.items()]
        work = partial(
            _train,
            problems=list(context.problems("reinforce")),
            held_out=list(context.problems("held_out")),
            grader=context.grader,
            template=Template(context.recipe.prompt),
            steps=context.steps,
            chat=bool(policies.backend_options.get("chat_template")),
            trusted=bool(policies.backend_options.get("trust_remote_code")),
        )
        with context.log.follow_trainings([job.place for job in jobs]):
            for trained in context.executor.map(work, jobs):
                policies.trained(self.round).append([trained])
                result = trained.result
                summary = {"updates": result.updates, "best": result.best, "stopped": result.stopped}
                context.log.summary({"policy": trained.policy, **summary, "seconds": result.seconds})

    def _policies(self, context: RunContext) -> Mapping[str, Policy]:
        settings = Policies(context).settings
        if self.round == 1:
            return settings.policies
        refresh = settings.refresh
        assert refresh is not None
        return {refresh.policy_of(self.round): settings.policies[refresh.policy]}

    def _job(self, policies: Policies, name: str, policy: Policy) -> _Job:
        refresh = policies.settings.refresh
        context = policies.context
        start, rewards = SFT, policy.rewards
        if refresh is not None and self.round > 1:
            start, newest = refresh.policy_of(self.round - 1), refresh.verifier_of(self.round - 1)
            rewards = {newest if k == refresh.verifier else k: weight for k, weight in rewards.items()}
        source = None
        if policy.method != "rft":
            verifiers = {name: None if name == GOLD else policies.verifier(name) for name in rewards}
            source = reward_source(verifiers, rewards, policy.credit, context.grader, policy.method)
        return _Job(
            name,
            policy.method,
            policies.model_path(start),
            context.path / "policies" / name,
            source,
            replace(policy.settings, seed=policy.settings.seed + context.recipe.seed),
            policy.samples,
            context.settings(policy.training),
        )


def _train(
    job: _Job,
    *,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    grader: Grader,
    template: Template,
    steps: str,
    chat: bool,
    trusted: bool,
) -> TrainedPolicy:
    """Trains one policy, in the process of a worker."""
    from stepmark.rl.settings import Reinforced

    if job.source is not None:
        from stepmark.rl.loop import reinforce

        result = reinforce(
            job.start,
            problems,
            held_out,
            job.source,
            grader,
            job.place,
            job.settings,
            template=template,
            steps=steps,
            chat_template=chat,
            trust_remote_code=trusted,
        )
        return TrainedPolicy(job.name, job.method, result)
    from stepmark.data.store import Records
    from stepmark.rl.distance import divergence
    from stepmark.rl.rft import rft

    s = job.settings
    trained = rft(
        job.start,
        problems,
        grader,
        job.place,
        samples=job.samples,
        params=SamplingParams(s.max_tokens, s.temperature, stop=s.stop, seed=s.seed),
        train=job.training,
        template=template,
        steps=steps,
        progress=None,
    )
    tokens = sum(x.tokens for x in Records(job.place / "drawn" / "solutions.jsonl", Solution))
    kl = divergence(trained.path, job.start, held_out, s, template=template, steps=steps)
    done = Reinforced(trained.path, trained.updates, trained.updates, "", (), (), (), tokens, kl, trained.seconds)
    return TrainedPolicy(job.name, job.method, done)

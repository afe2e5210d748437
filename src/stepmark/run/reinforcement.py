"""The stages of reinforcement in a run: policies learn, verifiers are refreshed, and all of it is tried on a test.

    RUN/problems/{reinforce,held_out,after}
    RUN/policies/NAME/             checkpoint of a policy, with its log; RUN/policies.jsonl says what each came to
    RUN/refreshed/NAME/            solutions, grades and labels that the verifier NAME learns from
    RUN/verifiers/NAME/            the refreshed verifiers are where the others are
    RUN/after/POLICY/              greedy solutions and samples of the test's problems, and their grades and scores

Math-Shepherd reinforces against a verifier that was trained before (section 4.4). `refresh` goes on from there, as its
own table 3 asks for: the verifier learns anew from what the policy writes now. The policy that wrote the samples also
completes their prefixes, unless the recipe has a completer of its own.

    stepmark run recipes/reinforce_arithmetic.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stepmark.data.ledger import Budget
from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records, RunDir
from stepmark.data.work_units import Failed, pair
from stepmark.errors import DataError
from stepmark.plugins.loading import load_executor, load_verifier
from stepmark.protocols import Backend, Grader, RewardSource, Verifier
from stepmark.run import policy_evaluation
from stepmark.run.context import RunContext
from stepmark.run.log import RunLog
from stepmark.run.policy_evaluation import PolicySamples, TrainedPolicy
from stepmark.run.recipe import Recipe
from stepmark.run.reinforce_schema import GOLD, SFT, Policy, Reinforce
from stepmark.run.training_data import Example, TrainingData
from stepmark.stages.grade import grade
from stepmark.stages.label import distinct, label, ledgers, references_among
from stepmark.stages.sample import sample
from stepmark.stages.score import score
from stepmark.text.prompts import Template
from stepmark.types import (
    GradedSolution,
    LabelledSolution,
    Problem,
    Progress,
    SamplingParams,
    Solution,
    StepLabel,
    Verification,
)

if TYPE_CHECKING:
    from stepmark.rl.rewards import Credit
    from stepmark.rl.settings import ReinforceSettings
    from stepmark.stages.train import TrainSettings

Teach = Callable[[str, str, list[Example]], None]  # trains one of the recipe's verifiers anew, under another name


@dataclass(frozen=True, slots=True)
class _Job:
    """A policy to train."""

    name: str
    method: str
    start: str  # the checkpoint that it goes on from
    place: Path  # its directory
    source: RewardSource | None  # None for rft
    settings: ReinforceSettings
    samples: int  # of rft
    training: TrainSettings  # of rft


@dataclass(frozen=True, slots=True)
class _Trial:
    """A policy to try."""

    name: str
    backend: Backend
    place: Path  # where its solutions, grades and scores go


class Reinforcing:
    """Reinforcement on one open run directory whose verifiers are trained. Each stage is a method."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDir,
        on: RunContext,
        lessons: TrainingData,
        journal: RunLog,
        teach: Teach,
        budget: Budget | None = None,
    ) -> None:
        assert recipe.reinforce is not None
        self.recipe, self.directory, self.on, self.lessons = recipe, directory, on, lessons
        self.journal, self.teach, self.budget = journal, teach, budget
        self.how: Reinforce = recipe.reinforce
        # A policy that writes badly is a finding here, not a reason to stop.
        self.limits = replace(recipe.limits, truncated=1.0, ungradable=1.0)

    def finish(self) -> None:
        """All stages but `problems`, which comes before anything is trained, and `evaluate`."""
        self.learn(self.how.policies)
        refresh = self.how.refresh
        for round in range(1, len(refresh.made) + 1) if refresh is not None else ():
            assert refresh is not None
            self.refresh(round)
            if round < refresh.rounds:
                self.learn({refresh.policy_of(round + 1): self.how.policies[refresh.policy]}, round + 1)
        self.try_all()

    # ---- stages ----

    def problems(self) -> None:
        """Loads the problems that policies learn from, are watched on and are judged on."""
        assert self.on.task is not None
        with self.journal.stage("problems"):
            for part, split, most in (
                ("reinforce", self.how.split, self.how.problems),
                ("held_out", self.how.held_out.split, self.how.held_out.problems),
                ("after", self.how.test.split, self.how.test.problems),
            ):
                loaded = self.on.task.load(split, most).problems
                if not loaded:
                    raise DataError(f"reinforce: the split {split!r} of the task has no usable problem.")
                records = self.on.problems(part)
                there = records.keys()
                records.append(p for p in loaded if p.key not in there)
            asked = {part: {p.question for p in self.on.problems(part)} for part in ("reinforce", "held_out", "after")}
            for a, b in combinations(asked, 2):
                if both := asked[a] & asked[b]:
                    raise DataError(
                        f"reinforce: {len(both)} questions are in two of its parts ({a}, {b}), e.g. {min(both)!r}. "
                        "What is learned from can't be looked at or tested on; choose splits that share none."
                    )

    def learn(self, policies: Mapping[str, Policy], round: int = 1) -> None:
        """Trains policies, as many at a time as there are workers. Those of later rounds go on from the one before,
        rewarded by the verifier that was refreshed on it."""
        there = self._learned.keys()
        todo = {name: policy for name, policy in policies.items() if name not in there}
        if not todo:
            return
        with self.journal.stage("reinforce"):
            jobs = [self._job(name, policy, round) for name, policy in todo.items()]
            work = partial(
                _learn,
                problems=list(self.on.problems("reinforce")),
                held_out=list(self.on.problems("held_out")),
                grader=self.on.grader,
                template=Template(self.recipe.prompt),
                steps=self.on.steps,
                chat=bool(self._options.get("chat_template")),
                trusted=bool(self._options.get("trust_remote_code")),
            )
            with self.journal.watch([job.place for job in jobs]):
                for learned in self.on.executor.map(work, jobs):
                    self._learned.append([learned])
                    found = learned.result
                    said = {"updates": found.updates, "best": found.best, "stopped": found.stopped}
                    self.journal.note({"policy": learned.policy, **said, "seconds": found.seconds})

    def refresh(self, round: int) -> None:
        """Has a policy draw solutions, labels them and trains the verifier anew."""
        refresh = self.how.refresh
        assert refresh is not None
        name, policy = refresh.verifier_of(round), refresh.policy_of(round)
        if (self.directory.path / "verifiers" / name / "trained.json").exists():
            return
        problems = list(self.on.problems("reinforce"))[: refresh.problems]
        solutions = self.directory.records(f"refreshed/{name}/solutions", Solution)
        grades = self.directory.records(f"refreshed/{name}/grades", GradedSolution)
        with self.journal.stage("refresh"):
            self._sample(policy, problems, solutions, refresh.n, self.recipe.params)
            self._grade(problems, solutions, grades)
            examples = self._labelled(name, policy, pair(problems, solutions))
        self.teach(refresh.verifier, name, [*(self.lessons.examples() if refresh.keep else ()), *examples])

    def try_all(self) -> None:
        """Lets the generator and every policy answer the test's problems, greedily and in samples, and scores those: as
        many policies at a time as there are workers."""
        problems = list(self.on.problems("after"))
        verifiers = {name: self._verifier(name) for name in self._verifiers} if self.how.test.n > 1 else {}
        todo = [name for name in self._names if not self._whole(name, len(problems), verifiers)]
        if not todo:
            return
        with self.journal.stage("try policies"):
            work = partial(
                _try,
                problems=problems,
                n=self.how.test.n,
                verifiers=verifiers,
                grader=self.on.grader,
                template=Template(self.recipe.prompt),
                params=self.recipe.params,
                steps=self.on.steps,
                limits=self.limits,
            )
            trials = [_Trial(name, self._backend(name), self.directory.path / "after" / name) for name in todo]
            for done, (name, failed) in enumerate(self.on.executor.map(work, trials), 1):
                self.journal.note({"policy": name}, failed)
                self.journal.tell(Progress("", done, len(trials), self.journal.elapsed, name))

    def evaluate(self) -> dict[str, Any]:
        """What it all came to, as metrics.json has it."""
        with self.journal.stage("evaluate"):
            found = policy_evaluation.measure(
                list(self.on.problems("after")),
                {name: self._stored(name) for name in self._names},
                sorted(self._learned, key=lambda x: self._names.index(x.policy)),
                ns=sorted({1, self.how.test.n, *(n for n in self.recipe.evaluate.n if n < self.how.test.n)}),
                aggregate=self.recipe.evaluate.aggregates[0],
                seed=self.recipe.seed,
                first=SFT,
            )
        return found.to_json()

    # ---- pieces of stages ----

    def _job(self, name: str, policy: Policy, round: int) -> _Job:
        refresh = self.how.refresh
        start, rewards = SFT, policy.rewards
        if refresh is not None and round > 1:
            start, newest = refresh.policy_of(round - 1), refresh.verifier_of(round - 1)
            rewards = {newest if k == refresh.verifier else k: weight for k, weight in rewards.items()}
        return _Job(
            name,
            policy.method,
            self._model(start),
            self._place(name),
            None if policy.method == "rft" else self._source(rewards, policy),
            replace(policy.settings, seed=policy.settings.seed + self.recipe.seed),
            policy.samples,
            self.on.settings(policy.training),
        )

    def _source(self, rewards: Mapping[str, float], policy: Policy) -> RewardSource:
        """What a policy earns by: verifiers, gold answers, or several with weights."""
        verifiers = {name: None if name == GOLD else self._verifier(name) for name in rewards}
        return reward_source(verifiers, rewards, policy.credit, self.on.grader, policy.method)

    def _sample(self, policy: str, problems: Sequence[Problem], out: Any, n: int, params: SamplingParams) -> None:
        done = sample(
            problems,
            self._backend(policy),
            out,
            n=n,
            context=Template(self.recipe.prompt),
            params=params,
            steps=self.on.steps,
            limits=self.limits,
            executor=self.on.executor,
            progress=self.journal.tell,
        )
        self.journal.note({"policy": policy, **asdict(done)}, done.failed)

    def _grade(self, problems: Sequence[Problem], solutions: Iterable[Solution], out: Any) -> None:
        done = grade(solutions, problems, self.on.grader, out, limits=self.limits, executor=self.on.executor)
        self.journal.note(asdict(done), done.failed)

    def _labelled(self, name: str, policy: str, pairs: Sequence[tuple[Problem, Solution]]) -> list[Example]:
        """The policy's solutions as a verifier learns from them, with step labels where the recipe has a labeller."""
        grades = {g.solution_id: g.grade for g in self.directory.records(f"refreshed/{name}/grades", GradedSolution)}
        labeler = self.recipe.label
        given = distinct(pairs) if labeler is None or labeler.distinct else list(pairs)
        if labeler is None:
            nothing = StepLabel(0, 0, source="none")
            return [
                (p, LabelledSolution(s, grades[s.id], (nothing,) * len(s.spans))) for p, s in given if s.id in grades
            ]
        tools = self.on.tools
        if self.recipe.completer is None:
            tools = replace(tools, completer=self._backend(policy))
        labels = self.directory.records(f"refreshed/{name}/labels", LabelledSolution)
        done = label(
            given,
            labeler.load(),
            tools,
            labels,
            references=references_among(given, lambda _, s: grades.get(s.id)),
            ledgers=ledgers(self.directory.path / "rollouts" / name, tools),
            budget=self.budget,
            limits=self.limits,
            executor=self.on.executor,
            progress=self.journal.tell,
        )
        self.journal.note({"verifier": name, **asdict(done)}, done.failed)
        found = {x.key: x for x in labels}
        return [(p, found[s.id]) for p, s in given if s.id in found]

    def _stored(self, policy: str) -> PolicySamples:
        """What a policy made of the test's problems, as far as every stage got through."""
        scores = {v: list(self._tried(policy, f"scores/{v}", Verification)) for v in self._verifiers}
        grades = list(self._tried(policy, "grades", GradedSolution))
        whole = {g.key for g in grades}.intersection(*({x.key for x in found} for found in scores.values()))
        return PolicySamples(
            list(self._tried(policy, "greedy_grades", GradedSolution)),
            [s for s in self._tried(policy, "solutions", Solution) if s.id in whole],
            grades,
            scores,
        )

    # ---- what there is ----

    def _whole(self, policy: str, problems: int, verifiers: Iterable[str]) -> bool:
        """Whether nothing of a policy's trial is missing."""
        samples = problems * self.how.test.n
        wanted = {"greedy_grades": problems}
        if self.how.test.n > 1:
            wanted |= {"grades": samples, **{f"scores/{name}": samples for name in verifiers}}
        kinds = {"greedy_grades": GradedSolution, "grades": GradedSolution}
        return all(len(self._tried(policy, what, kinds.get(what, Verification))) == n for what, n in wanted.items())

    @property
    def _names(self) -> list[str]:
        """The generator and all policies, in order."""
        refresh = self.how.refresh
        later = [refresh.policy_of(i) for i in range(2, refresh.rounds + 1)] if refresh is not None else []
        return [SFT, *self.how.policies, *later]

    @property
    def _verifiers(self) -> list[str]:
        """Those that choose among samples."""
        made = self.how.refresh.made if self.how.refresh is not None else ()
        return [*(self.recipe.verifiers if self.how.verifiers is None else self.how.verifiers), *made]

    def _verifier(self, name: str) -> Verifier:
        if name in self.recipe.verifiers:
            return self.on.verifier(name)
        return load_verifier(self.directory.path / "verifiers" / name)

    def _place(self, policy: str) -> Path:
        return self.directory.path / "policies" / policy

    def _model(self, policy: str) -> str:
        return self.on.model_path("generator") if policy == SFT else str(self._place(policy))

    def _backend(self, policy: str) -> Backend:
        """What runs a policy: the generator's backend, with another checkpoint."""
        assert self.recipe.generator is not None
        return cast(Backend, self.recipe.generator.backend.load(path=self._model(policy)))

    @property
    def _options(self) -> Mapping[str, Any]:
        """Of the generator's backend."""
        assert self.recipe.generator is not None
        return self.recipe.generator.backend.options

    def _tried(self, policy: str, what: str, kind: Any) -> Any:
        return self.directory.records(f"after/{policy}/{what}", kind)

    @property
    def _learned(self) -> Any:
        return self.directory.records("policies", TrainedPolicy)


def reward_source(
    verifiers: Mapping[str, Verifier | None],
    weights: Mapping[str, float],
    credit: Credit | None,
    grader: Grader,
    method: str,
) -> RewardSource:
    """A source of rewards from verifiers by name, None standing for gold answers. Several are added up by weight; a
    single one counts as it is. Without a credit an attempt earns its worst step's score; by GRPO, which normalises
    scores within the group, each step's own. By PPO that would pay for every further step, and did: attempts grew to
    three times their steps (docs/results/reinforcement.md). A verifier without scores for steps gives an outcome, among
    several whatever the credit."""
    from stepmark.rl.rewards import Gold, Mixture, Verified

    usual: Credit = "sum" if method == "grpo" else "min"

    def rewarding(found: Verifier) -> RewardSource:
        of_steps = getattr(found, "per_step", False)
        return Verified(found, credit=(credit or usual) if of_steps or (credit and len(verifiers) == 1) else "outcome")

    sources: dict[str, RewardSource] = {
        name: Gold(grader) if found is None else rewarding(found) for name, found in verifiers.items()
    }
    if len(sources) == 1 and next(iter(weights.values())) == 1:
        return next(iter(sources.values()))
    return Mixture(tuple((weights[name], source) for name, source in sources.items()))


def _try(
    trial: _Trial,
    *,
    problems: Sequence[Problem],
    n: int,
    verifiers: Mapping[str, Verifier],
    grader: Grader,
    template: Template,
    params: SamplingParams,
    steps: str,
    limits: Limits,
) -> tuple[str, tuple[Failed, ...]]:
    """Tries one policy, in whatever process this is: what is there already is not made again."""
    here = load_executor(1)
    failed: list[Failed] = []
    for count, how, names in (
        (1, replace(params, temperature=0.0), ("greedy", "greedy_grades")),
        (n, params, ("solutions", "grades")),
    ):
        if names[0] == "solutions" and n == 1:
            continue
        paths = [trial.place / f"{name}.jsonl" for name in names]
        with Records(paths[0], Solution) as solutions, Records(paths[1], GradedSolution) as grades:
            drawn = sample(
                problems,
                trial.backend,
                solutions,
                n=count,
                context=template,
                params=how,
                steps=steps,
                limits=limits,
                executor=here,
            )
            failed += drawn.failed
            failed += grade(solutions, problems, grader, grades, limits=limits, executor=here).failed
            if names[0] == "greedy":
                continue
            for name, verifier in verifiers.items():
                with Records(trial.place / "scores" / f"{name}.jsonl", Verification) as scores:
                    failed += score(verifier, problems, solutions, scores, limits=limits, executor=here).failed
    return trial.name, tuple(failed)


def _learn(
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
    """Trains one policy, in whatever process this is."""
    from stepmark.rl.settings import Reinforced

    if job.source is not None:
        from stepmark.rl.loop import reinforce

        found = reinforce(
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
        return TrainedPolicy(job.name, job.method, found)
    from stepmark.rl.distance import divergence
    from stepmark.rl.rft import rft

    how = job.settings
    trained = rft(
        job.start,
        problems,
        grader,
        job.place,
        samples=job.samples,
        params=SamplingParams(how.max_tokens, how.temperature, stop=how.stop, seed=how.seed),
        train=job.training,
        template=template,
        steps=steps,
        progress=None,
    )
    drawn = sum(s.tokens for s in Records(job.place / "drawn" / "solutions.jsonl", Solution))
    kl = divergence(trained.path, job.start, held_out, how, template=template, steps=steps)
    done = Reinforced(trained.path, trained.updates, trained.updates, "", (), (), (), drawn, kl, trained.seconds)
    return TrainedPolicy(job.name, job.method, done)

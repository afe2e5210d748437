"""What a run will cost, from a small pilot: rollouts, tokens, hours and money, for each way of labelling.

The pilot draws a few solutions of a few training problems and labels them in every way that the recipe's models
allow. All ways share their rollouts, so that the pilot pays once for what several of them ask for; what each would
have asked for is counted. Scaled up by the numbers in the recipe, that is the plan. Not in it: training and scoring.

The pilot lies in RUN/plan and touches no result. Where the recipe trains its generator first, that is done, in RUN,
where the run itself will find it.

    stepmark plan recipes/demo.yaml
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stepmark.data.ledger import Budget, Ledger, Recorded, Spent
from stepmark.errors import ConfigError, StageError
from stepmark.plugins import registry
from stepmark.protocols import Backend, Labeler, Tools
from stepmark.run.context import RunContext
from stepmark.run.execute import run_stage
from stepmark.run.pipeline import stages
from stepmark.run.pipeline.label import rationale_ledgers
from stepmark.run.recipe import Recipe
from stepmark.run.schema import Labeler as LabelerSettings
from stepmark.stages.label import distinct, ledgers, need, references_among
from stepmark.stages.sample import solution
from stepmark.text.grading import grade_solution
from stepmark.types import Finish, Prompt, Rollout, SamplingParams, Unlabelled

SPEED = "plan/speed.json"  # what the pilots so far measured
# What is compared beside the recipe's own way, where it can be done: name in the table -> labeller and its options.
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "monte_carlo N=8": ("monte_carlo", {"rollouts": 8}),
    "monte_carlo N=8, early stop": ("monte_carlo", {"rollouts": 8, "early_stop": True}),
    "monte_carlo, precision 0.1": ("monte_carlo", {"precision": 0.1}),
    "first_error N=8": ("first_error", {"rollouts": 8}),
    "judge": ("judge", {}),
    "consensus": ("consensus", {}),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage is expected to take, all in all."""

    stage: str
    solutions: float
    rollouts: float
    prompt_tokens: float  # as the backend charges them; 0 where it doesn't
    tokens: float  # generated
    hours: float
    money: float  # in the unit of the price
    error: float  # standard error of the tokens, as a share of them, from the spread between the pilot's problems


@dataclass(frozen=True, slots=True)
class Plan:
    """Expected costs, and what it took to find out."""

    sampling: tuple[Cost, ...]
    labelling: tuple[Cost, ...]  # one for each way; a run takes one of them
    own: str  # the name among them of the recipe's way; "" where it labels nothing
    pilot: Spent
    problems: int  # in the pilot
    solutions: int
    rationales: tuple[Cost, ...] = ()  # of written verifications, where the recipe has any


def plan(context: RunContext, problems: int = 24, solutions: int = 4, price_hour: float = 0.0) -> Plan:
    """What sampling, labelling and written verifications are expected to cost. `price_hour` is what an hour of this
    machine costs.

    Asks for up to `solutions` samples of each of `problems` training problems. Raises ConfigError where a recipe draws
    nothing, StageError when all samples fail, BudgetReached when the pilot reaches the run's budget, and what the
    stages raise."""
    recipe = context.recipe
    context.need_price()
    judge = recipe.judge
    if judge is not None and judge.train is not None and not context.trained("judge"):
        raise ConfigError(
            "this recipe's judge learns from solutions that the run draws: plan once the run has taught it."
        )
    parts = [part for part in recipe.sample.parts if recipe.sample.source(part).file is None]
    if not parts:
        raise ConfigError("this recipe draws no solutions, so there is nothing to plan: they come from files.")
    for stage in stages(recipe):
        if stage.name in ("problems", "train generator", "train completer"):
            run_stage(context, stage)
    part = parts[0]
    known = sorted(context.problems(part), key=lambda p: p.id)
    chosen = random.Random(recipe.seed).sample(known, min(problems, len(known)))
    drawn = min(solutions, recipe.sample.source(part).n)
    place = context.directory.path / "plan"
    tools = context.tools
    measured = (
        context.directory.read_json(SPEED)
        if (context.directory.path / SPEED).exists()
        else {"waited": {}, "tokens": {}}
    )
    speed = _Speed(recipe.workers, price_hour, **measured)

    generator = context.backend("generator")
    meter = _Meter(_opened(generator, place / "solutions.jsonl", context.budget))
    prompts = [Prompt(p.id, tools.context(p), n=drawn) for p in chosen]
    _warm_up(generator, prompts[0], tools.params)
    by_id = {p.id: p for p in chosen}
    steps = context.steps
    made = [solution(r, steps) for r in meter.sample(prompts, tools.params) if r.finish is not Finish.FAILED]
    pairs = [(by_id[s.problem_id], s) for s in sorted(made, key=lambda s: (s.problem_id, s.sample))]
    if not pairs:
        reason = next((r.reason for r in meter.recorded.known.values() if r.finish is Finish.FAILED), "")
        raise StageError(f"the pilot drew no solution, all {len(prompts) * drawn} failed, the first with: {reason}")
    speed.learn([meter])
    sampling = [
        speed.cost(f"sample {part}", len(context.problems(part)) * recipe.sample.source(part).n, len(pairs), [meter])
        for part in parts
    ]
    own, pilot = "", meter.recorded.ledger.spent

    def costs(settings: LabelerSettings, ways: Mapping[str, Labeler], paid: Mapping[str, Ledger]) -> Iterator[Cost]:
        """What each way, stage name -> labeller, would cost on all training solutions."""
        nonlocal pilot
        labelled = distinct(pairs) if settings.distinct else pairs
        total = len(context.problems("train")) * recipe.sample.train.n * len(labelled) / len(pairs)
        references = references_among(labelled, lambda p, s: grade_solution(s, p, tools.grader))
        units = [Unlabelled(p, s, tuple(references(p))) for p, s in labelled]
        opened = {role: _opened(getattr(tools, role), ledger.path, context.budget) for role, ledger in paid.items()}
        for stage, labeler in ways.items():
            meters = {role: _Meter(recorded) for role, recorded in opened.items()}
            for _ in labeler.label(units, replace(tools, **meters)):  # type: ignore[arg-type]
                pass
            speed.learn(list(meters.values()))
            yield speed.cost(stage, total, len(units), list(meters.values()))
        pilot += sum((recorded.ledger.spent for recorded in opened.values()), Spent())

    labelling: list[Cost] = []
    writing: list[Cost] = []
    if recipe.label is not None and "train" in parts:
        ways, own = _ways(recipe, tools)
        named = {f"label: {name}": way for name, way in ways.items()}
        labelling += costs(recipe.label, named, ledgers(place, tools))
    for name, writer in recipe.writers.items() if "train" in parts else ():
        writers: dict[str, Labeler] = {f"rationales{f' of {name}' * bool(name)}: {writer.name}": writer.load()}
        writing += costs(writer, writers, rationale_ledgers(place, tools, name))
    # The next plan finds these rollouts and has nothing to measure.
    context.directory.write_json(SPEED, {"waited": speed.waited, "tokens": speed.tokens})
    own = f"label: {own}" if own else ""
    return Plan(tuple(sampling), tuple(labelling), own, pilot, len(chosen), len(pairs), tuple(writing))


class _Meter:
    """A backend that counts what is asked of it, paid for or known already, and times what is new."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.asked: dict[str, Spent] = {}  # problem id -> what its rollouts cost, or would have
        self.seconds = 0.0  # waited for new rollouts
        self.tokens = 0  # generated for them

    @property
    def role(self) -> str:
        """What it does in a run, as its ledger is named."""
        return self.recorded.ledger.path.stem

    @property
    def remote(self) -> bool:
        """As the backend says: labellers go by it."""
        return self.recorded.remote

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        before = set(self.recorded.known)
        rollouts = self.recorded.sample(prompts, params)
        while True:
            began = time.monotonic()
            r = next(rollouts, None)
            if r is None:
                return
            if r.key not in before:
                self.seconds += time.monotonic() - began
                self.tokens += r.tokens
            solution_id, at, _ = r.prompt_id.rpartition("@")
            problem = solution_id.rpartition("#")[0] if at else r.prompt_id
            price = self.recorded.ledger.price
            self.asked[problem] = self.asked.get(problem, Spent()).and_of(r.finish, r.prompt_tokens, r.tokens, price)
            yield r


@dataclass
class _Speed:
    """Seconds for a token, as far as it is known, and what an hour costs."""

    workers: int  # that share the work of models in process
    price_hour: float
    waited: dict[str, float]  # role -> seconds for its new rollouts, of this pilot and earlier ones
    tokens: dict[str, int]  # role -> generated in that time

    def learn(self, meters: Sequence[_Meter]) -> None:
        """Takes in what the meters timed."""
        for m in meters:
            self.waited[m.role] = self.waited.get(m.role, 0.0) + m.seconds
            self.tokens[m.role] = self.tokens.get(m.role, 0) + m.tokens

    def cost(self, stage: str, solutions: float, of: int, meters: Sequence[_Meter]) -> Cost:
        """The cost of a stage on `solutions`, from what the meters counted on `of` of the pilot's."""
        seconds = sum(sum(s.tokens for s in m.asked.values()) * self._rate(m) for m in meters)
        each = [sum((m.asked.get(p, Spent()) for m in meters), Spent()) for p in {p for m in meters for p in m.asked}]
        all_ = sum(each, Spent())
        scale = solutions / max(1, of)
        hours = scale * seconds / 3600
        tokens = [s.tokens for s in each]
        error = stdev(tokens) / mean(tokens) / len(tokens) ** 0.5 if len(tokens) > 1 and any(tokens) else 0.0
        return Cost(
            stage,
            solutions,
            scale * all_.rollouts,
            scale * all_.prompt_tokens,
            scale * all_.tokens,
            hours,
            scale * all_.money + hours * self.price_hour,
            error,
        )

    def _rate(self, meter: _Meter) -> float:
        """Seconds for a token: models differ, so each role has its own. A server is as fast for one as for several."""
        return self.waited[meter.role] / max(1, self.tokens[meter.role]) / (1 if meter.remote else self.workers)


def _ways(recipe: Recipe, tools: Tools) -> tuple[dict[str, Labeler], str]:
    """The recipe's own way of labelling and those of WAYS that its models allow, the one that asks most first, since
    what it pays for the others get for nothing; and the name of the recipe's own."""
    assert recipe.label is not None
    mine: Labeler = recipe.label.load()
    found: dict[str, Labeler] = {}
    for name, (labeler, options) in WAYS.items():
        way: Labeler = registry.load("labeler", labeler, **options)
        try:
            need(way, tools)
        except ConfigError:
            continue
        found[name] = way
    own = next((name for name, way in found.items() if way == mine), "")
    if not own:
        shown = ", ".join(f"{k}={v}" for k, v in recipe.label.options.items())
        own = f"{recipe.label.name}{f' {shown}' if shown else ''}"
        found = {own: mine, **found}
    return found, own


def _opened(backend: Backend, path: Path, budget: Budget | None) -> Recorded:
    """With what an earlier plan paid for."""
    ledger = Ledger.of(path, backend)
    known = {r.key: r for rollouts in ledger.open(lambda _: True).values() for r in rollouts}
    return Recorded(backend, ledger, known, budget)


def _warm_up(backend: Backend, prompt: Prompt, params: SamplingParams) -> None:
    """Loads the model, so that the time it takes is not taken for work."""
    for _ in backend.sample([replace(prompt, id="warm up", n=1)], replace(params, max_tokens=1)):
        pass


def table(found: Plan) -> str:
    """The plan for a terminal."""
    rows = [("", "solutions", "rollouts", "prompt tokens", "tokens", "+-", "time", "cost")]
    rows += [
        (
            cost.stage + (" (this recipe)" if cost.stage == found.own else ""),
            f"{cost.solutions:,.0f}",
            f"{cost.rollouts:,.0f}",
            f"{cost.prompt_tokens:,.0f}" if cost.prompt_tokens else "-",
            f"{cost.tokens:,.0f}",
            f"{cost.error:.0%}",
            _time(cost.hours),
            f"{cost.money:,.2f}" if cost.money else "-",
        )
        for cost in (*found.sampling, *found.labelling, *found.rationales)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    spent = found.pilot
    lines += [
        "",
        f"From a pilot of {found.solutions} solutions to {found.problems} problems: {spent.rollouts:,} rollouts, "
        f"{spent.tokens:,} tokens{f', cost {spent.money:,.2f}' if spent.money else ''}.",
        "A run labels in one of these ways. Training and scoring are not in it; a full run fills its batches better "
        "than a pilot, so it may take fewer hours.",
    ]
    return "\n".join(lines)


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"

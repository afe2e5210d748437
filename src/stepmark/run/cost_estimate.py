"""The expected cost of a run, from a small pilot: rollouts, tokens, hours and money, for each labelling method.

The pilot samples a few solutions of a few training problems and labels them with every method that the recipe's models
allow. All methods share their rollouts, so that a rollout that several methods need is paid for once. The rollouts that
each method would need by itself are counted. The plan is these counts, scaled up by the numbers in the recipe. Training
and scoring are not in it.

The files of the pilot are in RUN/plan; it changes no result. Where the recipe trains its generator, the pilot trains it
first, in RUN, and the run itself uses it.

    stepmark plan recipes/demo.yaml
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stepmark.data.ledger import Budget, Ledger, Recorded, Spent
from stepmark.data.store import RunDir
from stepmark.errors import ConfigChanged, ConfigError, StageError
from stepmark.plugins import registry
from stepmark.protocols import Backend, Labeler, Tools
from stepmark.run import renames
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

SPEED = "plan/speed.json"  # seconds and tokens that the pilots so far measured
# The methods that are compared with the recipe's own, where its models allow: name in the table -> labeler, options.
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "monte_carlo N=8": ("monte_carlo", {"rollouts": 8}),
    "monte_carlo N=8, early stop": ("monte_carlo", {"rollouts": 8, "early_stop": True}),
    "monte_carlo, precision 0.1": ("monte_carlo", {"precision": 0.1}),
    "first_error N=8": ("first_error", {"rollouts": 8}),
    "judge": ("judge", {}),
    "consensus": ("consensus", {}),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """The expected cost of a whole stage."""

    stage: str
    solutions: float
    rollouts: float
    prompt_tokens: float  # that the backend charges for; 0 where it charges for none
    tokens: float  # generated
    hours: float
    money: float  # in the unit of the price
    error: float  # relative standard error of the tokens, from the spread between the pilot's problems


@dataclass(frozen=True, slots=True)
class Plan:
    """Expected costs, and the cost of the pilot."""

    sampling: tuple[Cost, ...]
    labelling: tuple[Cost, ...]  # one for each method; a run uses one of them
    own: str  # name of the recipe's own method among them; "" where the recipe labels nothing
    pilot: Spent  # cost of the pilot
    problems: int  # in the pilot
    solutions: int  # in the pilot
    rationales: tuple[Cost, ...] = ()  # of written verifications, where the recipe has any


def place_of(recipe: Recipe, run: Path) -> Path:
    """Where a plan goes if the user names no directory: that of the run or, if it has other settings, one of its own
    beside it. So variants of a recipe can be planned one after the other."""
    settings = recipe.resolved()
    try:
        RunDir(run).compare(settings, renames.upgraded)
    except ConfigChanged:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return run.with_name(f"{run.name}-plan-{digest}")
    return run


def plan(context: RunContext, problems: int = 24, solutions: int = 4, price_hour: float = 0.0) -> Plan:
    """The expected cost of sampling, labelling and written verifications. `price_hour` is the price of an hour of this
    machine.

    The pilot takes up to `solutions` samples of each of `problems` training problems. Raises ConfigError for a recipe
    that samples no solutions, StageError when all samples fail, BudgetReached when the pilot reaches the run's budget,
    and the errors of the stages."""
    recipe = context.recipe
    context.need_price()
    judge = recipe.judge
    if judge is not None and judge.train is not None and not context.trained("judge"):
        raise ConfigError(
            "this recipe's judge is trained on solutions of the run. Run its stage `train judge` first, then plan."
        )
    parts = [part for part in recipe.sample.parts if recipe.sample.source(part).file is None]
    if not parts:
        raise ConfigError("there is nothing to plan: all solutions of this recipe come from files.")
    for stage in stages(recipe):
        if stage.name in ("problems", "train generator", "train completer"):
            run_stage(context, stage)
    part = parts[0]
    stored = sorted(context.problems(part), key=lambda p: p.id)
    chosen = random.Random(recipe.seed).sample(stored, min(problems, len(stored)))
    n = min(solutions, recipe.sample.source(part).n)
    directory = context.directory.path / "plan"
    tools = context.tools
    measured = (
        context.directory.read_json(SPEED)
        if (context.directory.path / SPEED).exists()
        else {"waited": {}, "tokens": {}}
    )
    speed = _Speed(recipe.workers, price_hour, **measured)

    generator = context.backend("generator")
    meter = _Meter(_open_ledger(generator, directory / "solutions.jsonl", context.budget))
    prompts = [Prompt(p.id, tools.context(p), n=n) for p in chosen]
    _warm_up(generator, prompts[0], tools.params)
    by_id = {p.id: p for p in chosen}
    steps = context.steps
    sampled = [solution(r, steps) for r in meter.sample(prompts, tools.params) if r.finish is not Finish.FAILED]
    pairs = [(by_id[s.problem_id], s) for s in sorted(sampled, key=lambda s: (s.problem_id, s.sample))]
    if not pairs:
        reason = next((r.reason for r in meter.recorded.known.values() if r.finish is Finish.FAILED), "")
        raise StageError(f"the pilot has no solution: all {len(prompts) * n} failed, the first with: {reason}")
    speed.learn([meter])
    sampling = [
        speed.cost(f"sample {part}", len(context.problems(part)) * recipe.sample.source(part).n, len(pairs), [meter])
        for part in parts
    ]
    own, pilot = "", meter.recorded.ledger.spent

    def costs(settings: LabelerSettings, methods: Mapping[str, Labeler], paid: Mapping[str, Ledger]) -> Iterator[Cost]:
        """The cost of each method, stage name -> labeler, on all training solutions."""
        nonlocal pilot
        labelled = distinct(pairs) if settings.distinct else pairs
        total = len(context.problems("train")) * recipe.sample.train.n * len(labelled) / len(pairs)
        references = references_among(labelled, lambda p, s: grade_solution(s, p, tools.grader))
        units = [Unlabelled(p, s, tuple(references(p))) for p, s in labelled]
        opened = {
            role: _open_ledger(getattr(tools, role), ledger.path, context.budget) for role, ledger in paid.items()
        }
        for stage, labeler in methods.items():
            meters = {role: _Meter(recorded) for role, recorded in opened.items()}
            for _ in labeler.label(units, replace(tools, **meters)):  # type: ignore[arg-type]
                pass
            speed.learn(list(meters.values()))
            yield speed.cost(stage, total, len(units), list(meters.values()))
        pilot += sum((recorded.ledger.spent for recorded in opened.values()), Spent())

    labelling: list[Cost] = []
    writing: list[Cost] = []
    if recipe.label is not None and "train" in parts:
        methods, own = _methods(recipe, tools)
        named = {f"label: {name}": method for name, method in methods.items()}
        labelling += costs(recipe.label, named, ledgers(directory, tools))
    for name, writer in recipe.writers.items() if "train" in parts else ():
        writers: dict[str, Labeler] = {f"rationales{f' of {name}' * bool(name)}: {writer.name}": writer.load()}
        writing += costs(writer, writers, rationale_ledgers(directory, tools, name))
    # The next plan reads these rollouts from the ledgers, so it can't measure their time again.
    context.directory.write_json(SPEED, {"waited": speed.waited, "tokens": speed.tokens})
    own = f"label: {own}" if own else ""
    return Plan(tuple(sampling), tuple(labelling), own, pilot, len(chosen), len(pairs), tuple(writing))


class _Meter:
    """A backend that counts all rollouts that are requested, stored ones too, and measures the time of new ones."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.by_problem: dict[str, Spent] = {}  # problem id -> cost of all its rollouts
        self.seconds = 0.0  # time of new rollouts
        self.tokens = 0  # generated in new rollouts

    @property
    def role(self) -> str:
        """The role of the backend, which is the name of its ledger."""
        return self.recorded.ledger.path.stem

    @property
    def remote(self) -> bool:
        """As in the backend; labelers depend on it."""
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
            spent = self.by_problem.get(problem, Spent())
            self.by_problem[problem] = spent.and_of(r.finish, r.prompt_tokens, r.tokens, price)
            yield r


@dataclass
class _Speed:
    """Measured seconds for each token, and the price of an hour."""

    workers: int  # processes that share the work, where models run in process
    price_hour: float
    waited: dict[str, float]  # role -> seconds for its new rollouts, in this pilot and earlier ones
    tokens: dict[str, int]  # role -> generated in that time

    def learn(self, meters: Sequence[_Meter]) -> None:
        """Adds the times that the meters measured."""
        for m in meters:
            self.waited[m.role] = self.waited.get(m.role, 0.0) + m.seconds
            self.tokens[m.role] = self.tokens.get(m.role, 0) + m.tokens

    def cost(self, stage: str, solutions: float, measured: int, meters: Sequence[_Meter]) -> Cost:
        """The cost of a stage on `solutions`, from the counts of the meters on `measured` solutions of the pilot."""
        seconds = sum(sum(s.tokens for s in m.by_problem.values()) * self._rate(m) for m in meters)
        problems = {problem for m in meters for problem in m.by_problem}
        per_problem = [sum((m.by_problem.get(problem, Spent()) for m in meters), Spent()) for problem in problems]
        total = sum(per_problem, Spent())
        scale = solutions / max(1, measured)
        hours = scale * seconds / 3600
        tokens = [s.tokens for s in per_problem]
        error = stdev(tokens) / mean(tokens) / len(tokens) ** 0.5 if len(tokens) > 1 and any(tokens) else 0.0
        return Cost(
            stage,
            solutions,
            scale * total.rollouts,
            scale * total.prompt_tokens,
            scale * total.tokens,
            hours,
            scale * total.money + hours * self.price_hour,
            error,
        )

    def _rate(self, meter: _Meter) -> float:
        """Seconds for each token of a role; models differ. Several workers do not make a server faster."""
        return self.waited[meter.role] / max(1, self.tokens[meter.role]) / (1 if meter.remote else self.workers)


def _methods(recipe: Recipe, tools: Tools) -> tuple[dict[str, Labeler], str]:
    """The recipe's own labelling method and those of METHODS that its models allow; and the name of the recipe's own.

    A method with many rollouts comes first, so that the others can reuse its rollouts."""
    assert recipe.label is not None
    own_method: Labeler = recipe.label.load()
    methods: dict[str, Labeler] = {}
    for name, (labeler, options) in METHODS.items():
        method: Labeler = registry.load("labeler", labeler, **options)
        try:
            need(method, tools)
        except ConfigError:
            continue
        methods[name] = method
    own = next((name for name, method in methods.items() if method == own_method), "")
    if not own:
        options_text = ", ".join(f"{k}={v}" for k, v in recipe.label.options.items())
        own = f"{recipe.label.name}{f' {options_text}' if options_text else ''}"
        methods = {own: own_method, **methods}
    return methods, own


def _open_ledger(backend: Backend, path: Path, budget: Budget | None) -> Recorded:
    """The backend with a ledger, which may hold rollouts of an earlier plan."""
    ledger = Ledger.of(path, backend)
    stored = {r.key: r for rollouts in ledger.open(lambda _: True).values() for r in rollouts}
    return Recorded(backend, ledger, stored, budget)


def _warm_up(backend: Backend, prompt: Prompt, params: SamplingParams) -> None:
    """Loads the model, so that its loading time is not measured."""
    for _ in backend.sample([replace(prompt, id="warm up", n=1)], replace(params, max_tokens=1)):
        pass


def table(found: Plan) -> str:
    """The plan as a table for a terminal."""
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
        "A run uses one of these labelling methods. Training and scoring are not included. A full run fills its "
        "batches better than a pilot, so it may take fewer hours.",
    ]
    return "\n".join(lines)


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"

"""One recipe with several seeds: a run for each, as many at a time as there are workers, and their figures together.

    RUN/seed-S/                    an ordinary run with the seed S (run/execute.py)
    RUN/metrics.json               what the seeds came to together, in the layout of one run's; per_seed has each one's
    RUN/report.html                the same, as a page

Each seed has problems, models and samples of its own. An estimate is the mean over seeds. Its 95% interval reaches, on
either side, as far as the wider of two: Student's t over the seeds' estimates, which knows how runs differ but is wide
for few seeds; and the seeds' own intervals together, sqrt(sum of squares) / seeds, which know how problems differ.
Counts are added up. Accuracy against tokens is measured anew: what each way of choosing comes to over all seeds, in
accuracy and in tokens, and which is then best at each budget; RUN/seed-S/by_problem.json has what that takes.

A kill loses what a kill of each run loses; the same command goes on with those seeds that are not done.

    stepmark run recipes/genrm_last_letter.yaml seeds=[1,2,3]
    stepmark plan --optimal runs/genrm_last_letter --tokens 4000
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from stepmark import report
from stepmark.data.ledger import Budget
from stepmark.data.store import RunDir, decoder
from stepmark.errors import ConfigError, DataError
from stepmark.evaluation import stats, token_curves
from stepmark.evaluation.stats import Bootstrap, Interval
from stepmark.evaluation.token_curves import MeasuredRun, Way
from stepmark.plugins.loading import load_executor
from stepmark.run import execute, policy_evaluation, renames, report_data
from stepmark.run.context import RunContext
from stepmark.run.execute import ALL, RunResult, Selection, Show
from stepmark.run.log import every
from stepmark.run.machine import describe
from stepmark.run.pipeline import stages
from stepmark.run.pipeline.evaluate import Evaluate
from stepmark.run.recipe import Recipe, stored
from stepmark.types import Place, Progress

SECTIONS = {"in_distribution": "test", "out_of_distribution": "out_of_distribution"}  # name -> part of the recipe


def run(
    recipe: Recipe,
    path: Place,
    progress: Show | None = None,
    command: str = "",
    budget: Budget | None = None,
    selection: Selection = ALL,
) -> RunResult:
    """Runs a recipe, once or with each of its seeds. Raises as execute.run does, and ConfigError for a budget with
    seeds: each run has ledgers of its own."""
    if not recipe.seeds:
        return execute.run(recipe, path, progress, command, budget, selection)
    if budget is not None:
        raise ConfigError("a budget is for one run, and this recipe has seeds. Run them one by one: seeds=[] seed=1.")
    selection.of(stages(recipe))  # a wrong name is refused before anything starts
    with RunDir(path).open(recipe.resolved(), renames.upgraded) as directory:
        if selection.anew:
            together = [name for name in ("metrics.json", "report.html") if (directory.path / name).exists()]
            execute.archive(directory.path, together)
        work = partial(_run_seed, recipe=recipe, path=directory.path, command=command, selection=selection)
        executor = load_executor(min(recipe.workers, len(recipe.seeds)))
        with every(2, _show_stages(recipe, directory.path, progress)):
            results = list(executor.map(work, recipe.seeds))
        metrics: dict[str, Any] = {}
        if all(result.metrics for result in results):
            metrics = summarise(recipe, directory)
            write_report(directory, command)
    return RunResult(
        directory.path,
        metrics,
        sum(result.quarantined for result in results),
        tuple(item for result in results for item in result.failed),
        results[0].stages,
    )


def evaluate(recipe: Recipe, directory: RunDir, progress: Show | None = None) -> dict[str, Any]:
    """Measures anew from what is stored, each seed and then all; writes their metrics.json."""
    if not recipe.seeds:
        execute.run_stage(RunContext(recipe, directory, progress), Evaluate())
        metrics: dict[str, Any] = directory.read_json("metrics.json")
        return metrics
    for seed in recipe.seeds:
        alone = recipe.with_seed(seed)
        with RunDir(place(directory.path, seed)).open(alone.resolved(), renames.upgraded) as own:
            execute.run_stage(RunContext(alone, own, progress), Evaluate())
    return summarise(recipe, directory)


def summarise(recipe: Recipe, directory: RunDir) -> dict[str, Any]:
    """Writes metrics.json from those of the seeds."""
    runs = {seed: RunDir(place(directory.path, seed)).read_json("metrics.json") for seed in recipe.seeds}
    ways = {seed: _ways(RunDir(place(directory.path, seed))) for seed in recipe.seeds}
    plain = together(runs, ways) | {"name": recipe.name}
    directory.write_json("metrics.json", plain)
    return plain


def write_report(directory: RunDir, command: str = "") -> Path:
    """Writes report.html; of a run with seeds the figures of all, and where each one's own report is."""
    recipe = stored(directory)
    if not recipe.seeds:
        return report_data.write_report(directory, command)
    plain = directory.read_json("metrics.json")
    links = [f"The report of seed {seed}: {place(Path(), seed) / 'report.html'}" for seed in recipe.seeds]
    data = report.ReportData(
        name=recipe.name,
        metrics=report.Metrics.parse(plain | {"notes": plain["notes"] + links}),
        task=recipe.task.name if recipe.task else "",
        date=time.strftime("%F %H:%M UTC", time.gmtime((directory.path / "metrics.json").stat().st_mtime)),
        machine=describe(),
        command=command or f"stepmark run {recipe.name}.yaml",
        config=recipe.resolved(),
        aggregate=recipe.evaluate.aggregates[0],
    )
    return report.write(data, directory.path / "report.html")


def first(recipe: Recipe, path: Path) -> tuple[Recipe, Path]:
    """The run of the first seed and where it is; a recipe without seeds is that itself."""
    return (recipe.with_seed(recipe.seeds[0]), place(path, recipe.seeds[0])) if recipe.seeds else (recipe, path)


def place(path: Path, seed: int) -> Path:
    """Where the run of a seed is."""
    return path / f"seed-{seed}"


def _run_seed(seed: int, *, recipe: Recipe, path: Path, command: str, selection: Selection) -> RunResult:
    own = f"{command} seeds=[] seed={seed} --out {place(path, seed)}" if command else ""
    return execute.run(recipe.with_seed(seed), place(path, seed), command=own, selection=selection)


def _show_stages(recipe: Recipe, path: Path, show: Show | None) -> Any:
    """A function that shows the stage of each run, as their logs have it."""
    began = time.monotonic()
    shown = -1

    def action() -> None:
        nonlocal shown
        logs = {seed: place(path, seed) / "log.jsonl" for seed in recipe.seeds}
        current = {seed: _stage(log) for seed, log in logs.items()}
        over = sum(stage == "done" for stage in current.values())
        note = ", ".join(f"seed {seed}: {stage}" for seed, stage in current.items() if stage)
        if show is not None and not shown == over == len(current):  # the end is shown once
            shown = over
            show(Progress("seeds", over, len(current), time.monotonic() - began, note))

    return action


def _stage(log: Path) -> str:
    """The stage that a run is in, "done" after the last, "" before the first."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return ""
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"\n")]
    last = json.loads(whole[-1]) if whole else {"stage": "", "event": ""}
    return "done" if last["stage"] == "report" and last["event"] == "end" else str(last["stage"])


# ---- several metrics.json as one ----


Ways = Mapping[str, tuple[Way, ...]]  # part of the test -> every way of choosing; empty where none is stored


def together(runs: Mapping[int, Mapping[str, Any]], ways: Mapping[int, Ways]) -> dict[str, Any]:
    """What the runs (seed -> decoded metrics.json) came to, in the layout of one of them."""
    plain = _section(runs, _costs(ways, "test"))
    for name, part in SECTIONS.items():
        if all(name in found for found in runs.values()):
            plain[name] = _section({seed: found[name] for seed, found in runs.items()}, _costs(ways, part))
    return plain | {"seeds": list(runs)}


def _ways(directory: RunDir) -> Ways:
    if not (directory.path / "by_problem.json").exists():
        return {}
    try:
        found: Ways = decoder(Ways)(directory.read_json("by_problem.json"))
    except (TypeError, ValueError) as e:
        place = directory.path / "by_problem.json"
        raise DataError(f"{place}: {e}. `stepmark evaluate {directory.path}` writes it anew.") from e
    return found


def _costs(ways: Mapping[int, Ways], part: str) -> dict[str, Any] | None:
    """Accuracy against tokens over all seeds; None where one of them has it not."""
    each = {seed: found.get(part, ()) for seed, found in ways.items()}
    if not all(each.values()):
        return None
    # The resamples that the seed's own intervals come from.
    return asdict(
        token_curves.summarise([MeasuredRun(w, Bootstrap(len(w[0].correct), seed=s)) for s, w in each.items()])
    )


def _section(runs: Mapping[int, Mapping[str, Any]], costs: Mapping[str, Any] | None) -> dict[str, Any]:
    found = list(runs.values())
    apart = {"name", "seed", "seconds", "notes", "compute", "policies", *policy_evaluation.CURVES, *SECTIONS}
    plain = {
        name: _merged([x[name] for x in found], -1.0 if "differences" in name else 0.0)
        for name in found[0]
        if name not in apart and all(name in x for x in found)
    }
    plain |= policy_evaluation.pooled(runs)
    stages = dict.fromkeys(stage for x in found for stage in x.get("seconds", {}))
    plain["seconds"] = {stage: round(sum(x.get("seconds", {}).get(stage, 0.0) for x in found), 3) for stage in stages}
    plain["compute"] = costs
    plain["notes"] = list(_notes(runs))
    if costs is None and all(x.get("compute") for x in found):
        plain["notes"].append(
            "Accuracy against tokens was not put together: the seeds were measured before it could be. "
            "`stepmark evaluate` measures anew."
        )
    return plain


def _notes(runs: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    each = {seed: found.get("notes", []) for seed, found in runs.items()}
    yield (
        f"Means over {len(runs)} seeds ({', '.join(map(str, runs))}), each with problems, models and samples of its "
        "own; counts are sums. On either side an interval is the wider of Student's t over the seeds' estimates, and "
        "the seeds' own intervals over problems together (root of the sum of squares, by the number of seeds)."
    )
    common = [note for note in next(iter(each.values())) if all(note in notes for notes in each.values())]
    yield from common
    yield from (f"Seed {seed}: {note}" for seed, notes in each.items() for note in notes if note not in common)


def _merged(values: Sequence[Any], least: float) -> Any:
    """One value for several of one kind: intervals by `pooled`, with ends from `least` to 1; whole numbers added up,
    others averaged; what is missing somewhere is missing."""
    if all(isinstance(v, Mapping) for v in values):
        if all({"mean", "low", "high"} <= v.keys() for v in values):
            return pooled(values, least)
        return {k: _merged([v[k] for v in values], least) for k in values[0] if all(k in v for v in values)}
    if all(type(v) is int for v in values):
        return sum(values)
    if all(type(v) in (int, float) for v in values):
        return mean(values)
    return None


def pooled(intervals: Sequence[Mapping[str, float]], least: float = 0.0) -> dict[str, Any]:
    """The mean of the seeds' estimates, its interval within [least, 1], and what each seed had."""
    found = stats.pooled([Interval(x["mean"], x["low"], x["high"]) for x in intervals], least)
    return {**asdict(found), "per_seed": [x["mean"] for x in intervals]}

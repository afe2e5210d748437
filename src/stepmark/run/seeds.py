"""One recipe with several seeds: a run for each seed, as many at a time as there are workers, and their pooled metrics.

    RUN/seed-S/                    an ordinary run with the seed S (run/execute.py)
    RUN/metrics.json               metrics of all seeds, in the layout of one run; per_seed has the value of each seed
    RUN/report.html                the same, as a page

Each seed has its own problems, models and samples. An estimate is the mean over seeds. Its 95% interval has, on each
side, the larger of two widths. The first is Student's t over the seeds' estimates: it includes how runs differ, but is
wide for few seeds. The second pools the seeds' own intervals, sqrt(sum of squares) / seeds: it includes how problems
differ. Counts are added up. Accuracy against tokens is computed again from RUN/seed-S/by_problem.json: accuracy and
tokens of each selection method over all seeds, and the best method for each budget.

If the process is killed, each seed's run loses what a single run would lose. The same command goes on with the seeds
that are not done.

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
from stepmark.data.timed_batch import every
from stepmark.errors import ConfigError, DataError
from stepmark.evaluation import stats, token_curves
from stepmark.evaluation.stats import Bootstrap, Interval
from stepmark.evaluation.token_curves import MeasuredRun, Way
from stepmark.machine import describe
from stepmark.plugins.loading import load_executor
from stepmark.run import execute, inputs, missing, policy_evaluation, renames, report_data
from stepmark.run.context import RunContext
from stepmark.run.execute import ALL, RunResult, Selection, Show
from stepmark.run.log import merged, sentences
from stepmark.run.pipeline import stages
from stepmark.run.pipeline.evaluate import Evaluate
from stepmark.run.recipe import Recipe, first_seed, seed_directory, stored
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
    """Runs a recipe, once or with each of its seeds.

    Raises the errors of execute.run, and ConfigError for a budget with seeds: each seed's run has its own ledgers."""
    if not recipe.seeds:
        return execute.run(recipe, path, progress, command, budget, selection)
    if budget is not None:
        raise ConfigError("a budget is for one run, but this recipe has seeds. Run them one by one: seeds=[] seed=1.")
    selection.of(stages(recipe))  # raises for an unknown stage before anything starts
    first = first_seed(recipe, Path(path))
    missing.need(recipe, path, lambda: execute.todo(*first, selection))
    with RunDir(path).open(recipe.resolved(), renames.upgraded) as directory:
        if selection.anew:
            pooled_files = [name for name in ("metrics.json", "report.html") if (directory.path / name).exists()]
            execute.archive(directory.path, pooled_files)
        work = partial(_run_seed, recipe=recipe, path=directory.path, command=command, selection=selection)
        inputs.models(recipe)  # hashes large checkpoints once and not once for each seed (data/fingerprint.py)
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
    """Measures each seed and then all seeds again from the stored scores; writes their metrics.json."""
    if not recipe.seeds:
        execute.run_stage(RunContext(recipe, directory, progress), Evaluate())
        metrics: dict[str, Any] = directory.read_json("metrics.json")
        return metrics
    for seed in recipe.seeds:
        of_seed = recipe.with_seed(seed)
        with RunDir(seed_directory(directory.path, seed)).open(of_seed.resolved(), renames.upgraded) as of_run:
            execute.run_stage(RunContext(of_seed, of_run, progress), Evaluate())
    return summarise(recipe, directory)


def summarise(recipe: Recipe, directory: RunDir) -> dict[str, Any]:
    """Pools the seeds' metrics.json into one and writes it."""
    runs = {seed: RunDir(seed_directory(directory.path, seed)).read_json("metrics.json") for seed in recipe.seeds}
    ways = {seed: _read_ways(RunDir(seed_directory(directory.path, seed))) for seed in recipe.seeds}
    metrics = together(runs, ways) | {"name": recipe.name}
    directory.write_json("metrics.json", metrics)
    return metrics


def write_report(directory: RunDir, command: str = "") -> Path:
    """Writes report.html. With seeds it shows the pooled metrics and names the report of each seed."""
    recipe = stored(directory)
    if not recipe.seeds:
        return report_data.write_report(directory, command)
    metrics = directory.read_json("metrics.json")
    links = [f"The report of seed {seed}: {seed_directory(Path(), seed) / 'report.html'}" for seed in recipe.seeds]
    data = report.ReportData(
        name=recipe.name,
        metrics=report.Metrics.parse(metrics | {"notes": metrics["notes"] + sentences(metrics) + links}),
        task=recipe.task.name if recipe.task else "",
        date=time.strftime("%F %H:%M UTC", time.gmtime((directory.path / "metrics.json").stat().st_mtime)),
        machine=describe(),
        command=command or f"stepmark run {recipe.name}.yaml",
        config=recipe.resolved(),
        aggregate=recipe.evaluate.aggregates[0],
    )
    return report.write(data, directory.path / "report.html")


def _run_seed(seed: int, *, recipe: Recipe, path: Path, command: str, selection: Selection) -> RunResult:
    seed_command = f"{command} seeds=[] seed={seed} --out {seed_directory(path, seed)}" if command else ""
    return execute.run(recipe.with_seed(seed), seed_directory(path, seed), command=seed_command, selection=selection)


def _show_stages(recipe: Recipe, path: Path, show: Show | None) -> Any:
    """A function that shows the stage of each seed's run, read from its log."""
    began = time.monotonic()
    shown = -1

    def action() -> None:
        nonlocal shown
        logs = {seed: seed_directory(path, seed) / "log.jsonl" for seed in recipe.seeds}
        current = {seed: _last_stage(log) for seed, log in logs.items()}
        done = sum(stage == "done" for stage in current.values())
        note = ", ".join(f"seed {seed}: {stage}" for seed, stage in current.items() if stage)
        if show is not None and not shown == done == len(current):  # the end is shown once
            shown = done
            show(Progress("seeds", done, len(current), time.monotonic() - began, note))

    return action


def _last_stage(log: Path) -> str:
    """The stage that a run is at: "done" after the last stage, "" before the first."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return ""
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"\n")]
    last = json.loads(whole[-1]) if whole else {"stage": "", "event": ""}
    return "done" if last["stage"] == "report" and last["event"] == "end" else str(last["stage"])


# ---- pooling several metrics.json ----


Ways = Mapping[
    str, tuple[Way, ...]
]  # part of the test -> all selection methods (token_curves.Way); empty where none is stored


def together(runs: Mapping[int, Mapping[str, Any]], ways: Mapping[int, Ways]) -> dict[str, Any]:
    """The pooled metrics of several runs (seed -> decoded metrics.json), in the layout of one run."""
    metrics = _section(runs, _costs(ways, "test"))
    for name, part in SECTIONS.items():
        if all(name in of_seed for of_seed in runs.values()):
            metrics[name] = _section({seed: of_seed[name] for seed, of_seed in runs.items()}, _costs(ways, part))
    return metrics | {"seeds": list(runs)}


def _read_ways(directory: RunDir) -> Ways:
    path = directory.path / "by_problem.json"
    if not path.exists():
        return {}
    try:
        ways: Ways = decoder(Ways)(directory.read_json("by_problem.json"))
    except (TypeError, ValueError) as e:
        raise DataError(f"{path}: {e}. `stepmark evaluate {directory.path}` writes it again.") from e
    return ways


def _costs(ways: Mapping[int, Ways], part: str) -> dict[str, Any] | None:
    """Accuracy against tokens over all seeds; None where the data of a seed is missing."""
    by_seed = {seed: of_seed.get(part, ()) for seed, of_seed in ways.items()}
    if not all(by_seed.values()):
        return None
    # The same resamples as those of each seed's own intervals.
    return asdict(
        token_curves.summarise([MeasuredRun(w, Bootstrap(len(w[0].correct), seed=s)) for s, w in by_seed.items()])
    )


def _section(runs: Mapping[int, Mapping[str, Any]], costs: Mapping[str, Any] | None) -> dict[str, Any]:
    per_seed = list(runs.values())
    not_merged = {
        "name",
        "seed",
        "seconds",
        "notes",
        "stage_notes",
        "compute",
        "policies",
        *policy_evaluation.CURVES,
        *SECTIONS,
    }
    section = {
        name: _merged([x[name] for x in per_seed], -1.0 if "differences" in name else 0.0)
        for name in per_seed[0]
        if name not in not_merged and all(name in x for x in per_seed)
    }
    section |= policy_evaluation.pooled(runs)
    names = dict.fromkeys(stage for x in per_seed for stage in x.get("seconds", {}))
    section["seconds"] = {name: round(sum(x.get("seconds", {}).get(name, 0.0) for x in per_seed), 3) for name in names}
    section["stage_notes"] = merged([x.get("stage_notes", {}) for x in per_seed])
    section["compute"] = costs
    section["notes"] = list(_notes(runs))
    if costs is None and all(x.get("compute") for x in per_seed):
        section["notes"].append(
            "Accuracy against tokens was not pooled: the seeds were measured by an older version. Run `stepmark "
            "evaluate` to measure them again."
        )
    return section


def _notes(runs: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    by_seed = {seed: of_seed.get("notes", []) for seed, of_seed in runs.items()}
    yield (
        f"Means over {len(runs)} seeds ({', '.join(map(str, runs))}), each with its own problems, models and samples; "
        "counts are sums. On each side an interval has the larger of two widths: Student's t over the seeds' "
        "estimates, and the seeds' own intervals over problems, pooled (root of the sum of squares, divided by the "
        "number of seeds)."
    )
    common = [note for note in next(iter(by_seed.values())) if all(note in notes for notes in by_seed.values())]
    yield from common
    yield from (f"Seed {seed}: {note}" for seed, notes in by_seed.items() for note in notes if note not in common)


def _merged(values: Sequence[Any], least: float) -> Any:
    """One value for the values of all seeds. Intervals go through `pooled`, with ends from `least` to 1; integers are
    added up, other numbers averaged; a key that a seed lacks is left out."""
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
    """The mean of the seeds' estimates, its interval within [least, 1], and the estimate of each seed."""
    interval = stats.pooled([Interval(x["mean"], x["low"], x["high"]) for x in intervals], least)
    return {**asdict(interval), "per_seed": [x["mean"] for x in intervals]}

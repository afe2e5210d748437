"""A finished run directory -> report.html: reads what the stages stored and hands it to the report.

stepmark report runs/demo
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepmark import report
from stepmark.data.store import RunDir
from stepmark.errors import DataError
from stepmark.evaluation.rank import SELF_CONSISTENCY, candidates, rank
from stepmark.plugins import registry
from stepmark.run import renames
from stepmark.run.machine import describe
from stepmark.run.recipe import Recipe, stored
from stepmark.types import Candidate, GradedSolution, Problem, Quarantined, Selection, Solution, Verification


def write_report(directory: RunDir, command: str = "") -> Path:
    """Writes the report of a run that has its metrics.json, and returns its path."""
    data = read(directory, command)
    return report.write(data, directory.path / "report.html")


def read(directory: RunDir, command: str = "") -> report.ReportData:
    """Everything that a report shows. Raises DataError where the run did not get as far as metrics.json."""
    config = renames.upgraded(directory.read_json("config.json"))
    recipe = stored(directory)
    metrics = report.Metrics.parse(directory.read_json("metrics.json"))
    problems = list(directory.records("problems/test", Problem))
    scores = {name: list(directory.records(f"scores/{name}", Verification)) for name in recipe.verifiers}
    grades = list(directory.records("grades/test", GradedSolution))
    solutions = _whole(directory, grades, scores)
    judged = _judge(recipe, problems, solutions)
    return report.ReportData(
        name=recipe.name,
        metrics=metrics,
        task=recipe.task.name if recipe.task else "",
        date=time.strftime("%F %H:%M UTC", time.gmtime((directory.path / "metrics.json").stat().st_mtime)),
        machine=describe(),
        command=command or f"stepmark run {recipe.name}.yaml",
        config=config,
        problems=problems,
        solutions=solutions,
        grades=grades,
        verifications=scores,
        selections=list(_selections(recipe, solutions, grades, scores)),
        oracle={id: flags for id, (flags, _) in judged.items()},
        kinds={id: kind for id, (_, kind) in judged.items() if kind},
        training=dict(_logs(directory.path)),
        quarantined=list(directory.records("quarantine", Quarantined)),
        aggregate=recipe.evaluate.aggregates[0],
        verifiers={name: _about(v.kind) for name, v in recipe.verifiers.items()},
    )


def _about(kind: str) -> str:
    """The first sentence of a verifier kind's file, which says what it is."""
    doc = inspect.getdoc(inspect.getmodule(registry.find("verifier", kind))) or kind
    return doc.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def pools(directory: RunDir, recipe: Recipe) -> dict[str, list[Candidate]]:
    """Each test problem's candidates as a run stored them: those that are graded, and scored by every verifier."""
    grades = list(directory.records("grades/test", GradedSolution))
    scores = {name: list(directory.records(f"scores/{name}", Verification)) for name in recipe.verifiers}
    return candidates(_whole(directory, grades, scores), grades, scores)


def _whole(
    directory: RunDir, grades: Sequence[GradedSolution], scores: Mapping[str, Sequence[Verification]]
) -> list[Solution]:
    keys = {g.key for g in grades}.intersection(*({v.key for v in found} for found in scores.values()))
    return [s for s in directory.records("solutions/test", Solution) if s.id in keys]


def _judge(
    recipe: Recipe, problems: Sequence[Problem], solutions: Sequence[Solution]
) -> dict[str, tuple[Sequence[bool], str | None]]:
    """For each solution, where the task has an oracle: a flag per step, and the kind of the first error."""
    task = recipe.task.load() if recipe.task else None
    judge, kind = getattr(task, "judge_steps", None), getattr(task, "error_kind", None)
    if judge is None:
        return {}
    by_id = {p.id: p for p in problems}
    return {
        s.id: (judge(by_id[s.problem_id], s), kind(by_id[s.problem_id], s) if kind else None)
        for s in solutions
        if s.problem_id in by_id
    }


def _selections(
    recipe: Recipe,
    solutions: Sequence[Solution],
    grades: Sequence[GradedSolution],
    scores: Mapping[str, Sequence[Verification]],
) -> Iterator[Selection]:
    """What each method chooses among all candidates of each problem."""
    methods = [SELF_CONSISTENCY, *scores, *(f"{SELF_CONSISTENCY}+{name}" for name in scores)]
    for problem_id, pool in candidates(solutions, grades, scores).items():
        for method in methods:
            yield rank(pool, method, recipe.evaluate.aggregates[0], problem_id=problem_id, seed=recipe.seed)


def _logs(path: Path) -> Iterator[tuple[str, list[report.TrainPoint]]]:
    # A training's directory has its training.json; `problems/train.jsonl` is no training's log.
    trainings = (place for place in path.glob("**/training.json") if "archive" not in place.relative_to(path).parts)
    for log in sorted(place.with_name("train.jsonl") for place in trainings):
        points = []
        lines = log.read_text(encoding="utf-8").split("\n") if log.exists() else []
        for number, line in enumerate(filter(None, lines), 1):
            try:
                row: dict[str, Any] = json.loads(line)
                points += [report.TrainPoint(row["update"], name, row[name]) for name in ("loss", "lr") if name in row]
            except (ValueError, KeyError, TypeError) as e:
                raise DataError(f"{log}, line {number}: not a line of a training log: {e}. Delete the line.") from e
        yield log.parent.name, points

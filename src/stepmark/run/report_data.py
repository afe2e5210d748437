"""Writes the report.html of a finished run: reads the records of the stages and passes them to the report.

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
from stepmark.machine import describe
from stepmark.plugins import registry
from stepmark.run import renames
from stepmark.run.log import sentences
from stepmark.run.recipe import Recipe, stored
from stepmark.types import Candidate, GradedSolution, Problem, Quarantined, Selection, Solution, Verification


def write_report(directory: RunDir, command: str = "") -> Path:
    """Writes the report of a run that has its metrics.json, and returns its path."""
    data = read(directory, command)
    return report.write(data, directory.path / "report.html")


def read(directory: RunDir, command: str = "") -> report.ReportData:
    """All data of a report. Raises DataError for a run that has no metrics.json yet."""
    config = renames.upgraded(directory.read_json("config.json"))
    recipe = stored(directory)
    raw = directory.read_json("metrics.json")
    metrics = report.Metrics.parse(raw | {"notes": [*raw.get("notes", ()), *sentences(raw)]})
    problems = list(directory.records("problems/test", Problem))
    scores = {name: list(directory.records(f"scores/{name}", Verification)) for name in recipe.verifiers}
    grades = list(directory.records("grades/test", GradedSolution))
    solutions = _complete(directory, grades, scores)
    oracle = _ask_oracle(recipe, problems, solutions)
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
        oracle={id: flags for id, (flags, _) in oracle.items()},
        kinds={id: kind for id, (_, kind) in oracle.items() if kind},
        training=dict(_logs(directory.path)),
        quarantined=list(directory.records("quarantine", Quarantined)),
        aggregate=recipe.evaluate.aggregates[0],
        verifiers={name: _description(v.kind) for name, v in recipe.verifiers.items()},
    )


def _description(kind: str) -> str:
    """The first paragraph of the file of a verifier kind, without the full stop."""
    doc = inspect.getdoc(inspect.getmodule(registry.find("verifier", kind))) or kind
    return doc.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def pools(directory: RunDir, recipe: Recipe) -> dict[str, list[Candidate]]:
    """Problem id -> its candidates: the stored test solutions that are graded and scored by every verifier."""
    grades = list(directory.records("grades/test", GradedSolution))
    scores = {name: list(directory.records(f"scores/{name}", Verification)) for name in recipe.verifiers}
    return candidates(_complete(directory, grades, scores), grades, scores)


def _complete(
    directory: RunDir, grades: Sequence[GradedSolution], scores: Mapping[str, Sequence[Verification]]
) -> list[Solution]:
    """The test solutions that are graded and scored by every verifier."""
    keys = {g.key for g in grades}.intersection(*({v.key for v in of_verifier} for of_verifier in scores.values()))
    return [s for s in directory.records("solutions/test", Solution) if s.id in keys]


def _ask_oracle(
    recipe: Recipe, problems: Sequence[Problem], solutions: Sequence[Solution]
) -> dict[str, tuple[Sequence[bool], str | None]]:
    """Solution id -> a flag for each step, and the kind of the first error. Empty where the task has no oracle."""
    task = recipe.task.load() if recipe.task else None
    judge_steps, error_kind = getattr(task, "judge_steps", None), getattr(task, "error_kind", None)
    if judge_steps is None:
        return {}
    by_id = {p.id: p for p in problems}
    return {
        s.id: (judge_steps(by_id[s.problem_id], s), error_kind(by_id[s.problem_id], s) if error_kind else None)
        for s in solutions
        if s.problem_id in by_id
    }


def _selections(
    recipe: Recipe,
    solutions: Sequence[Solution],
    grades: Sequence[GradedSolution],
    scores: Mapping[str, Sequence[Verification]],
) -> Iterator[Selection]:
    """The selection of each method among all candidates of each problem."""
    methods = [SELF_CONSISTENCY, *scores, *(f"{SELF_CONSISTENCY}+{name}" for name in scores)]
    for problem_id, pool in candidates(solutions, grades, scores).items():
        for method in methods:
            yield rank(pool, method, recipe.evaluate.aggregates[0], problem_id=problem_id, seed=recipe.seed)


def _logs(path: Path) -> Iterator[tuple[str, list[report.TrainPoint]]]:
    # Only a directory with training.json is that of a training; `problems/train.jsonl` is not a log.
    trainings = (file for file in path.glob("**/training.json") if "archive" not in file.relative_to(path).parts)
    for log in sorted(file.with_name("train.jsonl") for file in trainings):
        points = []
        lines = log.read_text(encoding="utf-8").split("\n") if log.exists() else []
        for number, line in enumerate(filter(None, lines), 1):
            try:
                row: dict[str, Any] = json.loads(line)
                points += [report.TrainPoint(row["update"], name, row[name]) for name in ("loss", "lr") if name in row]
            except (ValueError, KeyError, TypeError) as e:
                raise DataError(f"{log}, line {number}: not a line of a training log: {e}. Delete the line.") from e
        yield log.parent.name, points

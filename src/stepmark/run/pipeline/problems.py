"""Stage `problems`: loads the task's problems, or imports problems with solutions from a file.

stepmark run recipes/demo.yaml --only problems
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from stepmark.data.rows import need_problems
from stepmark.errors import DataError
from stepmark.run.context import RunContext, add_missing
from stepmark.run.schema import SolutionSource
from stepmark.run.stage import State
from stepmark.text.hashing import hash_fraction
from stepmark.types import Imported, Problem, Quarantined

BATCH = 256  # imported problems that are stored at a time
POLICY_PARTS = ("reinforce", "held_out", "after")


@dataclass(frozen=True, slots=True)
class LoadProblems:
    """Problems of every part of the run: train, the tests, and those that policies learn from and are tested on."""

    name: str = "problems"

    def inputs(self, context: RunContext) -> Sequence[str]:
        return ()

    def outputs(self, context: RunContext) -> Sequence[str]:
        sample = context.recipe.sample
        parts = [*sample.parts, *(POLICY_PARTS if context.recipe.reinforce is not None else ())]
        imported = [part for part in sample.parts if sample.source(part).file is not None]
        folders = [f"{folder}/{part}.jsonl" for part in imported for folder in ("solutions", "grades")]
        rationales = ["rationales/train.jsonl"] if "train" in imported else []
        return [*(f"problems/{part}.jsonl" for part in parts), *folders, *rationales, "quarantine.jsonl"]

    def state(self, context: RunContext) -> State:
        """A task or a file may have fewer problems than the recipe names. Then they are loaded again each time."""
        recipe = context.recipe
        wanted: dict[str, int | None] = {part: recipe.sample.source(part).problems for part in recipe.sample.parts}
        if recipe.reinforce is not None:
            r = recipe.reinforce
            wanted |= dict(zip(POLICY_PARTS, (r.problems, r.held_out.problems, r.test.problems), strict=True))
        counts = {part: len(context.problems(part)) for part in wanted}
        known = [n for n in wanted.values() if n is not None]
        whole = len(known) == len(wanted) and all(counts[part] == n for part, n in wanted.items())
        return State(sum(counts.values()), sum(known) if whole else None)

    def run(self, context: RunContext) -> None:
        for part in context.recipe.sample.parts:
            source = context.recipe.sample.source(part)
            if source.file is None:
                _load(context, part, source)
            else:
                _import(context, part, source)
        if context.recipe.reinforce is not None:
            _load_for_policies(context)


def _load(context: RunContext, part: str, source: SolutionSource) -> None:
    assert context.task is not None and source.split is not None
    add_missing(context.problems(part), usable(context, source.split, source.problems))


def usable(context: RunContext, split: str, most: int | None, setting: str = "") -> Sequence[Problem]:
    """The problems of a split. Rows that can't be used are set aside, and how the task divided its rows is logged."""
    assert context.task is not None and context.recipe.task is not None
    # A worked example of the prompt is none of the problems; others take their places.
    examples = context.recipe.sample.few_shot
    loaded = context.task.load(split, most and most + examples)
    if examples:
        loaded = replace(loaded, problems=context.prompt.left(loaded.problems, most))
    context.quarantine_rows(loaded.quarantined)
    try:
        need_problems(context.recipe.task.name, split, loaded)
    except DataError as e:
        listed = f" All rows that were set aside are in {context.quarantine.path}." if loaded.quarantined else ""
        raise DataError(f"{setting}{e}{listed}") from e
    if loaded.note:
        context.log.note(loaded.note)
    return loaded.problems


def _import(context: RunContext, part: str, source: SolutionSource) -> None:
    assert source.file is not None and source.format is not None
    batch: list[Imported] = []
    count = 0
    low, high = source.share
    for row in source.format.load().read(source.file):
        if isinstance(row, Quarantined):
            context.quarantine_rows([row])
        elif low <= hash_fraction(row.problem.question) < high:
            batch.append(row)
            count += 1
            if len(batch) == BATCH:
                _keep(context, part, batch, source.n)
                batch = []
            if count == source.problems:
                break
    _keep(context, part, batch, source.n)
    if not count:
        raise DataError(f"{source.file} has no usable question in the share {list(source.share)}.")


def _keep(context: RunContext, part: str, batch: Sequence[Imported], n: int) -> None:
    """Stores the first n solutions of each problem, with their grades and rationales."""
    add_missing(context.solutions(part), [s for row in batch for s in row.solutions[:n]])
    add_missing(context.grades(part), [g for row in batch for g in row.grades[:n]])
    add_missing(context.problems(part), [row.problem for row in batch])
    if part == "train":
        ids = {s.id for row in batch for s in row.solutions[:n]}
        rationales = [x for row in batch for x in getattr(row, "rationales", ()) if x.key in ids]
        if rationales:
            add_missing(context.rationales(), rationales)


def _load_for_policies(context: RunContext) -> None:
    """Loads the problems that policies learn from, are watched on and are tested on."""
    settings = context.recipe.reinforce
    assert settings is not None and context.task is not None
    splits = (
        (settings.split, settings.problems),
        (settings.held_out.split, settings.held_out.problems),
        (settings.test.split, settings.test.problems),
    )
    for part, (split, most) in zip(POLICY_PARTS, splits, strict=True):
        add_missing(context.problems(part), usable(context, split, most, "reinforce: "))
    questions = {part: {p.question for p in context.problems(part)} for part in POLICY_PARTS}
    for a, b in combinations(questions, 2):
        if both := questions[a] & questions[b]:
            raise DataError(
                f"reinforce: {len(both)} questions are in two of its parts ({a}, {b}), e.g. {min(both)!r}. "
                "These parts must not share questions; choose other splits."
            )

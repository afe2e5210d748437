"""Stage `problems`: loads the task's problems, or imports problems with solutions from a file.

stepmark run recipes/demo.yaml --only problems
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from stepmark.data.rows import need_problems
from stepmark.errors import DataError
from stepmark.run.context import RunContext, add_missing
from stepmark.run.schema import SolutionSource
from stepmark.run.stage import State
from stepmark.text.hashing import hash_fraction
from stepmark.types import GradedSolution, Imported, Problem, Quarantined

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
        # A labeler of the recipe labels everything anew, so then the file's labels are not kept.
        if "train" in imported and context.recipe.label is None:
            folders.append("labels/train.jsonl")
        if "train" in imported and context.recipe.rationales is None:
            folders.append("rationales/train.jsonl")
        return [*(f"problems/{part}.jsonl" for part in parts), *folders, "quarantine.jsonl"]

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


def imported(context: RunContext, source: SolutionSource) -> Iterator[Imported | Quarantined]:
    """What the file of a part holds, with the reference answers of the task's split where the part names one."""
    assert source.file is not None and source.format is not None
    found = source.format.load().read(source.file)
    if source.split is None:
        yield from found
        return
    assert context.task is not None
    known = {_same(p.question): p for p in context.task.load(source.split).problems}
    for number, row in enumerate(found, 1):
        problem = known.get(_same(row.problem.question)) if isinstance(row, Imported) else None
        if isinstance(row, Quarantined):
            yield row
        elif problem is None:
            reason = (
                f"the task's split {source.split!r} has no problem with this question: {row.problem.question!r:.80}"
            )
            yield Quarantined(source.file, number, reason)
        else:
            own = row.problem
            yield replace(row, problem=replace(problem, id=own.id, question=own.question))


def _same(question: str) -> str:
    """A question as it is compared: white space makes no difference."""
    return " ".join(question.split())


def _import(context: RunContext, part: str, source: SolutionSource) -> None:
    assert source.file is not None
    batch: list[Imported] = []
    low, high = source.share
    known = dict[str, tuple[str, set[str]]]()  # id of a problem -> its question, and the ids of its solutions
    usable = False
    for number, row in enumerate(imported(context, source), 1):
        if isinstance(row, Quarantined):
            context.quarantine_rows([row])
            continue
        if not low <= hash_fraction(row.problem.question) < high:
            continue
        p = row.problem
        if p.id not in known and len(known) == source.problems:
            continue  # and not the end: more solutions of the others may follow
        question, solutions = known.setdefault(p.id, (p.question, set()))
        twice = next((s.id for s in row.solutions if s.id in solutions), None)
        if question != p.question or twice is not None:
            reason = (
                f"another question has the id {p.id!r}" if twice is None else f"a row before has solution {twice!r}"
            )
            context.quarantine_rows([Quarantined(source.file, number, reason)])
            continue
        kept = row.solutions[: max(0, source.n - len(solutions))]
        solutions.update(s.id for s in kept)
        usable = usable or bool(p.answer or row.grades or row.labels)
        batch.append(replace(row, solutions=kept))
        if len(batch) == BATCH:
            _keep(context, part, batch)
            batch = []
    _keep(context, part, batch)
    if not known:
        raise DataError(f"{source.file} has no usable question in the share {list(source.share)}.")
    if not usable:
        raise DataError(
            f"{source.file} says of no solution whether it is right, labels no step and has no reference answer, so "
            f"nothing can be learned or measured. Name the task, and with sample.{part}.split its split with these "
            "questions; or add an answer to each row."
        )


def _keep(context: RunContext, part: str, batch: Sequence[Imported]) -> None:
    """Stores the solutions of each problem, with their grades, step labels and rationales."""
    ids = {s.id for row in batch for s in row.solutions}
    grades = {g.key: g for row in batch for g in row.grades if g.key in ids}
    for row in batch:
        if not row.problem.answer:  # nothing can be graded; what has labels is learned from all the same
            unsaid = (x for x in row.labels if x.key in ids and x.key not in grades)
            grades |= {x.key: GradedSolution(x.key, row.problem.id, x.grade) for x in unsaid}
    add_missing(context.solutions(part), [s for row in batch for s in row.solutions])
    add_missing(context.grades(part), list(grades.values()))
    add_missing(context.problems(part), list({row.problem.id: row.problem for row in batch}.values()))
    if part != "train":
        return
    recipe = context.recipe
    labels = [x for row in batch for x in row.labels if x.key in ids]
    if labels and recipe.label is None:
        add_missing(context.labels, labels)
    rationales = [x for row in batch for x in row.rationales if x.key in ids]
    if rationales and recipe.rationales is None:
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

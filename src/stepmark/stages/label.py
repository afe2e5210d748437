"""Stage: solutions -> one label per step, without human annotation.

The labeler (labelers/) gathers the evidence. This stage gives it batches that are large enough for the backend, and
stores the labels as they come. With ledgers, each rollout is stored too: one of a paid server before it is used, one of
a local model within a second. So labels that need many rollouts lose none of them in a kill.

    stepmark label --task arithmetic --solutions solutions.jsonl --model generator/ --out labels.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from stepmark.data import outcome_counts
from stepmark.data import work_units as work
from stepmark.data.ledger import Budget, Ledger, Recorded, Spent
from stepmark.data.outcome_counts import LimitCheck, Limits, OutcomeCounts
from stepmark.data.store import Records
from stepmark.errors import ConfigError
from stepmark.protocols import Executor, Labeler, Tools
from stepmark.text.grading import grade_solution
from stepmark.types import Grade, LabelledSolution, Problem, Progress, Rollout, Solution, Unlabelled

ROLES = ("completer", "judge")  # backends that may cost money; each has its own ledger
References = Callable[[Problem], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Counts over the whole file after labelling."""

    solutions: int
    steps: int
    unknown: int  # steps without any evidence: they give no training signal
    inferred: int  # steps whose label follows from the label of another step
    rollouts: OutcomeCounts  # outcomes of the rollouts that the labels rest on
    failed: tuple[work.Failed, ...]  # solutions without labels


@dataclass(frozen=True, slots=True)
class _Job:
    """A solution to label, and its rollouts that the ledgers already hold."""

    unit: Unlabelled
    known: dict[str, dict[str, Rollout]] = field(default_factory=dict)  # role -> key -> rollout


def label(
    units: Sequence[tuple[Problem, Solution]],
    labeler: Labeler,
    tools: Tools,
    out: Records[LabelledSolution],
    *,
    references: References | None = None,
    ledgers: Mapping[str, Ledger] | None = None,
    budget: Budget | None = None,
    limits: Limits | None = None,
    executor: Executor,
    progress: Callable[[Progress], None] | None = None,
    steps: int = 2048,
) -> Labelled:
    """Labels the solutions that have no labels in `out` yet, in batches of about `steps` steps.

    `references` returns a problem's correct worked solutions, for labelers that compare with them. The default is
    the problem's own one and those in `units` that the grader finds correct. `ledgers` maps names in ROLES to ledgers.
    Raises ConfigError when the labeler needs a tool that is missing, BudgetReached when the budget is spent, and
    StageError when nearly everything fails or the share of unusable rollouts exceeds `limits`."""
    need(labeler, tools, judged=budget is not None, ledgers=ledgers or {})
    if ledgers:
        out.claim()  # before the ledgers are read: two runs at once would both pay
    stored_keys = out.keys()
    todo = [u for u in units if u[1].id not in stored_keys]
    jobs = _jobs(units, todo, labeler, tools, references)
    for role, ledger in (ledgers or {}).items():
        for prompt, rollouts in ledger.open(lambda prompt: prompt.rpartition("@")[0] in jobs).items():
            jobs[prompt.rpartition("@")[0]].known.setdefault(role, {}).update((r.key, r) for r in rollouts)
    before = _spent(ledgers)

    def used() -> tuple[int, int]:
        now = _spent(ledgers)
        return now.rollouts - before.rollouts, now.tokens - before.tokens

    failed = work.run(
        "label",
        partial(_label, labeler=labeler, tools=tools, ledgers=ledgers or {}, budget=budget),
        list(jobs.values()),
        out,
        name=_name,
        weigh=_weigh,
        size=steps,
        already=sum(max(1, len(s.spans)) for _, s in units if s.id in stored_keys),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, outcome_counts.of_labels, "rollouts"),
        used=used,
    )
    solutions = count = unknown = inferred = 0
    total = OutcomeCounts()
    for labelled in out:
        solutions += 1
        count += len(labelled.labels)
        unknown += sum(not x.known for x in labelled.labels)
        inferred += sum(x.inferred for x in labelled.labels)
        total += outcome_counts.of_labels([labelled])
    return Labelled(solutions, count, unknown, inferred, total, failed)


def need(labeler: Labeler, tools: Tools, judged: bool = False, ledgers: Mapping[str, Ledger] | None = None) -> None:
    """Raises ConfigError when the labeler needs a backend that is missing, or a budget has no ledger to count by."""
    uses: frozenset[str] = getattr(labeler, "uses", frozenset())
    faults = [
        f"the labeler {type(labeler).__name__} needs a {role}, and none is given. Name a model for it."
        for role in ROLES
        if role in uses and getattr(tools, role) is None
    ]
    faults += [
        f"a budget needs a ledger for the {role}. Pass one, or leave out the budget."
        for role in ROLES
        if judged and getattr(tools, role) is not None and role not in (ledgers or {})
    ]
    if faults:
        raise ConfigError(faults)


def ledgers(directory: Path, tools: Tools) -> dict[str, Ledger]:
    """A ledger for each backend that may cost money: labels.jsonl for the completer, judge.jsonl for the judge."""
    names = {"completer": "labels", "judge": "judge"}
    return {
        role: Ledger.of(directory / f"{names[role]}.jsonl", backend)
        for role in ROLES
        if (backend := getattr(tools, role)) is not None
    }


def distinct(units: Sequence[tuple[Problem, Solution]]) -> list[tuple[Problem, Solution]]:
    """Keeps the first of a problem's solutions with the same text. For training data only: voting needs the
    duplicates, because it counts how often an answer occurs."""
    first: dict[tuple[str, str], tuple[Problem, Solution]] = {}
    for problem, solution in units:
        first.setdefault((problem.id, solution.text), (problem, solution))
    return list(first.values())


def references_among(
    units: Sequence[tuple[Problem, Solution]], grade: Callable[[Problem, Solution], Grade | None]
) -> References:
    """A function that returns a problem's own worked solution and the correct ones in `units`, each text once."""
    references: dict[str, dict[str, None]] = {}
    for problem, solution in units:
        texts = references.setdefault(problem.id, {problem.reference: None} if problem.reference else {})
        solution_grade = grade(problem, solution)
        if solution_grade is not None and solution_grade.correct:
            texts.setdefault(solution.text)
    return lambda problem: tuple(references.get(problem.id, ()))


def _jobs(
    units: Sequence[tuple[Problem, Solution]],
    todo: Sequence[tuple[Problem, Solution]],
    labeler: Labeler,
    tools: Tools,
    references: References | None,
) -> dict[str, _Job]:
    if "references" not in getattr(labeler, "uses", frozenset()):
        return {s.id: _Job(Unlabelled(p, s)) for p, s in todo}
    if references is None:  # from all units, so that a resumed run has the same references
        references = references_among(units, lambda p, s: grade_solution(s, p, tools.grader))
    return {s.id: _Job(Unlabelled(p, s, tuple(references(p)))) for p, s in todo}


def _label(
    jobs: tuple[_Job, ...],
    *,
    labeler: Labeler,
    tools: Tools,
    ledgers: Mapping[str, Ledger],
    budget: Budget | None,
) -> Iterator[LabelledSolution | work.Failed]:
    recorded: dict[str, Recorded] = {}
    for role, ledger in ledgers.items():
        backend = getattr(tools, role)
        if backend is not None:
            known = {key: r for job in jobs for key, r in job.known.get(role, {}).items()}
            recorded[role] = Recorded(backend, ledger, known, budget)
    try:
        for labelled in labeler.label([job.unit for job in jobs], replace(tools, **recorded)):  # type: ignore[arg-type]
            unlabelled_steps = [i for i, x in enumerate(labelled.labels, 1) if x.failed and not x.known]
            if unlabelled_steps:
                reason = f"all rollouts of step {unlabelled_steps[0]} failed; the ledger has the reasons"
                yield work.Failed(labelled.key, reason)
            elif labelled.rationales and all(r.lost == "failed" for r in labelled.rationales):
                yield work.Failed(labelled.key, f"all rationales failed, the first with: {labelled.rationales[0].text}")
            else:
                yield labelled
    except Exception:
        # The solutions are now labelled again one at a time: pass on the rollouts that are paid for already.
        by_id = {job.unit.solution.id: job for job in jobs}
        for role, backend in recorded.items():
            for key, r in backend.known.items():
                job = by_id.get(r.prompt_id.rpartition("@")[0])
                if job is not None:  # a labeler may choose prompt ids of another form
                    job.known.setdefault(role, {})[key] = r
        raise


def _spent(ledgers: Mapping[str, Ledger] | None) -> Spent:
    return sum((ledger.spent for ledger in (ledgers or {}).values()), Spent())


def _name(job: _Job) -> str:
    return job.unit.solution.id


def _weigh(job: _Job) -> int:
    return max(1, len(job.unit.solution.spans))

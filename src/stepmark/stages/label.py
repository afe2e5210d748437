"""Stage: solutions -> one label per step, without a human.

How the evidence is found is the labeller's business (labelers/); this stage feeds it batches that fill the
engine and stores what comes. With ledgers, each rollout is kept as it comes too, and paid for once.

    stepmark label --task arithmetic --solutions solutions.jsonl --model generator/ --out labels.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from stepmark.data import outcome_counts
from stepmark.data import work_units as work
from stepmark.data.ledger import Budget, Ledger, Recorded
from stepmark.data.outcome_counts import LimitCheck, Limits, OutcomeCounts
from stepmark.data.store import Records
from stepmark.errors import ConfigError
from stepmark.protocols import Executor, Labeler, Tools
from stepmark.text.grading import grade_solution
from stepmark.types import Grade, LabelledSolution, Problem, Progress, Rollout, Solution, Unlabelled

ROLES = ("completer", "judge")  # the tools that may cost something, each with a ledger of its own
References = Callable[[Problem], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the file holds after labelling."""

    solutions: int
    steps: int
    unknown: int  # steps without any evidence: they teach nothing
    inferred: int  # steps whose label follows from another step's
    rollouts: OutcomeCounts  # behind the labels
    failed: tuple[work.Failed, ...]  # solutions without labels


@dataclass(frozen=True, slots=True)
class _Job:
    """A solution to label, and the rollouts of it that an earlier sitting paid for."""

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
    """Labels the solutions that `out` lacks, in batches of about `steps` steps.

    `references` gives a problem's correct worked solutions, to labellers that compare with them; by default the
    problem's own and those of `units` that the grader finds correct. `ledgers` may hold one for each of ROLES.
    Raises ConfigError for a tool that the labeller needs and lacks, BudgetReached when the budget is spent,
    StageError when nearly everything fails or more than `limits` allow can't be used."""
    need(labeler, tools, judged=budget is not None, ledgers=ledgers or {})
    if ledgers:
        out.claim()  # before its ledgers change: two at once would both pay
    there = out.keys()
    todo = [u for u in units if u[1].id not in there]
    jobs = _jobs(units, todo, labeler, tools, references)
    for role, ledger in (ledgers or {}).items():
        for prompt, rollouts in ledger.open(lambda prompt: prompt.rpartition("@")[0] in jobs).items():
            jobs[prompt.rpartition("@")[0]].known.setdefault(role, {}).update((r.key, r) for r in rollouts)
    failed = work.run(
        "label",
        partial(_label, labeler=labeler, tools=tools, ledgers=ledgers or {}, budget=budget),
        list(jobs.values()),
        out,
        name=_name,
        weigh=_weigh,
        size=steps,
        already=sum(max(1, len(s.spans)) for _, s in units if s.id in there),
        executor=executor,
        progress=progress,
        watch=LimitCheck(limits, outcome_counts.of_labels, "rollouts"),
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
    """Raises ConfigError where the labeller needs a tool that there is not, or a budget has no ledger to go by."""
    uses: frozenset[str] = getattr(labeler, "uses", frozenset())
    faults = [
        f"the labeller {type(labeler).__name__} needs a {role}, a model: there is none."
        for role in ROLES
        if role in uses and getattr(tools, role) is None
    ]
    faults += [
        f"a budget needs a ledger of what the {role} spends."
        for role in ROLES
        if judged and getattr(tools, role) is not None and role not in (ledgers or {})
    ]
    if faults:
        raise ConfigError(faults)


def ledgers(directory: Path, tools: Tools) -> dict[str, Ledger]:
    """A ledger for each tool that may cost something: labels.jsonl for the completer, judge.jsonl for the judge."""
    names = {"completer": "labels", "judge": "judge"}
    return {
        role: Ledger.of(directory / f"{names[role]}.jsonl", backend)
        for role in ROLES
        if (backend := getattr(tools, role)) is not None
    }


def distinct(units: Sequence[tuple[Problem, Solution]]) -> list[tuple[Problem, Solution]]:
    """The first of the solutions of a problem that have the same text. For training data; never before a
    vote, where how often an answer comes is the signal."""
    first: dict[tuple[str, str], tuple[Problem, Solution]] = {}
    for problem, solution in units:
        first.setdefault((problem.id, solution.text), (problem, solution))
    return list(first.values())


def references_among(
    units: Sequence[tuple[Problem, Solution]], grade: Callable[[Problem, Solution], Grade | None]
) -> References:
    """Each problem's own worked solution, and those of `units` that are correct, each text once."""
    found: dict[str, dict[str, None]] = {}
    for problem, solution in units:
        texts = found.setdefault(problem.id, {problem.reference: None} if problem.reference else {})
        given = grade(problem, solution)
        if given is not None and given.correct:
            texts.setdefault(solution.text)
    return lambda problem: tuple(found.get(problem.id, ()))


def _jobs(
    units: Sequence[tuple[Problem, Solution]],
    todo: Sequence[tuple[Problem, Solution]],
    labeler: Labeler,
    tools: Tools,
    references: References | None,
) -> dict[str, _Job]:
    if "references" not in getattr(labeler, "uses", frozenset()):
        return {s.id: _Job(Unlabelled(p, s)) for p, s in todo}
    if references is None:  # from all units, so that a resumed run sees what the first one saw
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
        for found in labeler.label([job.unit for job in jobs], replace(tools, **recorded)):  # type: ignore[arg-type]
            bare = [i for i, x in enumerate(found.labels, 1) if x.failed and not x.known]
            if bare:
                yield work.Failed(found.key, f"no rollout of step {bare[0]} came; the ledger has the reasons")
            elif found.rationales and all(r.lost == "failed" for r in found.rationales):
                yield work.Failed(found.key, f"no rationale came: {found.rationales[0].text}")
            else:
                yield found
    except Exception:
        # The others are done again, one by one: with what was paid for just now.
        by_id = {job.unit.solution.id: job for job in jobs}
        for role, backend in recorded.items():
            for key, r in backend.known.items():
                job = by_id.get(r.prompt_id.rpartition("@")[0])  # none where a labeller names its prompts otherwise
                if job is not None:
                    job.known.setdefault(role, {})[key] = r
        raise


def _name(job: _Job) -> str:
    return job.unit.solution.id


def _weigh(job: _Job) -> int:
    return max(1, len(job.unit.solution.spans))

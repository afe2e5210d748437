"""Rejection sampling fine-tuning: sample solutions, keep the correct and distinct ones, and fine-tune on them (Yuan et
al. 2023, arXiv 2308.01825; the baseline of Math-Shepherd, section 3.5, with 8 samples per problem).

Gold answers decide which solutions are correct. Solutions with different texts are distinct; the paper compares their
equations instead.

    OUT/                    a Hugging Face checkpoint, written when training is finished (stages/train.py)
    OUT/drawn/              the sampled solutions and their grades

    found = rft("generator/", problems, grader, "policy/", samples=8, params=params, train=TrainSettings(lr=1e-4))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stepmark.backends.local import LocalBackend
from stepmark.data.store import Records
from stepmark.errors import DataError
from stepmark.executors.serial import SerialExecutor
from stepmark.models import checkpoints, training_log
from stepmark.protocols import Grader
from stepmark.rl.identity import answers, described, digest
from stepmark.stages.grade import grade
from stepmark.stages.sample import sample
from stepmark.stages.train import Generator, Trained, TrainSettings
from stepmark.stages.train import train as fine_tune
from stepmark.text.prompts import Template
from stepmark.types import GradedSolution, Place, Problem, Progress, SamplingParams, Solution


def rft(
    policy: Place,
    problems: Sequence[Problem],
    grader: Grader,
    out: Place,
    *,
    samples: int = 8,
    params: SamplingParams | None = None,
    train: TrainSettings | None = None,
    template: Template | None = None,
    steps: str = "line",
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Fine-tunes the checkpoint `policy` on its own correct solutions. Resumes after a kill, and returns at once when
    `out` holds the finished result. `template` is "{question}\\n" by default. Raises DataError when no sample is
    correct, and ConfigChanged when `out` belongs to another call."""
    out, template = Path(out), template or Template("{question}\n")
    params = params or SamplingParams(max_tokens=256)
    drawn = out / "drawn"
    identity = {
        "policy": checkpoints.digest(policy),
        "template": template.hash,
        "steps": steps,
        "samples": samples,
        "params": repr(params),
    }
    data = {"problems": digest(problems), training_log.ANSWERS: answers(problems), "grader": described(grader)}
    training_log.claim(drawn, identity | data)
    with (
        Records[Solution](drawn / "solutions.jsonl", Solution) as solutions,
        Records[GradedSolution](drawn / "grades.jsonl", GradedSolution) as grades,
    ):
        backend = LocalBackend(str(policy), device=(train or TrainSettings()).device)
        executor = SerialExecutor()
        sample(
            problems,
            backend,
            solutions,
            n=samples,
            context=template,
            params=params,
            steps=steps,
            executor=executor,
            progress=progress,
        )
        grade(solutions, problems, grader, grades, executor=executor, progress=progress)
        correct_ids = {g.solution_id for g in grades if g.grade.correct}
        demonstrations = _demonstrations(problems, solutions, correct_ids)
    if not demonstrations:
        raise DataError(
            f"none of {samples} samples at each of {len(problems)} problems is right: nothing to learn from. Draw more "
            "samples, or use easier problems."
        )
    return fine_tune(Generator(str(policy), template.text), demonstrations, out, train, progress)


def _demonstrations(problems: Sequence[Problem], solutions: Records[Solution], correct_ids: set[str]) -> list[Problem]:
    """One problem per distinct correct solution, with that solution as its demonstration."""
    by_id = {p.id: p for p in problems}
    seen: set[tuple[str, str]] = set()
    demonstrations = []
    for s in sorted((s for s in solutions if s.id in correct_ids), key=lambda s: (s.problem_id, s.sample)):
        if (s.problem_id, s.text) not in seen:
            seen.add((s.problem_id, s.text))
            demonstrations.append(replace(by_id[s.problem_id], id=s.id, demonstration=s.text))
    return demonstrations

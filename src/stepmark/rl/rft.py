"""Rejection sampling fine-tuning: sample, keep what is right and distinct, learn to write that (Yuan et al. 2023, arXiv
2308.01825; the baseline of Math-Shepherd, section 3.5, with 8 samples a problem).

What is kept is told by gold answers. Distinct are texts; the paper tells solutions apart by their equations.

    OUT/                    a Hugging Face checkpoint when it is over (stages/train.py)
    OUT/drawn/              what was sampled, solutions and their grades

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
from stepmark.rl.identity import described, digest
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
    """Fine-tunes the checkpoint `policy` on its own right solutions; goes on after a kill, and returns at once when
    `out` holds the finished result. `template` is "{question}\\n" unless given. Raises DataError when no sample is
    right, ConfigChanged when `out` holds another call's."""
    out, template = Path(out), template or Template("{question}\n")
    params = params or SamplingParams(max_tokens=256)
    drawn = out / "drawn"
    asked = {
        "policy": checkpoints.digest(policy),
        "template": template.hash,
        "steps": steps,
        "samples": samples,
        "params": repr(params),
    }
    training_log.claim(drawn, asked | {"problems": digest(problems), "grader": described(grader)})
    with (
        Records[Solution](drawn / "solutions.jsonl", Solution) as solutions,
        Records[GradedSolution](drawn / "grades.jsonl", GradedSolution) as grades,
    ):
        backend = LocalBackend(str(policy), device=(train or TrainSettings()).device)
        here = SerialExecutor()
        sample(
            problems,
            backend,
            solutions,
            n=samples,
            context=template,
            params=params,
            steps=steps,
            executor=here,
            progress=progress,
        )
        grade(solutions, problems, grader, grades, executor=here, progress=progress)
        right = {g.solution_id for g in grades if g.grade.correct}
        kept = _kept(problems, solutions, right)
    if not kept:
        raise DataError(
            f"none of {samples} samples at each of {len(problems)} problems is right: nothing to learn from."
        )
    return fine_tune(Generator(str(policy), template.text), kept, out, train, progress)


def _kept(problems: Sequence[Problem], solutions: Records[Solution], right: set[str]) -> list[Problem]:
    """Each problem once for every distinct right solution, which is now its demonstration."""
    own = {p.id: p for p in problems}
    seen: set[tuple[str, str]] = set()
    kept = []
    for s in sorted((s for s in solutions if s.id in right), key=lambda s: (s.problem_id, s.sample)):
        if (s.problem_id, s.text) not in seen:
            seen.add((s.problem_id, s.text))
            kept.append(replace(own[s.problem_id], id=s.id, demonstration=s.text))
    return kept

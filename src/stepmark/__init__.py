"""Stepmark trains verifiers of step-by-step reasoning from a task with checkable answers and a language model.

    import stepmark

    problem = stepmark.load_task("arithmetic").load("test").problems[0]
    verifier = stepmark.load_verifier("runs/demo/verifiers/prm")
    verifications = stepmark.verify(verifier, problem.question, ["a solution", "another one"])

Importing stepmark loads no torch, no numpy and no transformers; each name is imported when it is first used. The stages
are plain functions, one per file: `from stepmark.stages.sample import sample`; also grade, label, train, score.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from stepmark._moved import Finder

if TYPE_CHECKING:
    from stepmark.data.store import Records, RunDir
    from stepmark.errors import StepmarkError
    from stepmark.evaluation.rank import rank
    from stepmark.integrations.safe_grade import safe_grade
    from stepmark.plugins.loading import load_backend, load_executor, load_grader, load_task, load_verifier
    from stepmark.stages.score import verify
    from stepmark.text.prompts import Template
    from stepmark.types import (
        Candidate,
        Grade,
        GradedSolution,
        LabelledSolution,
        Problem,
        SamplingParams,
        Selection,
        Solution,
        StepLabel,
        Verdict,
        Verification,
    )

_HOMES = {
    "errors": ("StepmarkError",),
    "evaluation.rank": ("rank",),
    "integrations.safe_grade": ("safe_grade",),
    "plugins.loading": ("load_backend", "load_executor", "load_grader", "load_task", "load_verifier"),
    "text.prompts": ("Template",),
    "data.store": ("Records", "RunDir"),
    "stages.score": ("verify",),
    "types": (
        "Candidate",
        "Grade",
        "GradedSolution",
        "LabelledSolution",
        "Problem",
        "SamplingParams",
        "Selection",
        "Solution",
        "StepLabel",
        "Verdict",
        "Verification",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Candidate",
    "Grade",
    "GradedSolution",
    "LabelledSolution",
    "Problem",
    "Records",
    "RunDir",
    "SamplingParams",
    "Selection",
    "Solution",
    "StepLabel",
    "StepmarkError",
    "Template",
    "Verdict",
    "Verification",
    "load_backend",
    "load_executor",
    "load_grader",
    "load_task",
    "load_verifier",
    "rank",
    "safe_grade",
    "verify",
]


if Finder not in sys.meta_path:
    sys.meta_path.append(Finder)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stepmark' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepmark.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

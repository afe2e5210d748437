"""Stepmark: a task with checkable answers and a language model become a verifier of step-by-step reasoning.

    import stepmark

    problem = stepmark.load_task("arithmetic").load("test").problems[0]
    verifier = stepmark.load_verifier("runs/demo/verifiers/prm")
    verifications = verifier.verify(problem.question, solutions)

Importing this loads no torch, no numpy and no transformers; names are looked up when they are first used. The stages
are functions named after their modules: `from stepmark.sample import sample`, and so grade, label, train, score and
evaluate.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not looked up later like the rest: the module has the same name, and would be found in the function's place.
from stepmark.rank import rank

if TYPE_CHECKING:
    from stepmark.errors import StepmarkError
    from stepmark.loading import load_backend, load_executor, load_grader, load_task, load_verifier
    from stepmark.prompts import Template
    from stepmark.store import Records, RunDir
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
    "loading": ("load_backend", "load_executor", "load_grader", "load_task", "load_verifier"),
    "prompts": ("Template",),
    "store": ("Records", "RunDir"),
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
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stepmark' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepmark.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

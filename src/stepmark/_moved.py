"""Old module names, from before the packages: for one release `from stepmark.sample import sample` works and warns.

A finder at the end of `sys.meta_path` finds the old names, so they cost nothing until one is imported.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

PACKAGES = {
    "cli": "doctor",
    "data": "ledger rows store",
    "evaluation": "aggregate evaluate evidence stats",
    "integrations": "rewards",
    "models": "checkpoints encoding entailment packing scoring",
    "plugins": "loading",
    "run": "recipe seeds",
    "stages": "export grade label sample score train",
    "text": "answers grading prompts rationales sampling steps verdicts",
}
MOVED = {name: f"stepmark.{package}.{name}" for package, names in PACKAGES.items() for name in names.split()} | {
    "compute": "stepmark.evaluation.token_curves",
    "neutral": "stepmark.text.sanitize",
    "optimal": "stepmark.evaluation.budget_advice",
    "outcomes": "stepmark.data.outcome_counts",
    "pipeline": "stepmark.run.execute",
    "planning": "stepmark.run.cost_estimate",
    "pools": "stepmark.evaluation.candidates",
    "trainlog": "stepmark.models.training_log",
    "units": "stepmark.data.work_units",
}


class Finder:
    """Finds the old names. Each gives a module that takes all its attributes from the new module."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.removeprefix("stepmark.") not in MOVED or not name.startswith("stepmark."):
            return None
        return spec_from_loader(name, Loader())  # type: ignore[arg-type]


class Loader:
    """Makes the module that stands under an old name. No subclass of importlib.abc.Loader: that import is slow."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Returns None: Python makes the module itself."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = MOVED[old.removeprefix("stepmark.")]
        warnings.warn(f"{old} is now {new}; the next release removes the old name", DeprecationWarning, stacklevel=2)
        new_module = importlib.import_module(new)

        def look_up(name: str) -> Any:
            return getattr(new_module, name)

        module.__doc__ = new_module.__doc__
        module.__getattr__ = look_up  # type: ignore[method-assign]
        module.__dir__ = lambda: dir(new_module)  # type: ignore[method-assign]

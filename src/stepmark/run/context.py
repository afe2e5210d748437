"""The context of a run: its recipe, directory and log, and the plug-ins, checkpoints and records that stages use.

A RunContext is the only argument of a stage. It creates plug-ins and opens records when a stage first needs them.

stepmark run recipes/demo.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from stepmark.data.ledger import Budget, need_price
from stepmark.data.store import Records, RunDir, StoredRecord
from stepmark.errors import DataError
from stepmark.plugins import registry
from stepmark.plugins.loading import load_executor, load_verifier
from stepmark.protocols import Backend, Executor, Grader, RationaleOracle, Task, Tools, Verifier
from stepmark.run.log import RunLog
from stepmark.run.recipe import Recipe
from stepmark.run.schema import Generator
from stepmark.stages.train import TrainSettings
from stepmark.text.few_shot import FewShot, few_shot
from stepmark.text.prompts import Template
from stepmark.types import (
    GradedSolution,
    LabelledSolution,
    Problem,
    Progress,
    Quarantined,
    SamplingParams,
    Solution,
    Verification,
)

ROLES = ("generator", "completer", "judge")


class RunContext:
    """One recipe on one run directory. Plug-ins and records are created on first use."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDir,
        progress: Callable[[Progress], None] | None = None,
        budget: Budget | None = None,
        command: str = "",
    ) -> None:
        self.recipe, self.directory = recipe, directory
        self.budget = budget  # limits on the spending of this run, over all sittings
        self.command = command  # the command line, for the report
        self.log = RunLog(directory, progress)

    def need_price(self) -> None:
        """Raises ConfigError for a limit on money where no model of the recipe has a price."""
        need_price(self.budget, (self.backend(role) for role in ROLES if self.role(role) is not None))

    # ---- plug-ins ----

    @cached_property
    def task(self) -> Task | None:
        return None if self.recipe.task is None else cast(Task, self.recipe.task.load(**self.task_seed()))

    def task_seed(self) -> dict[str, int]:
        """The task's seed: the run's, unless the recipe pins the task's own."""
        assert self.recipe.task is not None
        return {} if "seed" in self.recipe.task.options else {"seed": self.recipe.seed}

    @cached_property
    def grader(self) -> Grader:
        if self.recipe.grader is not None:
            return cast(Grader, self.recipe.grader.load())
        if self.task is None:
            raise DataError(
                "the imported solutions have no grades, and the recipe has no grader and no task: give one of them."
            )
        return cast(Grader, registry.load("grader", self.task.grader))

    @cached_property
    def executor(self) -> Executor:
        if self.recipe.executor is not None:
            return cast(Executor, self.recipe.executor.load(workers=self.recipe.workers))
        return load_executor(self.recipe.workers)

    def role(self, name: str) -> Generator | None:
        """The settings of the generator, completer or judge. A recipe without a completer uses the generator's."""
        settings = cast("Generator | None", getattr(self.recipe, name))
        return self.recipe.generator if settings is None and name == "completer" else settings

    def model_path(self, name: str) -> str:
        """The checkpoint of a role; "" for a backend that needs none, such as a server."""
        settings = self.role(name)
        assert settings is not None
        if settings.train is None:
            return settings.path or ""
        return str(self.path / ("generator" if settings is self.recipe.generator else name))

    def backend(self, name: str) -> Backend:
        """The backend of a role."""
        settings = self.role(name)
        assert settings is not None
        return cast(Backend, settings.backend.load(path=self.model_path(name)))

    @cached_property
    def prompt(self) -> FewShot:
        """What renders the questions for the generator and the completer, with the recipe's worked examples."""
        template = Template(self.recipe.prompt)
        count = self.recipe.sample.few_shot
        return few_shot(template, count, self.task, self.grader) if self.task and count else FewShot(template)

    @property
    def params(self) -> SamplingParams:
        """How solutions and rollouts are sampled."""
        params = self.recipe.params
        return replace(params, stop=(*params.stop, *self.prompt.stop))

    @property
    def steps(self) -> str:
        """The rule that splits solutions into steps."""
        return self.recipe.steps or (self.task.steps if self.task is not None else "line")

    @property
    def oracle(self) -> Callable[[Problem, Solution], str] | None:
        """The task's function that writes a correct verification of any solution; None where it has none."""
        return cast(RationaleOracle, self.task).rationale if hasattr(self.task, "rationale") else None

    @property
    def tools(self) -> Tools:
        """The models and functions that labelers use."""
        completer, judge = (self.backend(n) if self.role(n) is not None else None for n in ("completer", "judge"))
        return Tools(self.grader, self.prompt, self.params, completer, judge, self.steps, self.oracle)

    def verifier(self, name: str) -> Verifier:
        """A verifier of the recipe, ready to score: the trained checkpoint, where its kind is trained."""
        settings = self.recipe.verifiers[name]
        if settings.learns:
            return load_verifier(self.path / "verifiers" / name)
        path = ""
        if "path" in registry.options("verifier", settings.kind) and not settings.below:
            generator = self.recipe.generator
            own = self.model_path("generator") if generator is not None and generator.has_model else ""
            path = settings.base.path or own
        return cast(Verifier, self.trainee(name, path))

    def trainee(self, name: str, path: str) -> Any:
        """A verifier to train, or to use as it is, from the checkpoint at `path`; "" for a kind that needs none."""
        settings = self.recipe.verifiers[name]
        options: dict[str, Any] = self.template_option(settings.kind) | ({"path": path} if path else {})
        below = tuple(str(self.path / "verifiers" / other) for other in settings.below)
        if below and "verifiers" in registry.options("verifier", settings.kind):
            options["verifiers"] = below
        elif below:
            options["verifier"] = below[0]
        return registry.load("verifier", settings.kind, **options, **settings.options)

    def template_option(self, kind: str) -> dict[str, str]:
        """The recipe's prompt as the option `template`; empty for a verifier kind without that option."""
        return {"template": self.recipe.prompt} if "template" in registry.options("verifier", kind) else {}

    def settings(self, settings: TrainSettings) -> TrainSettings:
        """The settings with the seed of the training: its own `seed` plus that of the run."""
        return replace(settings, seed=settings.seed + self.recipe.seed)

    # ---- files ----

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def rollouts(self) -> Path:
        """The directory of the ledgers."""
        return self.path / "rollouts"

    def exists(self, name: str) -> bool:
        """Whether a file or a directory exists, by its path in the run directory."""
        return (self.path / name).exists()

    def trained(self, name: str) -> bool:
        """Whether the training in a directory of the run is finished."""
        return self.exists(f"{name}/trained.json")

    def problems(self, part: str) -> Records[Problem]:
        return self.directory.records(f"problems/{part}", Problem)

    def solutions(self, part: str) -> Records[Solution]:
        return self.directory.records(f"solutions/{part}", Solution)

    def grades(self, part: str) -> Records[GradedSolution]:
        return self.directory.records(f"grades/{part}", GradedSolution)

    def scores(self, name: str, part: str = "test") -> Records[Verification]:
        """A verifier's scores of a part of the test."""
        return self.directory.records(scores_name(name, part), Verification)

    @property
    def labels(self) -> Records[LabelledSolution]:
        return self.directory.records("labels/train", LabelledSolution)

    def rationales(self, writer: str = "") -> Records[LabelledSolution]:
        """The verifications of one of the recipe's writers; "" is the writer for all verifiers."""
        return self.directory.records(rationales_name(writer), LabelledSolution)

    @property
    def quarantine(self) -> Records[Quarantined]:
        return self.directory.records("quarantine", Quarantined)

    def quarantine_rows(self, rows: Sequence[Quarantined]) -> None:
        """Keeps rows that can't be used, with their reasons, in quarantine.jsonl."""
        add_missing(self.quarantine, rows)


def scores_name(verifier: str, part: str) -> str:
    """The name of a verifier's scores. For `test` it is the same with and without a second test."""
    return f"scores/{verifier}" if part == "test" else f"scores/{part}/{verifier}"


def rationales_name(writer: str) -> str:
    return f"rationales/{writer}/train" if writer else "rationales/train"


def add_missing(records: Records[Any], candidates: Sequence[StoredRecord]) -> None:
    """Appends those whose keys are not stored yet."""
    stored = records.keys()
    records.append(r for r in candidates if r.key not in stored)

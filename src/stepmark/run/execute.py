"""Runs the stages of a recipe on a run directory: all that are not done, or chosen stages again.

The same call on the same directory goes on where the last call stopped. A directory with other settings is refused, and
the message has a diff. Before a stage is run again (`--only`, `--from`), its earlier outputs are moved to
RUN/archive/DATE/.

stepmark run recipes/demo.yaml
stepmark run recipes/demo.yaml --from score
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmark.data import work_units
from stepmark.data.ledger import Budget, move_away
from stepmark.data.store import RunDir
from stepmark.errors import ConfigError, DataError
from stepmark.run import inputs, missing, renames
from stepmark.run.context import RunContext
from stepmark.run.pipeline import stages
from stepmark.run.recipe import Recipe
from stepmark.run.stage import Stage, check, matches
from stepmark.types import Place, Progress

Show = Callable[[Progress], None]

ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which stages to run: give `only` or `start`, not both; without either, all stages that are not done."""

    only: str = ""  # run these stages again, and no others: a stage's name or its first words
    start: str = ""  # run these stages and all that follow again

    def __post_init__(self) -> None:
        if self.only and self.start:
            raise ConfigError("give either --only or --from, not both.")

    @property
    def anew(self) -> bool:
        """Whether stages that are done are run again."""
        return bool(self.only or self.start)

    def of(self, listed: Sequence[Stage]) -> list[Stage]:
        """The chosen stages, in order. Raises ConfigError for a name that no stage has."""
        if not self.anew:
            return list(listed)
        name = self.only or self.start
        places = [i for i, stage in enumerate(listed) if matches(stage, name)]
        if not places:
            names = [stage.name for stage in listed]
            near = difflib.get_close_matches(name, [*names, *{n.split()[0]: None for n in names}], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no stage {name!r} in this run.{hint} There are: {', '.join(names)}.")
        return [listed[i] for i in places] if self.only else list(listed[places[0] :])


ALL = Selection()


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run."""

    path: Path  # the run directory
    metrics: Mapping[str, Any]  # as in metrics.json; empty where `evaluate` was not among the stages
    quarantined: int  # rows left out, listed in quarantine.jsonl
    failed: tuple[work_units.Failed, ...]  # items that failed in a stage; the same command tries them again
    stages: tuple[str, ...] = ()  # the stages that ran

    @property
    def exit_code(self) -> int:
        """0, or 3 where rows could not be used or items failed."""
        return 3 if self.quarantined or self.failed else 0


def run(
    recipe: Recipe,
    path: Place,
    progress: Show | None = None,
    command: str = "",
    budget: Budget | None = None,
    selection: Selection = ALL,
) -> RunResult:
    """Runs the chosen stages; by default those that are not done yet.

    Raises ConfigError for models and files that are not there, ConfigChanged for a directory with other settings, or
    with other models or data (run/inputs.py), BudgetReached when the spending in the run's ledgers, over all sittings,
    reaches the budget, DataError for a chosen stage whose inputs are missing. A sitting without a budget keeps a ledger
    of solutions only for paid models."""
    listed = stages(recipe)
    chosen = selection.of(listed)
    # Before the directory is made: it would belong to the wrong path, and refuse the right one.
    missing.need(recipe, path, lambda: todo(recipe, path, selection))
    with RunDir(path).open(recipe.resolved(), renames.upgraded) as directory:
        context = RunContext(recipe, directory, progress, budget, command)
        check(listed, context)
        context.need_price()
        anew = chosen if selection.anew else ()
        need_inputs(context, anew)
        found = inputs.check(context, listed, anew)
        archive(directory.path, outputs(context, anew))  # all that can be refused was refused: only now are files moved
        inputs.write(context, found)
        context.log.anew(stage.name for stage in anew)
        for note in recipe.notes:
            context.log.note(note, show=False)  # the command line has said it already
        ran = [stage.name for stage in chosen if run_stage(context, stage)]
        metrics = directory.read_json("metrics.json") if "evaluate" in ran else {}
        return RunResult(directory.path, metrics, len(context.quarantine), tuple(context.log.failed), tuple(ran))


def todo(recipe: Recipe, path: Place, selection: Selection = ALL) -> list[str]:
    """The names of the stages that `run` would run."""
    context = RunContext(recipe, RunDir(path))
    return [s.name for s in selection.of(stages(recipe)) if selection.anew or not s.state(context).done]


def run_stage(context: RunContext, stage: Stage) -> bool:
    """Runs a stage unless it is done; returns whether it ran."""
    if stage.state(context).done:
        return False
    with context.log.stage(stage.name):
        stage.run(context)
    return True


def need_inputs(context: RunContext, chosen: Sequence[Stage]) -> None:
    """Raises DataError where a chosen stage reads a file that does not exist and that no chosen stage writes."""
    written = {name for stage in chosen for name in stage.outputs(context)}
    missing = [
        (stage.name, name)
        for stage in chosen
        for name in stage.inputs(context)
        if name not in written and not context.exists(name)
    ]
    if missing:
        listed = "; ".join(f"{stage} reads {name}" for stage, name in missing[:5])
        raise DataError(
            f"{context.path}: {listed}: not there yet. Run the earlier stages first: the same command without --only "
            "or --from."
        )


def archive(run: Path, names: Sequence[str]) -> None:
    """Moves these files and directories of a run, in the order of the stages that made them, to RUN/archive/DATE/.

    The last are moved first: if the process is killed in between, every file that is left still has its inputs."""
    date = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    if before := len(list((run / ARCHIVE).glob(f"{date}*"))):
        date = f"{date}-{before + 1}"
    for name in reversed(names):
        path, place = run / name, run / ARCHIVE / date
        if not name.startswith("rollouts/"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(place / name)
            continue
        for ledger in [path] if path.is_file() else sorted(path.rglob("*.jsonl")):
            target = place / ledger.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            move_away(ledger, target, date)


def outputs(context: RunContext, chosen: Sequence[Stage]) -> list[str]:
    """The existing files and directories of these stages, each once, in the order of the stages."""
    names = dict.fromkeys(name.rstrip("/") for stage in chosen for name in stage.outputs(context))
    return [name for name in names if context.exists(name)]

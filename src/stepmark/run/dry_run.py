"""The plan of a run: which stages are done, which would run, and their files. Runs nothing and writes nothing.

It compares the settings with those of the run, but not the checkpoints (run/inputs.py): reading them takes a while.

stepmark run recipes/demo.yaml --dry-run
stepmark run recipes/demo.yaml --from score --dry-run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepmark.data.store import RunDir
from stepmark.run import renames
from stepmark.run.context import RunContext
from stepmark.run.execute import ALL, Selection, need_inputs, outputs
from stepmark.run.pipeline import stages
from stepmark.run.recipe import Recipe
from stepmark.run.stage import State, check
from stepmark.types import Place


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage of the plan."""

    stage: str
    runs: bool  # whether it would run now
    made: int  # records or trained models that exist
    total: int | None  # records or trained models in the end; None where that is not known before the stage runs
    reads: tuple[str, ...]  # paths in the run directory
    writes: tuple[str, ...]
    archives: tuple[str, ...]  # its earlier outputs, which would be moved to RUN/archive


def plan(recipe: Recipe, path: Place, selection: Selection = ALL) -> list[PlannedStage]:
    """The plan of a run; of a recipe with seeds, give that of one seed.

    Raises ConfigChanged for a directory with other settings, and the errors of a run for a wrong selection."""
    listed = stages(recipe)
    chosen = {stage.name for stage in selection.of(listed)}
    directory = RunDir(path)
    directory.compare(recipe.resolved(), renames.upgraded)
    context = RunContext(recipe, directory)
    check(listed, context)
    if selection.anew:
        need_inputs(context, [stage for stage in listed if stage.name in chosen])
    planned = []
    for stage in listed:
        state = stage.state(context)
        anew = selection.anew and stage.name in chosen
        planned.append(
            PlannedStage(
                stage.name,
                stage.name in chosen and (anew or not state.done),
                state.made,
                state.total,
                tuple(stage.inputs(context)),
                tuple(stage.outputs(context)),
                tuple(outputs(context, [stage])) if anew else (),
            )
        )
    return planned


def table(planned: Sequence[PlannedStage]) -> str:
    """The plan as a table for a terminal."""
    rows = [("", "stage", "made", "reads", "writes")]
    for stage in planned:
        mark = "run" if stage.runs else "done" if State(stage.made, stage.total).done else "-"
        reads, writes = (_columns(names) for names in (stage.reads, stage.writes))
        for i in range(max(len(reads), len(writes), 1)):
            first = (mark, stage.stage, _made(stage)) if i == 0 else ("", "", "")
            rows.append((*first, reads[i] if i < len(reads) else "", writes[i] if i < len(writes) else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if moved := [name for stage in planned for name in stage.archives]:
        lines += ["", f"Moved to archive/DATE/ before: {', '.join(moved)}"]
    return "\n".join(lines)


def _made(stage: PlannedStage) -> str:
    if stage.total is None:
        return f"{stage.made:,}" if stage.made else ""
    return f"{stage.made:,} of {stage.total:,}"


def _columns(names: Sequence[str], most: int = 3) -> list[str]:
    """Names for a column of the table: the first few, and the number of the others."""
    shown = [name.removesuffix(".jsonl") for name in names]
    return shown if len(shown) <= most + 1 else [*shown[:most], f"and {len(shown) - most} more"]

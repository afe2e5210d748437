"""Stage `report`: writes report.html from the records of the run.

stepmark report runs/demo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepmark.run.context import RunContext
from stepmark.run.stage import State


@dataclass(frozen=True, slots=True)
class Report:
    """Writes the report. It runs each time."""

    name: str = "report"

    def inputs(self, context: RunContext) -> Sequence[str]:
        return ["metrics.json"]

    def outputs(self, context: RunContext) -> Sequence[str]:
        return ["report.html"]

    def state(self, context: RunContext) -> State:
        return State(int(context.exists("report.html")))

    def run(self, context: RunContext) -> None:
        from stepmark.run.report_data import write_report

        write_report(context.directory, context.command)

"""The report of a run: a self-contained HTML page and a table for the terminal.

from stepmark import report
page = report.render(report.ReportData(name="demo", metrics=report.Metrics.parse(metrics)))
"""

from stepmark.report.console import table
from stepmark.report.data import Metrics, ReportData, TrainPoint
from stepmark.report.page import render, write

__all__ = ["Metrics", "ReportData", "TrainPoint", "render", "table", "write"]

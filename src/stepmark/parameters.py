"""The parameters that several commands take, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TaskName = Annotated[str, typer.Option("--task", help="A task's name, or the path of your own file: ./mine.py")]
TaskOptions = Annotated[list[str] | None, typer.Option("--task-option", metavar="KEY=VALUE", help="Of the task.")]
Split = Annotated[str, typer.Option(help="Which part of the task.")]
Limit = Annotated[int | None, typer.Option("--problems", min=1, help="How many problems; all by default.")]
Model = Annotated[str | None, typer.Option("--model", help="A checkpoint directory or a hub id.")]
BackendName = Annotated[str, typer.Option("--backend", help="What runs the model: a name or a path.")]
BackendOptions = Annotated[list[str] | None, typer.Option("--backend-option", metavar="KEY=VALUE")]
GraderName = Annotated[str | None, typer.Option("--grader", help="A name or a path; by default the task's own.")]
Prompt = Annotated[str, typer.Option(help="How a question is put; {question} stands for it.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most new tokens for each text.")]
Temperature = Annotated[float, typer.Option(min=0)]
TopP = Annotated[float, typer.Option(min=0, max=1)]
Stop = Annotated[list[str] | None, typer.Option(help="A text ends before this; may be given several times.")]
Seed = Annotated[int, typer.Option(min=0)]
Workers = Annotated[int, typer.Option(min=1, help="Processes at a time; changes no result.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, no progress.")]
Solutions = Annotated[Path, typer.Option(help="JSONL of solutions.")]
Out = Annotated[Path, typer.Option(help="Where results go; the same command goes on with what is there.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/demo")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="e.g. sample.test.n=16")]

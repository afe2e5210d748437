"""The command that keeps the rows or solutions of a file by a verifier's scores.

stepmark filter --help
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stepmark.cli import parameters as p
from stepmark.cli.app import app
from stepmark.cli.terminal import SET_ASIDE, Show, end
from stepmark.errors import ConfigError, UnknownName


@app.command(name="filter")
def filter_(
    rows: Annotated[
        Path,
        typer.Argument(metavar="ROWS", help="File of questions with solutions: {question: ..., solutions: [..., ...]}"),
    ],
    verifier: Annotated[str, typer.Option(help="Directory of a trained verifier, or the path of your own kind.")],
    keep: Annotated[
        str,
        typer.Option(
            metavar="CONDITION",
            help="What is kept: comparisons of min, mean, prod, last, score, steps, tokens, characters and numbers, "
            "with and, or, not.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="JSONL file of what is kept. Scores, a report, and solutions without a score lie beside it."),
    ],
    whole: Annotated[
        str,
        typer.Option(
            "--rows",
            help="each: solutions are kept one by one; any, all: a row is kept whole, if one of its solutions or all "
            "meet the condition.",
        ),
    ] = "each",
    steps: Annotated[
        str, typer.Option(help="How solutions are split into steps: line, paragraph, sentence, numbered, thought.")
    ] = "line",
    workers: p.Workers = 1,
    limit: p.Limits = None,
    json: p.AsJson = False,
) -> None:
    """Keep the rows or solutions of a file whose scores meet a condition.

    Scores are kept beside the output, so the same command goes on where it was stopped, and another condition needs no
    model. What has no score is set aside, in a file of its own.

    \b
    Examples:
      stepmark filter rows.jsonl --verifier runs/demo/verifiers/prm --keep "min > 0.5" --out kept.jsonl
      stepmark filter rows.jsonl --verifier prm/ --keep "mean > 0.8 and steps <= 12" --rows all --out kept.jsonl
    """
    from dataclasses import asdict

    from stepmark.cli import settings
    from stepmark.data.outcome_counts import parse_limits
    from stepmark.data.store import write_json
    from stepmark.evaluation import filtering
    from stepmark.evaluation.conditions import Condition
    from stepmark.plugins.loading import load_executor, load_verifier
    from stepmark.stages.score import TEXTS, score_rows
    from stepmark.types import ScoredRow

    condition, limits = Condition(keep), parse_limits(limit or [])
    if whole not in filtering.WAYS:
        raise UnknownName("way to keep rows", whole, filtering.WAYS)
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out is a JSONL file, so its name ends in .jsonl, got {out}.")
    if out.exists() and rows.exists() and out.samefile(rows):
        raise ConfigError(f"--out {out} is the file that is filtered. Give another name; the rows stay as they are.")
    scores, aside, report_path = filtering.paths(out)
    scorer = load_verifier(verifier)
    about: dict[str, Any] = {
        "command": "score rows",
        "steps": steps,
        "verifier": settings.of_verifier(verifier, scorer),
    }
    with Show(json) as show, settings.output(scores, ScoredRow, about) as records:
        counts, bad = score_rows(
            scorer, rows, records, executor=load_executor(workers), steps=steps, limits=limits, progress=show
        )
        report = filtering.filter_rows(rows, records, condition, out, aside, fields=TEXTS, steps=steps, whole=whole)
    write_json(report_path, asdict(report) | {"quarantined": [asdict(row) for row in bad]})
    if report.set_aside:
        typer.echo(f"stepmark: {report.set_aside} solutions without a score are in {aside}", err=True)
    else:
        aside.unlink()
    if not json:
        for line in filtering.lines(report):
            typer.echo(f"stepmark: {line}", err=True)
    shown = {k: v for k, v in asdict(report).items() if k not in ("examples", "reasons", "unscored", "cut")}
    end(shown | {"report": str(report_path), "failed": [asdict(x) for x in counts.failed]}, json, bad)
    if report.set_aside:
        raise typer.Exit(SET_ASIDE)

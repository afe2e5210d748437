"""The command that turns a file of another project's format into a file of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stepmark.cli import parameters as p
from stepmark.cli.app import app
from stepmark.cli.terminal import SET_ASIDE, Show, print_json
from stepmark.errors import ConfigError


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A file, a data set that `datasets` saved, or the hub id of one.")
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="DST", help="The new file; its ending says how: .jsonl, .json, .csv, .parquet, ... .gz"),
    ],
    to: Annotated[str, typer.Option("--to", help="Format to write: its name, or the path of your own file.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="Format of SRC; by default it is recognised by the fields of its rows.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="An option of the formats; from.KEY and to.KEY are of one of them. May be given several times.",
        ),
    ] = None,
    workers: p.Workers = 1,
    json: p.AsJson = False,
) -> None:
    """Convert step labels and solutions from one format to another, and say what could not be carried over.

    Rows that break the rules of their format are set aside in DST.quarantine.jsonl, each with its line and the reason.

    \b
    Examples:
      stepmark convert math-shepherd.jsonl --to stepwise rows.jsonl
      stepmark convert phase2_train.jsonl.gz --to rlhflow rows.parquet --option neutral=wrong
      stepmark convert runs/demo/labels/train.jsonl --to openrlhf rows.jsonl --option estimate=soft
    """
    from stepmark.plugins import registry
    from stepmark.plugins.loading import load_executor
    from stepmark.protocols import Format, Writer
    from stepmark.stages import convert as stage

    changes = {"from": list[str](), "to": list[str]()}
    for change in option or ():
        side, _, rest = change.partition(".")
        if side in changes and "=" in rest:
            changes[side].append(rest)
        else:
            changes["from"].append(change)
            changes["to"].append(change)
    split = next((c.partition("=")[2] for c in changes["from"] if c.startswith("split=")), "train")
    from_ = from_ or stage.recognised(source, split)
    asked = {c for c in option or () if c.partition(".")[0] not in changes}
    reader, used = _plugin(from_, changes["from"], asked)
    writer, also_used = _plugin(to, changes["to"], asked)
    if unused := sorted(asked - used - also_used):
        known = sorted({*registry.options("format", from_), *registry.options("format", to)})
        raise ConfigError(
            f"--option {unused[0]}: neither {from_} nor {to} has this option. There are: {', '.join(known) or 'none'}."
        )
    if not isinstance(reader, Format):
        raise ConfigError(f"the format {from_} can be written, but not read. Choose another with --from.")
    if not isinstance(writer, Writer):
        raise ConfigError(f"the format {to} can be read, but not written. Choose a format that has `encode`.")
    with Show(json) as show:
        executor = load_executor(workers) if workers > 1 else None
        done = stage.convert(source, out, reader, writer, executor=executor, progress=show)
    _print(done, json, from_, to, out)


def _plugin(name: str, changes: Sequence[str], asked: set[str]) -> tuple[Any, set[str]]:
    """The format with those of the changes that it has an option for; and which of `asked` these are."""
    from stepmark.plugins import registry

    allowed = registry.options("format", name)
    fitting = [c for c in changes if c not in asked or c.partition("=")[0] in allowed]
    kind = registry.find("format", name)
    return registry.load("format", name, **p.options(fitting, kind)), {c for c in fitting if c in asked}


def _print(done: Any, json: bool, source: str, target: str, out: Path) -> None:
    from stepmark.stages.convert import quarantine_of

    if json:
        print_json({k: v for k, v in dataclasses.asdict(done).items() if k != "first"} | {"from": source, "to": target})
    else:
        print(f"{source} to {target}: {done.rows:,} rows read, {done.written:,} written")
        if done.lost:
            print("not carried over:")
        for what, count in done.lost.items():
            print(f"  {count:>9,}  {what}")
        if done.quarantined:
            print(f"set aside: {done.quarantined:,} rows, {done.reason}")
    for row in done.first:
        typer.echo(f"stepmark: set aside: {row.file}, line {row.line}: {row.reason}", err=True)
    if done.quarantined:
        typer.echo(f"stepmark: all {done.quarantined:,} rows that were set aside are in {quarantine_of(out)}", err=True)
        raise typer.Exit(SET_ASIDE)

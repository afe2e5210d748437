"""Commands for whole runs: plan a run, run it, measure it again, select answers with it.

stepmark run --help
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepmark.cli import parameters as p
from stepmark.cli.app import app
from stepmark.cli.terminal import Show, print_json, say_failed
from stepmark.errors import ConfigError

if TYPE_CHECKING:
    from stepmark.run.recipe import Recipe


@app.command()
def demo(
    changes: p.Changes = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default runs/demo.")] = None,
    json: p.AsJson = False,
) -> None:
    """Run the demo: a verifier trained without human labels beats majority voting. Minutes on a laptop, no GPU.

    \b
    Example:
      stepmark demo
    """
    import stepmark

    home = Path(stepmark.__file__).parent
    places = (home / "_recipes" / "demo.yaml", home.parent.parent / "recipes" / "demo.yaml")
    _run(next((x for x in places if x.is_file()), places[0]), changes or [], out, json)


@app.command()
def plan(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A YAML file, e.g. recipes/demo.yaml; with --optimal a run directory."),
    ],
    changes: p.Changes = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; by default runs/NAME, with the recipe's name, or one beside it where that has other "
            "settings."
        ),
    ] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="Number of problems in the pilot; by default 24.")] = None,
    solutions: Annotated[
        int | None, typer.Option(min=1, help="Solutions of each problem in the pilot; by default 4.")
    ] = None,
    price_hour: Annotated[float, typer.Option(min=0, help="Price of an hour of this machine.")] = 0.0,
    budget: p.BudgetLimits = None,
    optimal: Annotated[
        bool, typer.Option("--optimal", help="For a finished run: how to split tokens between samples and votes.")
    ] = False,
    tokens: Annotated[
        list[float] | None, typer.Option(help="With --optimal: tokens for each problem; may be given several times.")
    ] = None,
    json: p.AsJson = False,
) -> None:
    """Estimate the cost of a recipe before it runs: rollouts, tokens, hours and money, from a small pilot.

    If the recipe trains its generator, the pilot trains it first, in the run directory, and the run uses it.

    With --optimal, show how a finished run would best spend a budget of tokens for each problem: on more samples, on
    votes of a verifier, or without a verifier.

    \b
    Examples:
      stepmark plan recipes/demo.yaml
      stepmark plan mine.yaml --price-hour 2.5 --budget money=1
      stepmark plan --optimal runs/demo --tokens 500 --tokens 4000
    """
    if optimal:
        pilot = {"--out": out, "--problems": problems, "--solutions": solutions}
        unused = {"KEY=VALUE": changes, **pilot, "--price-hour": price_hour, "--budget": budget}
        if names := [name for name, value in unused.items() if value]:
            raise ConfigError(f"plan --optimal is about a finished run; leave out {', '.join(names)}.")
        _optimal(recipe, tokens or (), json)
        return
    if tokens:
        raise ConfigError("--tokens goes with --optimal and a run directory: stepmark plan --optimal RUN --tokens 500")

    from stepmark.data.ledger import parse_budget
    from stepmark.data.store import RunDir
    from stepmark.run import cost_estimate, execute, inputs, missing, renames
    from stepmark.run.context import RunContext
    from stepmark.run.pipeline import stages
    from stepmark.run.recipe import first_seed

    limits = parse_budget(budget or [])
    whole = _recipe(recipe, changes or [])
    of_seed, place = first_seed(whole, out or Path("runs") / whole.name)
    if out is None and (own := cost_estimate.place_of(of_seed, place)) != place:
        typer.echo(
            f"stepmark: note: {place} holds a run of other settings. This plan is in {own}, with the models that it "
            "trained.",
            err=True,
        )
        place = own
    missing.need(of_seed, place, lambda: execute.todo(of_seed, place))
    with RunDir(place).open(of_seed.resolved(), renames.upgraded) as directory, Show(json) as show:
        context = RunContext(of_seed, directory, show, limits)
        inputs.write(context, inputs.check(context, stages(of_seed)))
        estimate = cost_estimate.plan(context, problems or 24, solutions or 4, price_hour)
    if json:
        print_json(estimate)
    else:
        print(cost_estimate.table(estimate))
        if whole.reinforce is not None:
            print("Sampling and training of its policies are not included.")
        if whole.seeds:
            print(f"This is for one of {len(whole.seeds)} seeds, in one process; {whole.workers} run at a time.")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, e.g. recipes/demo.yaml")],
    changes: p.Changes = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; by default runs/NAME, with the recipe's name.")
    ] = None,
    budget: p.BudgetLimits = None,
    only: Annotated[
        str, typer.Option(metavar="STAGE", help="Run only these stages, again: a name or its first words, e.g. score.")
    ] = "",
    start: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="Run these stages and all that follow, again.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which stages are done and which would run, without running them.")
    ] = False,
    json: p.AsJson = False,
) -> None:
    """Run a recipe or continue its run: from a task to a verifier, its metrics and its report.

    Stages that are done are not run again. With --only or --from they are: their earlier outputs go to RUN/archive.

    \b
    Examples:
      stepmark run recipes/demo.yaml
      stepmark run recipes/demo.yaml seed=2 sample.test.n=16 'evaluate.n=[1,4,16]' --out runs/second
      stepmark run recipes/demo.yaml --dry-run
      stepmark run recipes/demo.yaml --from score
      stepmark run mine.yaml --budget money=20 --budget hours=8
    """
    if dry_run:
        _dry_run(recipe, changes or [], out, only, start, json)
    else:
        _run(recipe, changes or [], out, json, budget or [], only, start)


@app.command()
def evaluate(run: p.RunPath, json: p.AsJson = False) -> None:
    """Measure a run's verifiers again from its stored scores, and write metrics.json.

    \b
    Example:
      stepmark evaluate runs/demo
    """
    from stepmark import report as pages
    from stepmark.data.store import RunDir
    from stepmark.run import seeds
    from stepmark.run.recipe import stored

    recipe = stored(RunDir(run))
    config = RunDir(run).read_json("config.json")  # unchanged: an older version may have stored fewer settings
    with RunDir(run).open(config) as directory, Show(json) as show:
        metrics = seeds.evaluate(recipe, directory, show)
    if json:
        print_json(metrics)
    else:
        print(pages.table(metrics))


@app.command()
def report(run: p.RunPath, json: p.AsJson = False) -> None:
    """Write a run's report.html again.

    \b
    Example:
      stepmark report runs/demo
    """
    from stepmark.data.store import RunDir
    from stepmark.run.seeds import write_report

    path = write_report(RunDir(run))
    if json:
        print_json({"report": str(path)})
    else:
        print(path)


@app.command()
def rank(
    run: p.RunPath,
    method: Annotated[
        str, typer.Option(help="Selection method: prm, self_consistency, self_consistency+prm, prm:prod, ...")
    ] = "prm",
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Use only the first n candidates of each problem.")
    ] = None,
    json: p.AsJson = False,
) -> None:
    """Select an answer for every test problem of a run. With --json, print one line of JSON for each problem.

    \b
    Example:
      stepmark rank runs/demo --method self_consistency+prm --n 16
    """
    from stepmark.data.store import RunDir
    from stepmark.evaluation.rank import rank as choose
    from stepmark.run.recipe import stored
    from stepmark.run.report_data import pools

    directory = RunDir(run)
    recipe = stored(directory)
    if recipe.seeds:
        raise ConfigError(
            f"{run} has a run for each of its seeds; give one of them, e.g. {run}/seed-{recipe.seeds[0]}."
        )
    for problem_id, pool in pools(directory, recipe).items():
        chosen = choose(pool[:n], method, recipe.evaluate.aggregates[0], problem_id=problem_id, seed=recipe.seed)
        if json:
            print_json(chosen)
        else:
            print(f"{chosen.problem_id}\t{chosen.answer}\t{chosen.share:.3f}\t{chosen.solution_id}")


@app.command()
def doctor(json: p.AsJson = False) -> None:
    """Show what this machine has, what is missing, and what it is needed for.

    \b
    Example:
      stepmark doctor
    """
    from stepmark.cli.doctor import checks

    results = list(checks())
    if json:
        print_json({c.what: c for c in results})
        return
    for c in results:
        print(f"{'ok  ' if c.ok else 'warn'}  {c.what:<13} {c.found}" + (f"\n      -> {c.advice}" if not c.ok else ""))


# ---- shared by the commands ----


def _recipe(path: Path, changes: Sequence[str]) -> Recipe:
    """The recipe. Its notes go to standard error."""
    from stepmark.run.recipe import load

    recipe = load(path, changes)
    for note in recipe.notes:
        typer.echo(f"stepmark: note: {note}", err=True)
    return recipe


def _optimal(run: Path, tokens: Sequence[float], json: bool) -> None:
    from stepmark.data.store import RunDir
    from stepmark.evaluation import budget_advice
    from stepmark.report import Metrics

    if not run.is_dir():
        raise ConfigError(
            f"plan --optimal takes the directory of a finished run, e.g. runs/demo; {run} is not a directory."
        )
    metrics = Metrics.parse(RunDir(run).read_json("metrics.json"))
    advice = budget_advice.advise(metrics, tokens, run)
    if json:
        print_json({part.name: part for part in advice})
    else:
        print(budget_advice.table(advice))


def _dry_run(path: Path, changes: Sequence[str], out: Path | None, only: str, start: str, json: bool) -> None:
    from stepmark.run import dry_run, missing
    from stepmark.run.execute import Selection
    from stepmark.run.recipe import first_seed

    whole = _recipe(path, changes)
    recipe, place = first_seed(whole, out or Path("runs") / whole.name)
    planned = dry_run.plan(recipe, place, Selection(only, start))
    if json:
        print_json({"run": str(place), "stages": planned})
    else:
        seeds = f", the same for each of the seeds {list(whole.seeds)}" if whole.seeds else ""
        print(f"{whole.name} in {place}{seeds}\n{dry_run.table(planned)}")
    missing.need(recipe, place, lambda: [stage.stage for stage in planned if stage.runs])


def _run(
    path: Path,
    changes: Sequence[str],
    out: Path | None,
    json: bool,
    budget: Sequence[str] = (),
    only: str = "",
    start: str = "",
) -> None:
    from stepmark import report as pages
    from stepmark.data.ledger import parse_budget
    from stepmark.run import seeds
    from stepmark.run.execute import Selection

    limits = parse_budget(budget)
    selection = Selection(only, start)
    recipe = _recipe(path, changes)
    command = " ".join(["stepmark", *sys.argv[1:]])
    backend = recipe.generator.backend if recipe.generator is not None else None
    dtype = str(backend.options.get("dtype", "auto")) if backend is not None else "auto"
    with Show(json, local=backend is not None and backend.name == "local", dtype=dtype) as show:
        result = seeds.run(recipe, out or Path("runs") / recipe.name, show, command, limits, selection)
    if json:
        print_json(result.metrics or {"run": str(result.path), "stages": result.stages})
    elif result.metrics:
        print(pages.table(result.metrics, result.path / "report.html"))
    else:
        print(f"{', '.join(result.stages)}: done, in {result.path}")
    if result.quarantined:
        typer.echo(f"stepmark: {result.quarantined} rows were set aside: {result.path / 'quarantine.jsonl'}", err=True)
    say_failed([dataclasses.asdict(f) for f in result.failed])
    raise typer.Exit(result.exit_code)

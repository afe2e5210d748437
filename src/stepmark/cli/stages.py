"""One command for each stage: it reads files and writes one.

stepmark sample --help
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from stepmark.cli import parameters as p
from stepmark.cli.app import app
from stepmark.cli.terminal import Printed, Show, end
from stepmark.errors import ConfigError, DataError


@app.command()
def init(
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    problems: p.Limit = 20000,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="A size of the model: hidden, layers, heads, ...; may be given several times."
        ),
    ] = None,
    prompt: p.Prompt = "{question}\n",
    seed: p.Seed = 0,
    source: Annotated[
        str | None, typer.Option("--from", help="Checkpoint or .gguf file to copy, with --keep-vocab-of.")
    ] = None,
    keep_vocab_of: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="With --from: keep the tokens of this file's texts alone; may be given several times."
        ),
    ] = None,
    json: p.AsJson = False,
) -> None:
    """Make a small new model, with random weights and a tokenizer learned from a task; or copy a model without the part
    of its vocabulary that some data never uses.

    \b
    Examples:
      stepmark init --task arithmetic --shape hidden=64 --shape layers=2 --out base/
      stepmark init --from gemma-3-270m/ --keep-vocab-of train.jsonl --keep-vocab-of test.jsonl --out trimmed/
    """
    if (source is None) != (not keep_vocab_of):
        raise ConfigError("--from and --keep-vocab-of belong together: a model, and files whose tokens it keeps.")
    if source is not None:
        from stepmark.models import vocabulary

        texts = [text for file in keep_vocab_of or () for text in vocabulary.texts_of(file)]
        end(vocabulary.trim(source, texts, out), json, ())
        return
    from stepmark.models import checkpoints
    from stepmark.run.recipe import settings
    from stepmark.text.prompts import Template

    model_shape = settings(checkpoints.Shape, shape or [], "--shape")
    loaded, bad, _ = p.load(task, task_option, split, problems)
    context = Template(prompt)
    checkpoints.create(out, [context(x) + (x.demonstration or x.reference) for x in loaded], model_shape, seed)
    end({"path": str(out), "problems": len(loaded)}, json, bad)


@app.command()
def sample(
    out: p.Out,
    model: p.Model = None,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "test",
    problems: p.Limit = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Solutions of each problem.")] = 16,
    backend: p.BackendName = "local",
    backend_option: p.BackendOptions = None,
    prompt: p.Prompt = "{question}\n",
    few_shot: p.FewShots = 0,
    max_tokens: p.MaxTokens = 256,
    temperature: p.Temperature = 1.0,
    top_p: p.TopP = 1.0,
    stop: p.Stop = None,
    seed: p.Seed = 0,
    workers: p.Workers = 1,
    budget: p.BudgetLimits = None,
    limit: p.Limits = None,
    json: p.AsJson = False,
) -> None:
    """Sample solutions of a task's problems. A later call with a larger --n adds solutions to the file.

    \b
    Example:
      stepmark sample --task arithmetic --split test --model runs/demo/generator --n 16 --out solutions.jsonl
    """
    from stepmark.cli import settings
    from stepmark.data.ledger import Ledger, need_price, parse_budget
    from stepmark.data.outcome_counts import parse_limits
    from stepmark.plugins.loading import load_executor
    from stepmark.stages.sample import sample as stage
    from stepmark.types import SamplingParams, Solution

    spending, limits = parse_budget(budget or []), parse_limits(limit or [])
    loaded, bad, plugin = p.load(task, task_option, split, problems and problems + few_shot)
    context = p.prompted(prompt, few_shot, plugin)
    loaded = context.left(loaded, problems)
    generator = p.backend(backend, backend_option, model)
    need_price(spending, [generator])
    ledger = Ledger.of(p.rollouts(out) / "solutions.jsonl", generator)
    # A ledger of an earlier sitting is used too: it may hold paid rollouts that are not among the solutions yet.
    paid = spending is not None or getattr(generator, "remote", False) or ledger.path.exists()
    params = SamplingParams(max_tokens, temperature, top_p, (*(stop or ()), *context.stop), seed)
    about = {
        "command": "sample",
        **settings.of_task(task, plugin, split, loaded, answers=False),
        "steps": plugin.steps,
        "generator": settings.of_backend(backend, generator),
        **settings.of_sampling(context.text, params),
    }
    rollouts = p.kept(out, context.text, params, generator=generator if paid else None)
    shown = Show(json, local=backend == "local", dtype=getattr(generator, "dtype", "auto"))
    with rollouts, shown as show, settings.output(out, Solution, about) as records:
        done = stage(
            loaded,
            generator,
            records,
            n=n,
            context=context,
            params=params,
            steps=plugin.steps,
            ledger=ledger if paid else None,
            budget=spending,
            limits=limits,
            executor=load_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def grade(
    solutions: p.Solutions,
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "test",
    grader: p.GraderName = None,
    workers: p.Workers = 1,
    limit: p.Limits = None,
    json: p.AsJson = False,
) -> None:
    """Compare the solutions' answers with the references: correct, incorrect, or ungradable with a reason.

    \b
    Example:
      stepmark grade --task arithmetic --split test --solutions solutions.jsonl --out grades.jsonl
    """
    from stepmark.cli import settings
    from stepmark.data.outcome_counts import parse_limits
    from stepmark.plugins.loading import load_executor
    from stepmark.stages.grade import grade as stage
    from stepmark.types import GradedSolution, Solution

    loaded, bad, plugin = p.load(task, task_option, split)
    stored_solutions = p.there(solutions, Solution)
    grades = p.grader(grader, plugin)
    about_task = settings.of_task(task, plugin, split, loaded)
    settings.same_questions(solutions, about_task)
    about = {
        "command": "grade",
        **about_task,
        "grader": settings.of_plugin("grader", grader or plugin.grader, grades),
        **settings.of_input("solutions", solutions),
    }
    with Show(json) as show, settings.output(out, GradedSolution, about) as records:
        done = stage(
            stored_solutions,
            loaded,
            grades,
            records,
            limits=parse_limits(limit or []),
            executor=load_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def label(
    solutions: p.Solutions,
    out: p.Out,
    model: p.Model = None,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    labeler: Annotated[
        str, typer.Option(help="Name of a labelling method, or the path of your own file.")
    ] = "monte_carlo",
    labeler_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the labelling method, e.g. rollouts=8")
    ] = None,
    distinct: Annotated[bool, typer.Option(help="Label only one of a problem's solutions with the same text.")] = True,
    backend: p.BackendName = "local",
    backend_option: p.BackendOptions = None,
    grader: p.GraderName = None,
    prompt: p.Prompt = "{question}\n",
    few_shot: p.FewShots = 0,
    max_tokens: p.MaxTokens = 256,
    temperature: p.Temperature = 1.0,
    top_p: p.TopP = 1.0,
    stop: p.Stop = None,
    seed: p.Seed = 0,
    judge: Annotated[
        str | None, typer.Option(help="Checkpoint of the judge, for labelling methods that use one.")
    ] = None,
    judge_backend: Annotated[str | None, typer.Option(help="What runs the judge; by default local.")] = None,
    judge_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the judge's backend.")
    ] = None,
    workers: p.Workers = 1,
    budget: p.BudgetLimits = None,
    limit: p.Limits = None,
    json: p.AsJson = False,
) -> None:
    """Label every step of solutions without a human: from rollouts, or with a judge.

    \b
    Example:
      stepmark label --task arithmetic --split train --solutions solutions.jsonl --model runs/demo/generator \\
        --labeler-option rollouts=8 --out labels.jsonl
    """
    from stepmark.cli import settings
    from stepmark.data import work_units
    from stepmark.data.ledger import need_price, parse_budget
    from stepmark.data.outcome_counts import parse_limits
    from stepmark.plugins import registry
    from stepmark.plugins.loading import load_executor
    from stepmark.protocols import Tools
    from stepmark.stages.label import distinct as first_of_each
    from stepmark.stages.label import label as stage
    from stepmark.stages.label import ledgers
    from stepmark.types import LabelledSolution, SamplingParams, Solution

    spending, limits = parse_budget(budget or []), parse_limits(limit or [])
    method = registry.load("labeler", labeler, **p.options(labeler_option, registry.find("labeler", labeler)))
    loaded, bad, plugin = p.load(task, task_option, split)
    stored_solutions = p.there(solutions, Solution)
    about_task = settings.of_task(task, plugin, split, loaded)
    settings.same_questions(solutions, about_task)
    context = p.prompted(prompt, few_shot, plugin, grader)
    pairs = [x for x in work_units.pair(loaded, stored_solutions) if not context.shows(x[0])]
    has_completer = model is not None or backend != "local" or bool(backend_option)
    has_judge = judge is not None or judge_backend is not None or bool(judge_option)
    tools = Tools(
        p.grader(grader, plugin),
        context,
        SamplingParams(max_tokens, temperature, top_p, (*(stop or ()), *context.stop), seed),
        p.backend(backend, backend_option, model) if has_completer else None,
        p.backend(judge_backend or "local", judge_option, judge) if has_judge else None,
        plugin.steps,
    )
    need_price(spending, [tools.completer, tools.judge])
    about = {
        "command": "label",
        **about_task,
        "steps": plugin.steps,
        "labeler": settings.of_plugin("labeler", labeler, method),
        "completer": settings.of_backend(backend, tools.completer),
        "judge": settings.of_backend(judge_backend or "local", tools.judge),
        "grader": settings.of_plugin("grader", grader or plugin.grader, tools.grader),
        **settings.of_sampling(context.text, tools.params),
        **settings.of_input("solutions", solutions),
    }
    rollouts = p.kept(out, context.text, tools.params, completer=tools.completer, judge=tools.judge)
    with (
        rollouts,
        Show(json, local=backend == "local", dtype=getattr(tools.completer, "dtype", "auto")) as show,
        settings.output(out, LabelledSolution, about) as records,
    ):
        done = stage(
            first_of_each(pairs) if distinct else pairs,
            method,
            tools,
            records,
            ledgers=ledgers(p.rollouts(out), tools),
            budget=spending,
            limits=limits,
            executor=load_executor(workers),
            progress=show,
        )
    end(done, json, bad)


@app.command()
def export(
    labels: Annotated[Path, typer.Option(help="JSONL file of labelled solutions.")],
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    format: Annotated[str, typer.Option(help="Name of a format, or the path of your own file.")] = "stepwise",
    soft: Annotated[
        bool, typer.Option("--soft", help="Write shares of correct rollouts instead of true and false.")
    ] = False,
    json: p.AsJson = False,
) -> None:
    """Write step labels in the format of another program.

    \b
    Example:
      stepmark export --task arithmetic --split train --labels labels.jsonl --out rows.jsonl
    """
    from stepmark.cli import settings
    from stepmark.data.store import Records
    from stepmark.stages.export import export as stage
    from stepmark.types import LabelledSolution

    loaded, bad, plugin = p.load(task, task_option, split)
    if not labels.is_file():
        raise DataError(f"no file {labels} (working directory: {Path.cwd()}).")
    settings.same_questions(labels, settings.of_task(task, plugin, split, loaded))
    records = Records(labels, LabelledSolution)
    end(stage(records, loaded, out, format=format, estimate="soft" if soft else "hard"), json, bad)


@app.command()
def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="generator, orm, prm, ... or the path of your own file.")],
    out: p.Out,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "train",
    problems: p.Limit = None,
    base: Annotated[str | None, typer.Option(help="Checkpoint to start from: a directory or a hub id.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of labelled solutions, for verifiers.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Format of --labels, if another project made it; it has the problems, so no task is needed."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the verifier kind.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A training setting: lr, epochs, ...")
    ] = None,
    prompt: p.Prompt = "{question}\n",
    json: p.AsJson = False,
) -> None:
    """Train a generator on a task's demonstrations, or a verifier on labelled solutions.

    \b
    Examples:
      stepmark train generator --task arithmetic --base base/ --set epochs=3 --set lr=3e-3 --out generator/
      stepmark train prm --task arithmetic --labels labels.jsonl --base generator/ --out prm/
      stepmark train prm --labels math-shepherd.jsonl --format math_shepherd --base generator/ --out prm/
    """
    from stepmark.cli import settings
    from stepmark.plugins import registry
    from stepmark.run.recipe import settings as parse_settings
    from stepmark.stages.train import Generator, TrainSettings
    from stepmark.stages.train import train as loop
    from stepmark.types import LabelledSolution

    training = parse_settings(TrainSettings, set or [], "--set")
    if format is not None and (labels is None or kind == "generator"):
        raise ConfigError("--format is that of --labels, for a verifier; give both.")
    if labels is not None and format is not None:
        examples, bad = p.examples(labels, format)
    else:
        loaded, bad, plugin = p.load(task, task_option, split, problems)
    with Show(json) as show:
        if kind == "generator":
            if base is None:
                raise ConfigError("training a generator needs --base, a checkpoint. `stepmark init` makes a small one.")
            done = loop(Generator(base, prompt, **p.options(option, Generator)), loaded, out, training, show)
        else:
            if labels is None:
                raise ConfigError(f"training the verifier {kind} needs --labels. `stepmark label` makes this file.")
            if format is None:
                settings.same_questions(labels, settings.of_task(task, plugin, split, loaded))
                by_id = {x.id: x for x in loaded}
                labelled = sorted((x.key, x) for x in p.there(labels, LabelledSolution))
                examples = [(by_id[x.solution.problem_id], x) for _, x in labelled if x.solution.problem_id in by_id]
            allowed = registry.options("verifier", kind)
            if base is None and allowed.get("path", "") is inspect.Parameter.empty:
                raise ConfigError(f"training the verifier {kind} needs --base, a checkpoint to start from.")
            filled_in = {"path": base, "template": prompt}
            filled_in = {k: v for k, v in filled_in.items() if k in allowed and v is not None}
            trainee = registry.load("verifier", kind, **filled_in, **p.options(option, registry.find("verifier", kind)))
            done = loop(trainee, examples, out, training, show)
    end(done, json, bad)


@app.command()
def score(
    verifier: Annotated[
        str,
        typer.Option(help="A trained verifier's directory, a public one's directory or hub id, or a file of yours."),
    ],
    rows: Annotated[
        Path | None,
        typer.Argument(
            metavar="ROWS", help="JSONL file of questions with solutions: {question: ..., solutions: [..., ...]}"
        ),
    ] = None,
    solutions: Annotated[Path | None, typer.Option(help="JSONL file of solutions of a task's problems.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File of the results; the same command continues an existing one. ROWS can do without: their scores "
            "go to standard output."
        ),
    ] = None,
    steps: Annotated[
        str,
        typer.Option(
            help="With ROWS: how solutions are split into steps: line, paragraph, sentence, numbered, thought, re:EXPR."
        ),
    ] = "line",
    reading: Annotated[
        str | None, typer.Option(help="The family of a public verifier, where its files don't tell it.")
    ] = None,
    task: p.TaskName = "arithmetic",
    task_option: p.TaskOptions = None,
    split: p.Split = "test",
    workers: p.Workers = 1,
    limit: p.Limits = None,
    json: p.AsJson = False,
) -> None:
    """Score solutions with a verifier, which never sees the reference answers.

    Rows need no task: each has a question and its solutions (or completions, or one solution). Other solutions are
    those that `stepmark sample` writes, and belong to a task.

    \b
    Examples:
      stepmark score --verifier runs/demo/verifiers/prm rows.jsonl --out scores.jsonl
      stepmark score --verifier runs/demo/verifiers/prm --task arithmetic --split test \\
        --solutions solutions.jsonl --out scores.jsonl
    """
    from stepmark.cli import settings
    from stepmark.data.outcome_counts import parse_limits
    from stepmark.plugins.loading import load_executor, load_verifier
    from stepmark.stages.score import score as stage
    from stepmark.stages.score import score_rows
    from stepmark.types import ScoredRow, Solution, Verification

    limits, read_as = parse_limits(limit or []), {"reading": reading} if reading else {}
    if (rows is None) == (solutions is None):
        raise ConfigError("give either ROWS, a file of questions with solutions, or --solutions, of a task's problems.")
    if rows is not None:
        scorer, executor = load_verifier(verifier, **read_as), load_executor(workers)
        about: dict[str, Any] = {"command": "score rows", "steps": steps}
        kept = (
            Printed(ScoredRow)
            if out is None
            else settings.output(out, ScoredRow, about | {"verifier": settings.of_verifier(verifier, scorer)})
        )
        with Show(json) as show, kept as scored_rows:
            counts, bad_rows = score_rows(
                scorer, rows, scored_rows, executor=executor, steps=steps, limits=limits, progress=show
            )
        end(counts, json, bad_rows, silent=out is None)
        return
    if solutions is None or out is None:
        raise ConfigError("--out is missing: the file of the results.")
    loaded, bad, plugin = p.load(task, task_option, split)
    stored_solutions = p.there(solutions, Solution)
    about_task = settings.of_task(task, plugin, split, loaded, answers=False)
    settings.same_questions(solutions, about_task)
    scorer = load_verifier(verifier, **read_as)
    about = {
        "command": "score",
        **about_task,
        "verifier": settings.of_verifier(verifier, scorer),
        **settings.of_input("solutions", solutions),
    }
    with Show(json) as show, settings.output(out, Verification, about) as records:
        done = stage(
            scorer,
            loaded,
            stored_solutions,
            records,
            limits=limits,
            executor=load_executor(workers),
            progress=show,
        )
    end(done, json, bad)

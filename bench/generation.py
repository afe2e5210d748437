"""Does learning to verify make a better generator? pass@1 of a run's generator and of its verifiers as generators.

A genrm verifier that also learned generation is still a causal language model that solves problems (GenRM, section 5.3:
verification data raises the generator's own pass@1). For each seed of finished runs, this script draws new solutions of
held-out problems from the generator and from each such verifier's checkpoint, greedily and at the recipe's temperature,
and grades them. The effect of the verification data is the difference to a control that learned to generate the same
texts and nothing else: a verifier with `examples: 0`.

Differences are paired by problem. A seed's interval is a bootstrap over its problems. The interval over seeds is the
wider of Student's t and the seeds' own intervals together, as in the reports of runs with seeds
(stepmark/run/seeds.py).

    stepmark run recipes/genrm_curves.yaml
    python bench/generation.py runs/genrm_curves

The last line printed is one line of JSON; it is also written to --out. Solutions are stored in RUN/generation. A second
call grades them anew and draws only missing solutions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measure import keep, runs
from stepmark import load_backend
from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records, RunDir
from stepmark.evaluation.stats import Bootstrap
from stepmark.executors.serial import SerialExecutor
from stepmark.run.context import RunContext
from stepmark.run.recipe import Recipe, parse
from stepmark.run.seeds import pooled
from stepmark.stages.sample import sample
from stepmark.text.grading import grade_solution
from stepmark.text.prompts import Template
from stepmark.types import Problem, Solution

OUT = Path(__file__).parent / "results" / "generation.json"
BASE = "generator"
DECODINGS = ("greedy", "sampled")
ALL = Limits(truncated=1.0, ungradable=1.0)  # no limit: a model that forgot how to generate is a result, not an error


@dataclass(frozen=True)
class Draws:
    """The solutions to draw in each run."""

    problems: int  # for each part
    n: int  # sampled solutions for each problem
    parts: tuple[str, ...]
    names: tuple[str, ...]  # of verifiers; empty: all that learned to generate


def models(recipe: Recipe, path: Path, names: Sequence[str]) -> dict[str, Path]:
    """name -> checkpoint of the generator and of the named verifiers (no names: all that learned to generate)."""
    chosen = [n for n, v in recipe.verifiers.items() if (n in names if names else v.options.get("generation"))]
    if unknown := sorted(set(names) - set(chosen)):
        raise SystemExit(f"{path}: no verifier {', '.join(unknown)}. There are: {', '.join(recipe.verifiers)}.")
    checkpoints = {
        BASE: Path(RunContext(recipe, RunDir(path)).model_path(BASE)),
        **{n: path / "verifiers" / n for n in chosen},
    }
    if missing := [n for n, place in checkpoints.items() if not (place / "config.json").is_file()]:
        raise SystemExit(f"{path}: {', '.join(missing)} not trained yet. Finish the run first.")
    return checkpoints


def control_of(recipe: Recipe) -> str:
    """The verifier that learned generation alone; the generator where there is none."""
    return next((n for n, v in recipe.verifiers.items() if v.options.get("examples") == 0), BASE)


def draw(run: Path, draws: Draws) -> dict[str, dict[str, dict[str, list[float]]]]:
    """part -> decoding -> model -> share of right solutions for each problem. Draws the missing solutions."""
    recipe = parse(json.loads((run / "config.json").read_text()), str(run / "config.json"))
    run_context = RunContext(recipe, RunDir(run))
    assert run_context.task is not None
    context = Template(recipe.prompt)
    shares_by_part: dict[str, dict[str, dict[str, list[float]]]] = {}
    for part in draws.parts:
        split = recipe.sample.source(part).split
        assert split is not None
        problems = run_context.task.load(split, draws.problems).problems
        shares_by_part[part] = {decoding: {} for decoding in DECODINGS}
        for name, place in models(recipe, run, draws.names).items():
            backend = load_backend("local", path=str(place))
            greedy, sampled = (DECODINGS[0], 1, 0.0), (DECODINGS[1], draws.n, recipe.sample.temperature)
            for decoding, n, temperature in (greedy, sampled):
                records = Records(run / "generation" / part / f"{name}-{decoding}.jsonl", Solution)
                sample(
                    problems,
                    backend,
                    records,
                    n=n,
                    context=context,
                    params=replace(recipe.params, temperature=temperature),
                    steps=run_context.steps,
                    executor=SerialExecutor(),
                    limits=ALL,
                )
                right = shares(problems, records, run_context, n)
                shares_by_part[part][decoding][name] = right
                print(f"{run.name} {part} {name} {decoding}: {100 * sum(right) / len(right):.1f}", flush=True)
    return shares_by_part


def shares(problems: Sequence[Problem], solutions: Records[Solution], run_context: RunContext, n: int) -> list[float]:
    """The share of right solutions among the first n of each problem."""
    right = dict.fromkeys((p.id for p in problems), 0)
    by_id = {p.id: p for p in problems}
    for s in solutions:
        if s.problem_id in by_id and s.sample < n:
            right[s.problem_id] += grade_solution(s, by_id[s.problem_id], run_context.grader).correct
    return [count / n for count in right.values()]


def summary(by_seed: Sequence[dict[str, dict[str, dict[str, list[float]]]]], control: str) -> dict[str, Any]:
    """part -> decoding -> pass@1 of each model, and its differences to the generator and to the control, over seeds."""
    import numpy as np

    plain: dict[str, Any] = {}
    for part, decodings in by_seed[0].items():
        plain[part] = {}
        for decoding, names in decodings.items():
            pairs = [
                (a, b) for b in dict.fromkeys((BASE, control)) for a in names if a != b and (b, a) != (control, BASE)
            ]
            seeds = []
            for seed in by_seed:
                values = {name: np.array(seed[part][decoding][name]) for name in names}
                columns = [*values.values(), *(values[a] - values[b] for a, b in pairs)]
                seeds.append(Bootstrap(len(columns[0])).mean(np.stack(columns, axis=1)))
            figures = [pooled([asdict(x) for x in column], -1.0) for column in zip(*seeds, strict=True)]
            labels = [*names, *(f"{a} - {b}" for a, b in pairs)]
            plain[part][decoding] = dict(zip(labels, figures, strict=True))
    return plain


def table(figures: dict[str, Any]) -> Iterator[str]:
    """The lines of the figures in percent, for a terminal."""
    for part, decodings in figures.items():
        for decoding, rows in decodings.items():
            yield f"{part}, {decoding}:"
            for name, x in rows.items():
                seeds = " ".join(f"{100 * value:5.1f}" for value in x["per_seed"])
                ends = f"({100 * x['low']:.1f} to {100 * x['high']:.1f})"
                yield f"  {name:42} {100 * x['mean']:6.1f}  {ends:18} {seeds}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs, with seeds or without, of one recipe")
    parser.add_argument("--problems", type=int, default=300, help="held-out problems of each part")
    parser.add_argument("--n", type=int, default=8, help="sampled solutions of each problem")
    parser.add_argument("--parts", nargs="+", default=["test", "out_of_distribution"])
    parser.add_argument("--verifiers", nargs="*", default=[], help="names; by default all with generation above 0")
    parser.add_argument("--control", help="the verifier to compare with; by default the first with examples: 0")
    parser.add_argument("--workers", type=int, default=2, help="seeds at a time")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    places = runs(args.runs)
    recipes = [parse(json.loads((p / "config.json").read_text()), str(p)) for p in places]
    parts = tuple(part for part in args.parts if part in recipes[0].sample.tests)
    control = args.control or control_of(recipes[0])
    names = tuple(dict.fromkeys([*args.verifiers, *([control] if control != BASE else [])])) if args.verifiers else ()
    for recipe, place in zip(recipes, places, strict=True):
        models(recipe, place, names)  # stops before anything is drawn if a model is missing
    work = partial(draw, draws=Draws(args.problems, args.n, parts, names))
    if args.workers == 1 or len(places) == 1:
        by_seed = [work(place) for place in places]
    else:
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            by_seed = list(pool.map(work, places))
    figures = summary(by_seed, control)
    print("\n".join(table(figures)))
    about = {"seeds": [r.seed for r in recipes], "problems": args.problems, "n": args.n, "control": control}
    keep("generation.py", about | {"pass@1": figures}, args.out)


if __name__ == "__main__":
    main()

"""What step labels cost and how good they are: Stepmark's labelling methods against transformers' `generate`.

There is one run, one generator that is its own completer, one set of its solutions to the arithmetic task, and N
rollouts a step. The contenders are:
- Stepmark's `label` stage, ledger included: all N rollouts, early stop at the first correct rollout, early stop when a
  soft label is known to 0.1, and binary search for the first error;
- `generate`, one call for each prefix with num_return_sequences=N, as public tools do;
- `generate` as a careful user would run it: prefixes sorted by length, left padded, in the batch size that was fastest
  in a short trial;
- the algorithm of distilabel's MathShepherdCompleter, restated: N completions written out in *one* generation for each
  prefix, 50 prefixes a batch. Its instructions do not fit into a small model's positions, and such a model does not
  know the format. So the instructions are left out, and only time and tokens are counted, no labels.

Each contender gets the whole machine, as its users would run it: Stepmark in as many worker processes of one thread as
there are cores, `generate` in one process with one thread or one for each core, whichever is faster. The main ratios
are those of wall seconds, so nothing else may run on the machine. The script also gives the ratios of processor seconds
with one process of one thread for each contender; these are valid on a busy machine too. Each contender is timed after
a warm-up, grading included. `generate` labels an evenly spaced part of the solutions, so the comparison uses seconds
for each labelled step.

    python bench/labelling.py                    # first trains the generator of recipes/demo.yaml: some minutes
    python bench/labelling.py --model runs/demo/generator

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import alone, keep
from stepmark.data.ledger import Ledger
from stepmark.data.store import Records, RunDir
from stepmark.evaluation import evidence
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.plugins import registry
from stepmark.protocols import Tools
from stepmark.run.recipe import load
from stepmark.stages.label import label, ledgers
from stepmark.stages.sample import solution
from stepmark.text.prompts import Template
from stepmark.types import Finish, LabelledSolution, Problem, Prompt, Rollout, SamplingParams, Solution, StepLabel

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.yaml"
Pair = tuple[Problem, Solution]

ALL, AGAIN = "stepmark, all N", "stepmark, all N, again"
EARLY, EARLY_EVERYWHERE = "stepmark, early stop", "stepmark, early stop, all cores"
HALVES = "stepmark, binary search"
SLOW, SLOW_EVERYWHERE = "generate, per prefix", "generate, per prefix, all cores"
CAREFUL, CAREFUL_EVERYWHERE = "generate, batched", "generate, batched, all cores"
PRECISE, REFERENCE = "stepmark, precision 0.1", "stepmark, 256 rollouts"
ONE_TEXT = "distilabel's, restated"


@dataclass(frozen=True)
class Work:
    """The work of every contender."""

    model: str  # checkpoint directory of the generator, which is also the completer
    pairs: tuple[Pair, ...]
    n: int  # rollouts for each step
    max_tokens: int
    seed: int

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.max_tokens, seed=self.seed)

    @property
    def steps(self) -> int:
        return sum(len(s.spans) for _, s in self.pairs)

    def tools(self) -> Tools:
        completer = registry.load("backend", "local", path=self.model, device="cpu")
        return Tools(Numeric(), Template(), self.params, completer)

    def prefixes(self) -> list[evidence.Prefix]:
        return [evidence.Prefix(p, s, i) for p, s in self.pairs for i in range(len(s.spans)) if not evidence.ends(s, i)]


@dataclass(frozen=True)
class Result:
    """The measurements and labels of one contender."""

    steps: int  # of the solutions, labelled or not
    rollouts: int
    tokens: int  # generated
    wall: float  # seconds
    cpu: float  # seconds of processor time
    labels: dict[str, StepLabel]  # "<solution>@<step>" -> label; empty if there are none
    note: str = ""


def ours(
    work: Work, labeler: str, options: dict[str, object], rollouts: Path | None = None, ready: Any = None
) -> Result:
    """Stepmark's label stage in one process. `rollouts`: the ledger's directory. `ready`: a barrier to wait at before
    the measurement."""
    tools = work.tools()
    assert tools.completer is not None
    first = work.pairs[0]
    list(tools.completer.sample([Prompt("warm", tools.context(first[0]), n=8)], tools.params))
    with tempfile.TemporaryDirectory() as place:
        out = Records(Path(place) / "labels.jsonl", LabelledSolution)
        books = ledgers(rollouts or Path(place) / "rollouts", tools)
        if ready is not None:
            ready.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        with out:
            label(
                work.pairs,
                registry.load("labeler", labeler, **options),
                tools,
                out,
                ledgers=books,
                executor=SerialExecutor(),
            )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        spent = books["completer"].spent
        labels = {f"{x.key}@{i}": step_label for x in out for i, step_label in enumerate(x.labels)}
    return Result(work.steps, spent.rollouts, spent.tokens, wall, cpu, labels)


def ours_everywhere(work: Work, labeler: str, options: dict[str, object]) -> Result:
    """Stepmark's label stage in one process for each core, all with one ledger."""
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(workers), context.Queue()
    with tempfile.TemporaryDirectory() as place:
        ledger = Path(place) / "rollouts"
        processes = [
            context.Process(
                target=_part,
                args=(replace(work, pairs=work.pairs[i::workers]), labeler, options, ledger, ready, results),
            )
            for i in range(workers)
        ]
        for process in processes:
            process.start()
        parts: list[Result] = [results.get() for _ in processes]
        for process in processes:
            process.join()
        spent = Ledger(ledger / "labels.jsonl")
        spent.open(lambda _: False)
        total = spent.spent
    labels = {name: label for part in parts for name, label in part.labels.items()}
    wall, cpu = max(p.wall for p in parts), sum(p.cpu for p in parts)
    return Result(work.steps, total.rollouts, total.tokens, wall, cpu, labels, f"{workers} processes")


def _part(work: Work, labeler: str, options: dict[str, object], ledger: Path, ready: Any, results: Any) -> None:
    results.put(ours(work, labeler, options, ledger, ready))


def per_prefix(work: Work, threads: int) -> Result:
    """`generate`, one call for each prefix."""
    return _generate(_Generate(work, threads), 1, f"one call for each prefix, {threads} threads")


def batched(work: Work, threads: int) -> Result:
    """`generate`, in the fastest of several batch sizes."""
    run = _Generate(work, threads)
    prefixes = work.prefixes()
    trial = prefixes[:: max(1, len(prefixes) // 64)][:64]
    run(trial[:4], 4)
    speeds = {}
    for batch in (4, 8, 16, 32, 64):
        began = time.perf_counter()
        rollouts = run(trial, batch)
        speeds[batch] = sum(r.tokens for r in rollouts) / (time.perf_counter() - began)
    best = max(speeds, key=lambda b: speeds[b])
    shown = ", ".join(f"{b} {rate:,.0f}" for b, rate in speeds.items())
    return _generate(run, best, f"{best} prefixes a batch, {threads} threads; tokens/s tried: {shown}")


def one_text(work: Work, tokens_each: float) -> Result:
    """distilabel's algorithm: one text for each prefix, with the length of N completions."""
    run = _Generate(work, os.cpu_count() or 1)
    prefixes = work.prefixes()
    length = round(work.n * tokens_each)
    run(prefixes[:2], 2)
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(r.tokens for r in run(prefixes, 50, n=1, exactly=length))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Result(work.steps, len(prefixes), tokens, wall, cpu, {}, f"{length} tokens in one text; no labels")


class _Generate:
    """transformers' `generate` on step prefixes."""

    def __init__(self, work: Work, threads: int) -> None:
        import torch

        from stepmark.models.checkpoints import load_model, load_tokenizer

        torch.set_num_threads(threads)
        self.work = work
        self.model = load_model(work.model, dtype="float32", device="cpu", attention=None)
        self.tokenizer = load_tokenizer(work.model)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(self, prefixes: Sequence[evidence.Prefix], batch: int, n: int = 0, exactly: int = 0) -> list[Rollout]:
        tokenizer, context, rollouts = self.tokenizer, Template(), []
        texts = [(p.name, context(p.problem) + p.text) for p in prefixes]
        by_length = sorted(texts, key=lambda x: len(tokenizer(x[1])["input_ids"])) if batch > 1 else texts
        n = n or self.work.n
        for start in range(0, len(by_length), batch):
            part = by_length[start : start + batch]
            inputs = tokenizer([text for _, text in part], return_tensors="pt", padding=True)
            width = inputs["input_ids"].shape[1]
            limit = {"max_new_tokens": exactly, "min_new_tokens": exactly} if exactly else {}
            room = self.model.config.max_position_embeddings - width
            out = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=n,
                pad_token_id=tokenizer.pad_token_id,
                **(limit or {"max_new_tokens": min(self.work.max_tokens, room)}),
            )
            for i, row in enumerate(out[:, width:].tolist()):
                ended = tokenizer.eos_token_id in row and not exactly
                ids = row[: row.index(tokenizer.eos_token_id)] if ended else row
                text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                finish = Finish.STOP if ended else Finish.LENGTH
                rollouts.append(Rollout(part[i // n][0], i % n, text, finish, len(ids) + ended))
        return rollouts


def _generate(run: _Generate, batch: int, note: str) -> Result:
    work = run.work
    tools, prefixes = work.tools(), work.prefixes()
    run(prefixes[:2], 2)
    wall, cpu = time.perf_counter(), time.process_time()
    rollouts = run(prefixes, batch)
    labels = {p.name: StepLabel(0, 0) for p in prefixes}
    by_name = {p.name: p for p in prefixes}
    for r in rollouts:
        labels[r.prompt_id] = evidence.add(labels[r.prompt_id], r, by_name[r.prompt_id], tools)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Result(work.steps, len(rollouts), sum(r.tokens for r in rollouts), wall, cpu, labels, note)


# ---- what the labels are worth ----


def agreement(a: dict[str, StepLabel], b: dict[str, StepLabel]) -> tuple[float, int]:
    """(share of steps with equal hard labels, number of steps), over the steps for which both methods drew rollouts."""
    both = [k for k in a.keys() & b.keys() if a[k].known and b[k].known and "outcome" not in (a[k].source, b[k].source)]
    return sum(a[k].hard == b[k].hard for k in both) / len(both), len(both)


def precision(labels: dict[str, StepLabel], reference: dict[str, StepLabel]) -> tuple[int, float, float]:
    """(number of steps, share of them whose soft labels differ by at most 0.1, root mean square of the labels' own
    error without that of the reference), over the steps for which both methods drew rollouts."""
    both = [k for k, x in reference.items() if x.known and labels[k].known and x.source == "monte_carlo"]
    gaps = [labels[k].soft - reference[k].soft for k in both]
    noise = sum(reference[k].soft * (1 - reference[k].soft) / (reference[k].gradable - 1) for k in both)
    square = max(0.0, sum(g * g for g in gaps) - noise) / len(both)
    return len(both), sum(abs(g) <= 0.1 for g in gaps) / len(both), square**0.5


def located(pairs: Sequence[Pair], labels: dict[str, StepLabel], truth: dict[str, int | None]) -> tuple[int, float]:
    """Over the solutions with a wrong answer: (number with a label 0, share of all of them whose first label 0 is at
    the first step that the oracle calls wrong)."""
    with_zero = right = wrong = 0
    for _, s in pairs:
        own = [labels[f"{s.id}@{i}"] for i in range(len(s.spans))]
        if own and own[-1].source == "outcome" and own[-1].known and not own[-1].correct:
            wrong += 1
            first = next((i for i, x in enumerate(own) if x.known and not x.hard), None)
            with_zero += first is not None
            right += first is not None and first == truth[s.id]
    return with_zero, right / max(1, wrong)


def accuracy(pairs: Sequence[Pair], labels: dict[str, StepLabel], oracle: Callable[..., Sequence[bool]]) -> float:
    """Share of the labelled steps whose hard label is the oracle's, without last steps: their label is the grade."""
    hits = total = 0
    for p, s in pairs:
        for i, right in enumerate(oracle(p, s)):
            x = labels.get(f"{s.id}@{i}")
            if x is not None and x.known and x.source != "outcome":
                hits, total = hits + (x.hard == float(right)), total + 1
    return hits / max(1, total)


# ---- one run ----


def prepare(place: Path, model: str | None, count: int, max_tokens: int, seed: int) -> tuple[str, tuple[Pair, ...]]:
    """(path of a generator, by default the demo's; its solutions to `count` problems, one each)."""
    from stepmark.run.context import RunContext
    from stepmark.run.execute import run_stage
    from stepmark.run.pipeline.models import TrainModel

    recipe = load(RECIPE, [f"seed={seed}", "workers=1"])
    with RunDir(place / "run").open(recipe.resolved()) as directory:
        context = RunContext(recipe, directory)
        if model is None:
            run_stage(context, TrainModel("generator"))
            model = context.model_path("generator")
        task = context.task
    assert task is not None
    problems = task.load("test", count).problems
    completer = registry.load("backend", "local", path=model, device="cpu")
    prompts = [Prompt(p.id, Template()(p)) for p in problems]
    by_id = {p.id: p for p in problems}
    solutions = [
        solution(r, "line") for r in completer.sample(prompts, SamplingParams(max_tokens=max_tokens, seed=seed))
    ]
    return model, tuple((by_id[s.problem_id], s) for s in sorted(solutions, key=lambda s: s.problem_id))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory; by default the demo's generator is trained")
    parser.add_argument("--count", type=int, default=500, help="solutions (500)")
    parser.add_argument("--n", type=int, default=8, help="rollouts for each step (8)")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--generate-solutions", type=int, default=100, help="solutions for generate (100)")
    parser.add_argument(
        "--precision-solutions", type=int, default=270, help="solutions on which soft labels are checked (270)"
    )
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "labelling.json"))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, pairs = alone(prepare, Path(scratch), a.model, a.count, a.max_tokens, a.seed)
        results = contend(a, model, pairs)
    show(a, pairs, results)


def contend(a: argparse.Namespace, model: str, pairs: tuple[Pair, ...]) -> dict[str, Result]:
    """The result of each contender, by name."""
    whole = Work(model, pairs, a.n, a.max_tokens, a.seed)
    part = Work(model, pairs[:: max(1, len(pairs) // a.generate_solutions)], a.n, a.max_tokens, a.seed)
    second_seed = Work(model, pairs, a.n, a.max_tokens, a.seed + 1)
    n: dict[str, object] = {"rollouts": a.n}
    cores = os.cpu_count() or 1
    results = {ALL: alone(ours, whole, "monte_carlo", n)}
    results[EARLY] = alone(ours, whole, "monte_carlo", n | {"early_stop": True})
    results[EARLY_EVERYWHERE] = ours_everywhere(whole, "monte_carlo", n | {"early_stop": True})
    results[PRECISE] = alone(ours, whole, "monte_carlo", {"precision": 0.1})
    results[HALVES] = alone(ours, whole, "first_error", n)
    results[AGAIN] = alone(ours, second_seed, "monte_carlo", n)
    results[SLOW] = alone(per_prefix, part, 1)
    results[SLOW_EVERYWHERE] = alone(per_prefix, part, cores)
    results[CAREFUL] = alone(batched, part, 1)
    results[CAREFUL_EVERYWHERE] = alone(batched, part, cores)
    reference = replace(second_seed, pairs=pairs[: a.precision_solutions])
    results[REFERENCE] = alone(ours, reference, "monte_carlo", {"rollouts": 256})
    results[ONE_TEXT] = alone(one_text, part, results[ALL].tokens / results[ALL].rollouts)
    return results


def show(a: argparse.Namespace, pairs: tuple[Pair, ...], results: dict[str, Result]) -> None:
    """Prints the tables and writes the figures."""
    recipe = load(RECIPE, [f"seed={a.seed}"])
    assert recipe.task is not None
    oracle = recipe.task.load(seed=a.seed).judge_steps
    flags = {s.id: list(oracle(p, s)) for p, s in pairs}
    truth = {id: f.index(False) if False in f else None for id, f in flags.items()}
    print(f"{len(pairs)} solutions, {sum(len(s.spans) for _, s in pairs)} steps, N = {a.n}, seed {a.seed}")
    print(f"{'':34}{'ms/step cpu':>12}{'ms/step wall':>13}{'rollouts/step':>14}{'tokens/step':>12}{'accuracy':>9}")
    for name, r in results.items():
        accuracy_cell = f"{accuracy(pairs, r.labels, oracle):9.1%}" if r.labels else " " * 9
        print(
            f"{name:34}{1000 * r.cpu / r.steps:>12.2f}{1000 * r.wall / r.steps:>13.2f}"
            f"{r.rollouts / r.steps:>14.2f}{r.tokens / r.steps:>12.1f}{accuracy_cell}  {r.note}"
        )
    early, all_n, all_n_again, per_prefix_calls, batched_calls = (
        results[k] for k in (EARLY, ALL, AGAIN, SLOW, CAREFUL)
    )
    cpu = {name: r.cpu / r.steps for name, r in results.items()}
    wall = {name: r.wall / r.steps for name, r in results.items()}
    match, steps = agreement(early.labels, per_prefix_calls.labels)
    match_batched, _ = agreement(early.labels, batched_calls.labels)
    match_own, _ = agreement(early.labels, all_n_again.labels)
    error = (match_own * (1 - match_own) / steps) ** 0.5
    wrong = [pair for pair in pairs if truth_is_wrong(all_n.labels, pair[1])]
    rollouts_per_error = {
        name: sum(drawn(results[name].labels, s) for _, s in wrong)
        / max(1, located(pairs, results[name].labels, truth)[0])
        for name in (HALVES, ALL, EARLY)
    }
    accuracies = {name: located(pairs, results[name].labels, truth)[1] for name in rollouts_per_error}
    print(f"hard labels agree with generate's on {match:.1%} of {steps} steps (batched: {match_batched:.1%}); two of ")
    print(f"Stepmark's own runs with different seeds on {match_own:.1%}, standard error {error:.1%}")
    steps_checked, within, rms = precision(results[PRECISE].labels, results[REFERENCE].labels)
    print(
        f"soft labels to 0.1: on {steps_checked} steps {within:.1%} within 0.1 of the share among 256 other rollouts,"
    )
    print(f"which err themselves; root mean square of the labels' own error {rms:.3f}")
    print(f"{len(wrong)} wrong solutions; rollouts for each located error, share located at the oracle's step:")
    for name in rollouts_per_error:
        print(f"{name:34}{rollouts_per_error[name]:>12.1f}{accuracies[name]:>13.1%}")
    result = {
        "seed": a.seed,
        "solutions": len(pairs),
        "n": a.n,
        "speedup_vs_generate_per_prefix": round(min(wall[SLOW], wall[SLOW_EVERYWHERE]) / wall[EARLY_EVERYWHERE], 1),
        "speedup_vs_generate_batched": round(min(wall[CAREFUL], wall[CAREFUL_EVERYWHERE]) / wall[EARLY_EVERYWHERE], 1),
        "speedup_vs_distilabel_restated": round(wall[ONE_TEXT] / wall[EARLY_EVERYWHERE], 1),
        "one_thread": {
            "speedup_vs_generate_per_prefix": round(cpu[SLOW] / cpu[EARLY], 1),
            "speedup_vs_generate_batched": round(cpu[CAREFUL] / cpu[EARLY], 1),
            "all_n_vs_generate_per_prefix": round(cpu[SLOW] / cpu[ALL], 1),
            "all_n_vs_generate_batched": round(cpu[CAREFUL] / cpu[ALL], 1),
        },
        "hard_label_agreement": round(match, 4),
        "hard_label_agreement_of_two_seeds": round(match_own, 4),
        "hard_label_agreement_standard_error": round(error, 4),
        "soft_labels": {"asked": 0.1, "steps": steps_checked, "within": round(within, 4), "rms_error": round(rms, 4)},
        "binary_search_rollout_ratio": round(rollouts_per_error[HALVES] / rollouts_per_error[ALL], 3),
        "binary_search_rollout_ratio_vs_early_stop": round(rollouts_per_error[HALVES] / rollouts_per_error[EARLY], 3),
        "binary_search_accuracy": round(accuracies[HALVES], 4),
        "exhaustive_accuracy": round(accuracies[ALL], 4),
        "wrong_solutions": len(wrong),
        "contenders": {
            name: {
                "steps": r.steps,
                "rollouts": r.rollouts,
                "tokens": r.tokens,
                "wall_seconds": round(r.wall, 2),
                "cpu_seconds": round(r.cpu, 2),
                "label_accuracy": round(accuracy(pairs, r.labels, oracle), 4) if r.labels else None,
                "note": r.note,
            }
            for name, r in results.items()
        },
    }
    keep("labelling.py", result, a.out)


def truth_is_wrong(labels: dict[str, StepLabel], s: Solution) -> bool:
    """Whether a solution has a wrong answer. Its last label is the grade."""
    last = labels.get(f"{s.id}@{len(s.spans) - 1}")
    return last is not None and last.source == "outcome" and last.known and not last.correct


def drawn(labels: dict[str, StepLabel], s: Solution) -> int:
    """Number of rollouts drawn for the labels of a solution."""
    step_labels = (labels[f"{s.id}@{i}"] for i in range(len(s.spans)))
    return sum(
        x.gradable + x.truncated + x.ungradable + x.failed
        for x in step_labels
        if x.source != "outcome" and not x.inferred
    )


if __name__ == "__main__":
    main()

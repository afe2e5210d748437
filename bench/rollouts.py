"""How fast rollouts are: Stepmark's engine against transformers' `generate`, and vLLM where it is installed.

There is one run, one model and one kind of work: N rollouts from every step prefix of a set of solutions. Labelling by
rollouts does this work. A token counts if it belongs to a rollout, up to and including its end token. Other tokens that
an engine computes do not count. `generate` runs as a careful user would run it: batched, sorted by length, left padded,
num_return_sequences=N, no top-k, and the batch size and cache that were fastest in a short trial. Each contender is
timed in a process of its own with one thread, after a warm-up, in wall seconds and in processor seconds. Ratios use
processor seconds, because the machine may be shared. `generate` is timed on an evenly spaced subset of the solutions,
because only rates are compared.

    python bench/rollouts.py                                   # first trains a 3.5M-parameter Llama for a minute
    python bench/rollouts.py --model DIR --solutions FILE.jsonl --dtype bfloat16

FILE.jsonl has an object per line with `context` and `text` (one step per line of text). The last line printed is
one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import alone, keep
from stepmark.backends.local import LocalBackend
from stepmark.models.throughput import peak, work
from stepmark.text.steps import split
from stepmark.types import Prompt, SamplingParams


@dataclass(frozen=True)
class Work:
    """The work of every contender."""

    model: str  # checkpoint directory
    prompts: tuple[Prompt, ...]  # one per step prefix
    params: SamplingParams
    dtype: str
    device: str


@dataclass(frozen=True)
class Timing:
    """The measurements of one contender."""

    rollouts: int
    tokens: int  # generated, end tokens included
    wall: float  # seconds
    cpu: float  # seconds of processor time
    note: str = ""


def prefixes(texts: Sequence[tuple[str, str]], n: int) -> tuple[Prompt, ...]:
    """One prompt for each step of each (context, solution), except the last step, after which there is no rollout."""
    return tuple(
        Prompt(f"{i}/{s}", context, text[:end], n=n)
        for i, (context, text) in enumerate(texts)
        for s, (_, end) in enumerate(split(text, "line")[:-1])
    )


def engine(work: Work, batch: int) -> Timing:
    """Stepmark, one process."""
    backend = LocalBackend(work.model, dtype=work.dtype, device=work.device, batch=batch)
    list(backend.sample(work.prompts[:4], work.params))
    return _timed(
        lambda: [r.tokens for r in backend.sample(work.prompts, work.params)], f"batch {backend._load()[0].batch}"
    )


def engine_twice(work: Work, batch: int) -> Timing:
    """Stepmark, two processes, half of the solutions each."""
    solutions = sorted({p.id.split("/")[0] for p in work.prompts}, key=int)
    halves = [set(solutions[i::2]) for i in range(2)]
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    workers = []
    for half in halves:
        part = Work(
            work.model,
            tuple(p for p in work.prompts if p.id.split("/")[0] in half),
            work.params,
            work.dtype,
            work.device,
        )
        workers.append(context.Process(target=_half, args=(part, batch, ready, results)))
    for w in workers:
        w.start()
    parts: list[Timing] = [results.get() for _ in workers]
    for w in workers:
        w.join()
    return Timing(
        sum(p.rollouts for p in parts),
        sum(p.tokens for p in parts),
        max(p.wall for p in parts),
        sum(p.cpu for p in parts),
        parts[0].note,
    )


def _half(work: Work, batch: int, ready: Any, results: Any) -> None:
    backend = LocalBackend(work.model, dtype=work.dtype, device=work.device, batch=batch)
    list(backend.sample(work.prompts[:4], work.params))
    ready.wait()
    results.put(_timed(lambda: [r.tokens for r in backend.sample(work.prompts, work.params)], "half of the work each"))


def generate(work: Work) -> Timing:
    """transformers' `generate`, one process."""
    import torch

    from stepmark.models.checkpoints import load_model, load_tokenizer

    model = load_model(work.model, dtype=work.dtype, device=work.device, attention=None)
    tokenizer = load_tokenizer(work.model)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id

    def run(prompts: Sequence[Prompt], batch: int, cache: str) -> list[int]:
        lengths: list[int] = []
        by_length = sorted(prompts, key=lambda p: len(tokenizer(p.text)["input_ids"]))
        for start in range(0, len(by_length), batch):
            part = by_length[start : start + batch]
            inputs = tokenizer([p.text for p in part], return_tensors="pt", padding=True).to(work.device)
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                temperature=work.params.temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=part[0].n,
                max_new_tokens=work.params.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                cache_implementation=cache,
            )
            new = out[:, inputs["input_ids"].shape[1] :]
            ended = new == end
            first = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
            lengths += first.tolist()
        return lengths

    # Batches of 1 to 32 prompts, which are 8 to 256 rows at N = 8. Larger batches were even slower.
    trial = work.prompts[:: max(1, len(work.prompts) // 32)][:32]
    run(trial[:4], 4, "dynamic")
    speeds: dict[tuple[int, str], float] = {}
    for batch, cache in [*((size, "dynamic") for size in (1, 2, 4, 8, 16, 32)), (2, "static")]:
        timing = _timed(lambda batch=batch, cache=cache: run(trial, batch, cache))  # type: ignore[misc]
        speeds[batch, cache] = timing.tokens / timing.cpu
    batch, cache = max(speeds, key=lambda k: speeds[k])
    shown = ", ".join(f"{b}/{c} {rate:,.0f}" for (b, c), rate in speeds.items())
    return _timed(lambda: run(work.prompts, batch, cache), f"{batch} prompts a batch, {cache} cache; tried {shown}")


def vllm(work: Work) -> Timing:
    """vLLM, in this process, with its prefix cache."""
    from vllm import LLM  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from vllm import SamplingParams as Sampling

    llm = LLM(work.model, dtype=work.dtype, enforce_eager=True, enable_prefix_caching=True, disable_log_stats=True)
    sampling = Sampling(n=work.prompts[0].n, temperature=work.params.temperature, max_tokens=work.params.max_tokens)
    llm.generate([p.text for p in work.prompts[:4]], sampling, use_tqdm=False)

    def run() -> list[int]:
        outs = llm.generate([p.text for p in work.prompts], sampling, use_tqdm=False)
        return [len(c.token_ids) for o in outs for c in o.outputs]

    return _timed(run)


def _timed(run: Callable[[], list[int]], note: str = "") -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    lengths = run()
    return Timing(len(lengths), sum(lengths), time.perf_counter() - wall, time.process_time() - cpu, note)


def flops_per_token(model: str, mean_length: float) -> float:
    """FLOP that every generated token needs: two for each weight it is multiplied with, and attention over its past."""
    from stepmark.models.checkpoints import load_model

    net = load_model(model, dtype="float32", device="cpu")
    met, config = work(net), net.config
    weights = met.body + met.head
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return 2.0 * weights + 4.0 * config.num_hidden_layers * heads * mean_length


def prepare(
    place: Path, solutions: int, kv_heads: int, demonstrations: int, seed: int
) -> tuple[str, list[tuple[str, str]]]:
    """(path of a model that ends its solutions, (context, text) of its solutions). The model is a Llama of about 3.5M
    parameters, trained on the arithmetic task until it writes solutions and ends them."""
    from stepmark.models.checkpoints import Shape, create
    from stepmark.stages.train import Generator, TrainSettings, train
    from stepmark.tasks.arithmetic import Arithmetic
    from stepmark.text.prompts import Template

    context = Template("{question}\n")
    task = Arithmetic(steps_min=3, steps_max=8, noise=0.5, seed=seed)
    train_problems = task.load("train", demonstrations).problems
    shape = Shape(hidden=256, layers=4, heads=4, kv_heads=kv_heads, vocab=2048)
    base = create(place / "base", [context(p) + p.demonstration for p in train_problems], shape, seed=seed)
    settings = TrainSettings(batch_tokens=2048, seed=seed, tensorboard=False, device="cpu")
    trained = train(Generator(str(base)), train_problems, place / "generator", settings)
    print(f"trained {trained.tokens:,} tokens in {trained.seconds:.0f} s, loss {trained.loss:.2f}", file=sys.stderr)
    problems = task.load("test", solutions).problems
    backend = LocalBackend(trained.path, device="cpu")
    prompts = [Prompt(p.id, context(p)) for p in problems]
    texts = {r.prompt_id: r.text for r in backend.sample(prompts, SamplingParams(seed=seed))}
    return trained.path, [(p.context, texts[p.id]) for p in prompts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory; by default a model is trained")
    parser.add_argument("--solutions", help="JSONL with `context` and `text`; needed with --model")
    parser.add_argument("--count", type=int, default=500, help="solutions (500)")
    parser.add_argument("--n", type=int, default=8, help="rollouts per step prefix (8)")
    parser.add_argument("--batch", type=int, default=0, help="rows of the engine (0: its own choice)")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kv-heads", type=int, default=4, help="key-value heads of the model trained here, 4 or 1 (4)")
    parser.add_argument("--train-problems", type=int, default=2700, help="demonstrations for the model trained here")
    parser.add_argument("--generate-solutions", type=int, default=60, help="solutions for generate (60)")
    parser.add_argument(
        "--keep", help="directory in which the trained model and its solutions are stored and looked up"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rollouts.json"))
    a = parser.parse_args()
    if a.model and not a.solutions:
        parser.error("--model needs --solutions, because the prefixes must be texts that the model knows. Give both.")
    with tempfile.TemporaryDirectory() as scratch:
        model, texts = _inputs(a, Path(a.keep or scratch))
        run(a, model, texts)


def _inputs(a: argparse.Namespace, place: Path) -> tuple[str, list[tuple[str, str]]]:
    kept = Path(a.solutions) if a.solutions else place / "solutions.jsonl"
    if not kept.exists() and not a.solutions:
        _, texts = alone(prepare, place, a.count, a.kv_heads, a.train_problems, a.seed)
        kept.write_text("".join(json.dumps({"context": c, "text": t}) + "\n" for c, t in texts))
    rows = [json.loads(line) for line in kept.read_text().splitlines()[: a.count]]
    return a.model or str(place / "generator"), [(r["context"], r["text"]) for r in rows]


def run(a: argparse.Namespace, model: str, texts: list[tuple[str, str]]) -> None:
    params = SamplingParams(max_tokens=a.max_tokens, seed=a.seed)
    whole = Work(model, prefixes(texts, a.n), params, a.dtype, a.device)
    few = texts[:: max(1, len(texts) // a.generate_solutions)][: a.generate_solutions]
    part = Work(model, prefixes(few, a.n), params, a.dtype, a.device)
    print(
        f"{len(texts)} solutions, {len(whole.prompts)} step prefixes, N = {a.n}; generate: {len(few)} of the solutions"
    )
    # Processor time, as for every contender: the machine may be shared.
    clock = time.process_time if a.device == "cpu" else time.perf_counter
    top = alone(peak, a.dtype, a.device, clock)
    timings: dict[str, Timing] = {}
    timings["generate"] = alone(generate, part)
    timings["stepmark"] = alone(engine, whole, a.batch)
    if a.device == "cpu":
        timings["stepmark, 2 processes"] = engine_twice(whole, a.batch)
    try:
        import vllm as _  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401

        timings["vllm"] = alone(vllm, part)
    except ImportError:
        pass
    top = max(top, alone(peak, a.dtype, a.device, clock))

    own = timings["stepmark"]
    from stepmark.models.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(model)
    before = sum(len(tokenizer(p.text)["input_ids"]) for p in whole.prompts) / len(whole.prompts)
    length = own.tokens / own.rollouts
    per_token = flops_per_token(model, before + length / 2)
    rates = {k: t.tokens / t.cpu if a.device == "cpu" else t.tokens / t.wall for k, t in timings.items()}
    print(f"peak {top / 1e9:.0f} GFLOP/s ({a.dtype}), {per_token / 1e6:.1f} MFLOP per token, ", end="")
    print(f"prefixes of {before:.0f} tokens, rollouts of {length:.0f} tokens")
    print(f"{'':24}{'tok/s wall':>12}{'tok/s cpu':>12}{'x generate':>12}{'of peak':>9}{'rollouts':>10}{'tok/roll':>9}")
    for name, t in timings.items():
        print(
            f"{name:24}{t.tokens / t.wall:>12,.0f}{t.tokens / t.cpu:>12,.0f}{rates[name] / rates['generate']:>12.2f}"
            f"{rates[name] * per_token / top:>9.0%}{t.rollouts:>10,}{t.tokens / t.rollouts:>9.1f}  {t.note}"
        )
    result = {
        "seed": a.seed,
        "dtype": a.dtype,
        "device": a.device,
        "solutions": len(texts),
        "prefixes": len(whole.prompts),
        "n": a.n,
        "generate_solutions": len(few),
        "prefix_tokens": round(before, 1),
        "peak_gflops": round(top / 1e9, 1),
        "mflop_per_token": round(per_token / 1e6, 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "contenders": {
            name: {
                "tokens": t.tokens,
                "rollouts": t.rollouts,
                "wall_seconds": round(t.wall, 2),
                "cpu_seconds": round(t.cpu, 2),
                "tokens_per_wall_second": round(t.tokens / t.wall),
                "tokens_per_cpu_second": round(t.tokens / t.cpu),
                "ratio_to_generate": round(rates[name] / rates["generate"], 2),
                "share_of_peak": round(rates[name] * per_token / top, 3),
                "note": t.note,
            }
            for name, t in timings.items()
        },
    }
    keep("rollouts.py", result, a.out)


if __name__ == "__main__":
    main()

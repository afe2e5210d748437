"""How fast rollouts are: Stepmark's engine against transformers' `generate`, and vLLM.

There is one run, one model and one kind of work: N rollouts from every step prefix of a set of solutions. Labelling by
rollouts does this work. A token counts if it belongs to a rollout, up to and including its end token. Other tokens that
an engine computes do not count. Each contender is timed in a process of its own with one thread, after a warm-up, in
wall seconds and in processor seconds. Ratios use processor seconds, because the machine may be shared.

- `generate` runs as a careful user would run it: batched, sorted by length, left padded, num_return_sequences=N, no
  top-k, and the batch size and cache that were fastest in a short trial. It is timed on an evenly spaced subset of the
  solutions, in batches in random order until its seconds are over, because only rates are compared.
- vLLM runs in an environment of its own (bench/vllm_peer.py), on the same prompts as Stepmark, given as token ids. Its
  engine has one thread in one process. Processor seconds are those of its process, all threads, and its children.

    python bench/rollouts.py                                   # first trains a 3.5M-parameter Llama for a minute
    python bench/rollouts.py --model DIR --data data/gsm8k --few-shot 4 --count 8 --max-tokens 48
    python bench/rollouts.py --model DIR --solutions FILE.jsonl --dtype bfloat16

With --data the model first writes solutions of GSM8K problems itself; --keep stores them. Behind a few-shot prompt the
script also counts how often that prompt is read while 100 other questions are sampled. FILE.jsonl has an object per
line with `context` and `text` (one step per line of text). The last line printed is one line of JSON; it is also
written to --out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from measure import alone, flops_per_token, keep, peak
from rollout_texts import Asked, Texts, file_name, prompt_reading, store, stored, train_and_write, write
from stepmark.backends.local import LocalBackend
from stepmark.text.steps import split
from stepmark.types import Prompt, SamplingParams

CONTENDERS = GENERATE, OURS, TWICE, VLLM = "generate", "stepmark", "stepmark, 2 processes", "vllm"
PEER = Path(__file__).with_name("vllm_peer.py")
QUESTIONS = 100  # sampled behind one few-shot prompt


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


def prefixes(texts: Texts, n: int) -> tuple[Prompt, ...]:
    """One prompt for each step of each (context, solution), except the last step, after which there is no rollout."""
    return tuple(
        Prompt(f"{i}/{s}", context, text[:end], n=n)
        for i, (context, text) in enumerate(texts)
        for s, (_, end) in enumerate(split(text, "line")[:-1])
    )


def engine(work: Work, batch: int, ready: Any = None) -> Timing:
    """Stepmark, one process. `ready`: a barrier to wait at before the measurement."""
    backend = LocalBackend(work.model, dtype=work.dtype, device=work.device, batch=batch)
    list(backend.sample(work.prompts[:4], work.params))
    loaded = backend._load()[0]
    note = f"batch {loaded.batch}" + (f"; no shared prefixes: {loaded.fault}" if loaded.fault else "")
    if ready is not None:
        ready.wait()
    return _timed(lambda: [r.tokens for r in backend.sample(work.prompts, work.params)], note)


def engine_twice(work: Work, batch: int) -> Timing:
    """Stepmark, two processes, half of the solutions each."""
    solutions = sorted({p.id.split("/")[0] for p in work.prompts}, key=int)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    workers = []
    for half in (set(solutions[i::2]) for i in range(2)):
        part = replace(work, prompts=tuple(p for p in work.prompts if p.id.split("/")[0] in half))
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
        f"half of the work each, {parts[0].note}",
    )


def _half(work: Work, batch: int, ready: Any, results: Any) -> None:
    results.put(engine(work, batch, ready))


def generate(work: Work, seconds: float) -> Timing:
    """transformers' `generate`, one process. The trial and the measurement each end after about so many seconds."""
    import torch

    from stepmark.models.checkpoints import load_model, load_tokenizer

    model = load_model(work.model, dtype=work.dtype, device=work.device, attention=None)
    tokenizer = load_tokenizer(work.model)
    tokenizer.padding_side = "left"
    configured = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    # What fills up a row that has ended should not look like an end, or it would be counted.
    pad = next((i for i in (tokenizer.pad_token_id, *tokenizer.all_special_ids) if i not in {*ends, None}), min(ends))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    stops = {"stop_strings": list(work.params.stop), "tokenizer": tokenizer} if work.params.stop else {}
    over = torch.tensor(sorted(ends | {pad}), device=work.device)

    def run(prompts: Sequence[Prompt], batch: int, cache: str, limit: float) -> list[int]:
        by_length = sorted(prompts, key=lambda p: len(tokenizer(p.text)["input_ids"]))
        parts = [by_length[start : start + batch] for start in range(0, len(by_length), batch)]
        random.Random(work.params.seed).shuffle(parts)
        lengths: list[int] = []
        until = time.perf_counter() + limit
        for part in parts:
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
                pad_token_id=pad,
                cache_implementation=cache,
                **stops,
            )
            new = out[:, inputs["input_ids"].shape[1] :]
            ended = torch.isin(new, over)
            first = ended.int().argmax(1)
            counted = first + (new.gather(1, first[:, None])[:, 0] != pad).int() if pad not in ends else first + 1
            lengths += torch.where(ended.any(1), counted, new.shape[1]).tolist()
            if time.perf_counter() > until:
                break
        return lengths

    # Batches of 1 to 32 prompts, which are 8 to 256 rows at N = 8. Larger batches were even slower.
    trial = work.prompts[:: max(1, len(work.prompts) // 32)][:32]
    settings = [*((size, "dynamic") for size in (1, 2, 4, 8, 16, 32)), (2, "static")]
    each = seconds / len(settings)
    run(trial[:1], 1, "dynamic", 0.0)
    speeds: dict[tuple[int, str], float] = {}
    a_prompt, until = 0.0, time.perf_counter() + seconds  # a_prompt: seconds for each prompt, as last measured
    for batch, cache in settings:
        if min(batch, len(trial)) * a_prompt > max(each, until - time.perf_counter()):
            continue  # a single batch would take longer than all that is left
        timing = _timed(partial(run, trial, batch, cache, each))
        speeds[batch, cache] = timing.tokens / timing.cpu
        a_prompt = timing.wall * trial[0].n / timing.rollouts
    batch, cache = max(speeds, key=lambda k: speeds[k])
    shown = ", ".join(f"{b}/{c} {rate:,.0f}" for (b, c), rate in speeds.items())
    note = f"{batch} prompts a batch, {cache} cache; tried {shown}"
    return _timed(partial(run, work.prompts, batch, cache, seconds), note)


def vllm(python: str, work: Work) -> Timing:
    """vLLM in its own environment, with its prefix cache. Exits with its last output if it fails."""
    from stepmark.models.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(work.model)
    params = work.params
    job = {
        "model": work.model,
        "dtype": work.dtype,
        "prompts": [tokenizer(p.text)["input_ids"] for p in work.prompts],
        "n": work.prompts[0].n,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_tokens,
        "stop": list(params.stop),
    }
    with tempfile.TemporaryDirectory() as place:
        job_file, result, log = (Path(place) / name for name in ("job.json", "result.json", "log"))
        job_file.write_text(json.dumps(job))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        with log.open("w") as output:
            done = subprocess.run([python, PEER, job_file, result], stdout=output, stderr=output, env=environment)
        if done.returncode:
            raise SystemExit("vLLM failed:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        return Timing(**json.loads(result.read_text()))


def _timed(run: Callable[[], list[int]], note: str = "") -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    lengths = run()
    return Timing(len(lengths), sum(lengths), time.perf_counter() - wall, time.process_time() - cpu, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory; by default a model is trained")
    parser.add_argument("--solutions", help="JSONL with `context` and `text`")
    parser.add_argument("--data", help="directory with GSM8K's files: the model writes solutions of its problems")
    parser.add_argument("--few-shot", type=int, default=0, help="worked examples before each question of --data (0)")
    parser.add_argument("--prompt", default="Question: {question}\nAnswer:\n", help="how a question of --data is put")
    parser.add_argument("--count", type=int, default=500, help="solutions (500)")
    parser.add_argument("--n", type=int, default=8, help="rollouts per step prefix (8)")
    parser.add_argument("--batch", type=int, default=0, help="rows of the engine (0: its own choice)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a rollout; of a solution at least 200 (256)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--stop", action="append", help="text that ends a rollout (with --data: the next question)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kv-heads", type=int, default=4, help="key-value heads of the model trained here, 4 or 1 (4)")
    parser.add_argument("--train-problems", type=int, default=2700, help="demonstrations for the model trained here")
    parser.add_argument("--generate-solutions", type=int, default=60, help="solutions for generate (60)")
    parser.add_argument("--generate-seconds", type=float, default=120, help="for its trial, and for its run (120)")
    parser.add_argument("--contenders", default=";".join(CONTENDERS), help=f"some of: {'; '.join(CONTENDERS)}")
    parser.add_argument("--vllm", default=_vllm_python(), metavar="PYTHON", help="interpreter that has vLLM")
    parser.add_argument("--keep", help="directory in which what is trained or written here is stored and looked up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rollouts.json"))
    a = parser.parse_args()
    a.contenders = [name.strip() for name in a.contenders.split(";") if name.strip()]
    if unknown := set(a.contenders) - set(CONTENDERS):
        parser.error(f"no contender {', '.join(unknown)}. There are: {'; '.join(CONTENDERS)}")
    if a.model and not (a.solutions or a.data):
        parser.error("--model needs --solutions or --data: the prefixes must be texts that the model knows.")
    if (a.data or a.few_shot) and not (a.model and a.data):
        parser.error("--few-shot needs --data, and --data needs --model.")
    with tempfile.TemporaryDirectory() as scratch:
        run(a, *inputs(a, Path(a.keep or scratch)))


def _vllm_python() -> str:
    """The interpreter of the environment that `make test` uses; "" if there is none."""
    place = Path(os.environ.get("STEPMARK_VLLM") or Path(__file__).parent.parent / ".venv-vllm")
    python = place / "bin" / "python"
    return str(python) if python.exists() else ""


def inputs(a: argparse.Namespace, place: Path) -> tuple[str, Texts, SamplingParams]:
    """The model, the solutions, and how they are continued."""
    params = SamplingParams(a.max_tokens, a.temperature, stop=tuple(a.stop or ()), seed=a.seed)
    if a.data:
        params = replace(params, stop=(*params.stop, *_asked(a).context().stop))
    if a.solutions:
        return a.model or str(place / "generator"), stored(Path(a.solutions))[: a.count], params
    writing = replace(params, max_tokens=max(200, a.max_tokens))
    file = place / (file_name(_asked(a), writing) if a.data else "solutions.jsonl")
    if not file.exists() or len(stored(file)) < a.count:
        if a.data:
            texts = alone(write, _asked(a), a.count, writing)
        else:
            _, texts = alone(train_and_write, place, a.count, a.kv_heads, a.train_problems, a.seed)
        store(file, texts)
    return a.model or str(place / "generator"), stored(file)[: a.count], params


def _asked(a: argparse.Namespace) -> Asked:
    return Asked(a.model, a.data, a.few_shot, a.prompt, a.dtype, a.device)


def run(a: argparse.Namespace, model: str, texts: Texts, params: SamplingParams) -> None:
    whole = Work(model, prefixes(texts, a.n), params, a.dtype, a.device)
    if not whole.prompts:
        raise SystemExit(
            f"none of the {len(texts)} solutions has two lines, so there is no step prefix. Raise --count."
        )
    few = texts[:: max(1, len(texts) // a.generate_solutions)][: a.generate_solutions]
    part = replace(whole, prompts=prefixes(few, a.n))
    print(
        f"{len(texts)} solutions, {len(whole.prompts)} step prefixes, N = {a.n}; generate: {len(few)} of the solutions",
        flush=True,
    )
    top = alone(peak, a.dtype, a.device)
    possible: dict[str, Callable[[], Timing]] = {
        GENERATE: partial(alone, generate, part, a.generate_seconds),
        OURS: partial(alone, engine, whole, a.batch),
    }
    if a.device == "cpu":
        possible[TWICE] = partial(engine_twice, whole, a.batch)
    if a.vllm:
        possible[VLLM] = partial(vllm, a.vllm, whole)
    elif VLLM in a.contenders:
        print("without vllm: name an interpreter that has it, with --vllm", file=sys.stderr)
    reading = alone(prompt_reading, _asked(a), QUESTIONS, a.n, a.seed) if a.few_shot else None
    timings: dict[str, Timing] = {}
    for name in (x for x in possible if x in a.contenders):
        timings[name] = possible[name]()
        print(f"{name}: {timings[name].tokens:,} tokens in {timings[name].wall:.0f} s", file=sys.stderr, flush=True)
    top = max(top, alone(peak, a.dtype, a.device))
    show(a, whole, timings, top, {"solutions": len(texts), "generate_solutions": len(few), "prompt_reading": reading})


def show(a: argparse.Namespace, work: Work, timings: dict[str, Timing], top: float, counts: dict[str, Any]) -> None:
    """Prints the table and writes the figures."""
    from stepmark.models.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(work.model)
    before = sum(len(tokenizer(p.text)["input_ids"]) for p in work.prompts) / len(work.prompts)
    length = sum(t.tokens for t in timings.values()) / sum(t.rollouts for t in timings.values())
    per_token = flops_per_token(work.model, before + length / 2)
    rates = {k: t.tokens / t.cpu if a.device == "cpu" else t.tokens / t.wall for k, t in timings.items()}
    peers = [name for name in (GENERATE, VLLM) if name in timings]
    print(f"peak {top / 1e9:.0f} GFLOP/s ({a.dtype}), {per_token / 1e6:.1f} MFLOP per token, ", end="")
    print(f"prefixes of {before:.0f} tokens, rollouts of {length:.0f} tokens")
    columns = "".join(f"{'x ' + peer:>12}" for peer in peers)
    print(f"{'':24}{'tok/s wall':>12}{'tok/s cpu':>12}{columns}{'of peak':>9}{'rollouts':>10}{'tok/roll':>9}")
    for name, t in timings.items():
        ratios = "".join(f"{rates[name] / rates[peer]:>12.2f}" for peer in peers)
        print(
            f"{name:24}{t.tokens / t.wall:>12,.0f}{t.tokens / t.cpu:>12,.0f}{ratios}"
            f"{rates[name] * per_token / top:>9.0%}{t.rollouts:>10,}{t.tokens / t.rollouts:>9.1f}  {t.note}"
        )
    if (reading := counts["prompt_reading"]) is not None:
        print(
            f"{reading['questions']} questions behind one few-shot prompt of {reading['few_shot_tokens']} tokens, "
            f"N = {reading['samples_each']}: {reading['prompt_tokens_read']:,} prompt tokens read of "
            f"{reading['prompt_tokens_given']:,} given (at least {reading['least_possible']:,}); "
            f"the few-shot prompt was read {reading['times_few_shot_prompt_was_read']} times"
        )
    result = {
        "seed": a.seed,
        "dtype": a.dtype,
        "device": a.device,
        "few_shot": a.few_shot,
        "prefixes": len(work.prompts),
        "n": a.n,
        **counts,
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
                **{f"ratio_to_{peer}": round(rates[name] / rates[peer], 2) for peer in peers},
                "share_of_peak": round(rates[name] * per_token / top, 3),
                "note": t.note,
            }
            for name, t in timings.items()
        },
    }
    keep("rollouts.py", result, a.out)


if __name__ == "__main__":
    main()

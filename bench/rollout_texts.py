"""What bench/rollouts.py continues: the solutions whose step prefixes get rollouts, and the model that wrote them.

By default a Llama of about 3.5M parameters is trained on the arithmetic task until it writes solutions and ends them.
A given model writes solutions of GSM8K problems itself, after no or some worked examples. What was made is stored in a
directory and found there again by the settings that it was made with.

    python bench/rollouts.py --model DIR --data data/gsm8k --few-shot 4
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepmark.backends.local import LocalBackend
from stepmark.data.outcome_counts import Limits
from stepmark.data.store import Records
from stepmark.executors.serial import SerialExecutor
from stepmark.models.encoding import token_ids
from stepmark.plugins import registry
from stepmark.stages.sample import sample
from stepmark.text.few_shot import FewShot, few_shot
from stepmark.text.prompts import Template
from stepmark.types import Problem, Prompt, SamplingParams, Solution

Texts = list[tuple[str, str]]  # (context, solution)
HEAD = 32  # tokens of a few-shot prompt by which it is recognised


@dataclass(frozen=True)
class Asked:
    """GSM8K problems as they are put to a model."""

    model: str  # checkpoint directory
    data: str  # directory with GSM8K's files, or one of them
    shots: int  # worked examples before each question
    prompt: str  # template
    dtype: str
    device: str

    def context(self) -> FewShot:
        task = registry.load("task", "gsm8k", path=self.data)
        return few_shot(Template(self.prompt), self.shots, task, registry.load("grader", task.grader))

    def problems(self, count: int) -> tuple[Problem, ...]:
        problems: tuple[Problem, ...] = registry.load("task", "gsm8k", path=self.data).load("test", count).problems
        return problems

    def backend(self) -> LocalBackend:
        return LocalBackend(self.model, dtype=self.dtype, device=self.device)


def train_and_write(place: Path, solutions: int, kv_heads: int, demonstrations: int, seed: int) -> tuple[str, Texts]:
    """(path of a model that ends its solutions, its solutions). The model is a Llama of about 3.5M parameters, trained
    on the arithmetic task until it writes solutions and ends them."""
    from stepmark.models.checkpoints import Shape, create
    from stepmark.stages.train import Generator, TrainSettings, train
    from stepmark.tasks.arithmetic import Arithmetic

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


def write(asked: Asked, count: int, params: SamplingParams) -> Texts:
    """The model's own solutions of the first `count` problems."""
    context = asked.context()
    prompts = [Prompt(p.id, context(p)) for p in asked.problems(count)]
    texts = {r.prompt_id: r.text for r in asked.backend().sample(prompts, params)}
    return [(p.context, texts[p.id]) for p in prompts]


def file_name(asked: Asked, params: SamplingParams) -> str:
    """The name of the file that keeps these solutions. Where the model runs changes none of them."""
    made_with = asdict(asked) | asdict(params)
    del made_with["device"]
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:8]
    return f"solutions-{Path(asked.model).name}-{asked.shots}-shot-{digest}.jsonl"


def stored(file: Path) -> Texts:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["context"], row["text"]) for row in rows]


def store(file: Path, texts: Texts) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"context": c, "text": t}) + "\n" for c, t in texts))


def prompt_reading(asked: Asked, questions: int, n: int, seed: int) -> dict[str, Any]:
    """How many prompt tokens the sample stage reads for so many questions behind one few-shot prompt.

    What passes through the model's embedding is counted. One token is drawn for each sample, from the pass over the
    prompt, so that all that is counted belongs to prompts, padding included."""
    import torch

    context, backend = asked.context(), asked.backend()
    problems = context.left(asked.problems(questions + asked.shots), questions)
    engine, tokenizer = backend._load()
    given = [token_ids(tokenizer, context(p))[0] for p in problems]
    head = torch.tensor(given[0][:HEAD])
    read = begun = 0

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal read, begun
        ids = inputs[0].flatten().cpu()
        read += len(ids)
        if len(ids) >= len(head):
            begun += int((ids.unfold(0, len(head), 1) == head).all(1).sum())

    hook = engine.model.get_input_embeddings().register_forward_pre_hook(count)  # type: ignore[no-untyped-call]
    params = SamplingParams(max_tokens=1, seed=seed)
    with tempfile.TemporaryDirectory() as place, Records(Path(place) / "solutions.jsonl", Solution) as out:
        sample(
            problems,
            backend,
            out,
            n=n,
            context=context,
            params=params,
            steps="line",
            executor=SerialExecutor(),
            limits=Limits(truncated=1.0),
        )
    hook.remove()
    ends = min(given), max(given)
    common = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), len(ends[0]))
    return {
        "questions": len(problems),
        "samples_each": n,
        "prompt_tokens_given": sum(map(len, given)) * n,
        "prompt_tokens_read": read,
        "least_possible": common + sum(len(ids) - common for ids in given),
        "few_shot_tokens": common,
        "times_few_shot_prompt_was_read": begun,
        "sharing_refused": engine.fault,
    }

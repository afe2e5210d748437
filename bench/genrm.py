"""What K votes of a generative verifier cost: Stepmark's `genrm` against transformers' `generate`.

There is one verifier, the same 200 solutions, and K = 32 rationales for each at temperature 1, then p(Yes) after the
verdict's question (GenRM, section 3.3). Each contender runs alone in one process of one thread, after a warm-up:

- Stepmark: one call of `verify_many`. The rationales of a solution share its encoded text. Rationales with the same
  beginning are computed once, and p(Yes) is read during generation. How much the rationales share depends on the
  verifier; the number of rows decoded for each vote shows it.
- `generate`, K separate calls for each solution, as in the algorithm. It runs on a part of the solutions (`--part`), so
  the ratio compares seconds per vote.
- `generate`, K separate calls, each over a batch of solutions sorted by length and left padded, in the batch size that
  was fastest in a trial. p(Yes) is read off the returned logits. A careful user would write it like this.

The scores must be the same up to chance. So the script also prints the mean difference between both contenders' scores,
and the mean difference between two seeds of Stepmark.

    python bench/genrm.py                         # first trains a verifier of last-letter lists: some minutes
    python bench/genrm.py --verifier runs/genrm_last_letter/seed-1/verifiers/genrm_cot_lambda

The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import alone, keep
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.plugins.loading import load_verifier
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.text import steps
from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.types import Grade, LabelledSolution, Problem, Rationale, Solution, StepLabel, Verdict
from stepmark.verifiers.genrm import GenerativeVerifier

OUT = Path(__file__).parent / "results" / "genrm.json"
TASK = {"noise": 0.65, "slips": 0.03, "words": 200, "train_size": 12_000}
OURS, AGAIN = "stepmark", "stepmark, another seed"
SINGLE, BATCHED = "generate, one at a time", "generate, batched"


@dataclass(frozen=True)
class Work:
    """The work of every contender."""

    verifier: str
    pairs: tuple[tuple[str, Solution], ...]  # question, solution
    votes: int
    max_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Done:
    """The result of one contender."""

    seconds: float
    tokens: int  # generated
    votes: int
    scores: tuple[float, ...]  # per solution
    note: str = ""


def stepmark(work: Work) -> Done:
    """Stepmark: one call of `verify_many` for all solutions."""
    from stepmark.backends.local.engine import Engine

    computed, decode = 0, Engine.decode

    def counted(engine: Engine, cohorts: Sequence[Any]) -> Any:
        nonlocal computed
        computed += sum(c.live for c in cohorts)
        return decode(engine, cohorts)

    Engine.decode = counted  # type: ignore[method-assign]
    verifier = replace(load_verifier(work.verifier), votes=work.votes, max_tokens=work.max_tokens, seed=work.seed)
    requests = [(question, [s]) for question, s in work.pairs]
    replace(verifier, votes=1).verify_many(requests[:4])
    computed = 0
    began = time.perf_counter()
    verifications = verifier.verify_many(requests)
    seconds = time.perf_counter() - began
    tokenizer = checkpoints.load_tokenizer(work.verifier)
    prompts = {verifier.ask(q, s.text): v for (q, s), v in zip(work.pairs, verifications, strict=True)}
    generated = sum(v.tokens - len(tokenizer(text)["input_ids"]) for text, v in prompts.items())
    votes = sum(len(v.votes) for v in prompts.values())
    note = f"{computed / votes:.1f} rows decoded a vote"
    return Done(seconds, generated, votes, tuple(v.score for v in verifications), note)


def generate(work: Work, batch: int, calls: int) -> Done:
    """`calls` passes over all solutions, with `batch` solutions in each call of `generate` and one vote for each."""
    import torch

    verifier = load_verifier(work.verifier)
    tokenizer = checkpoints.load_tokenizer(work.verifier)
    tokenizer.padding_side = "left"
    model: Any = checkpoints.load_model(work.verifier, dtype="float32", device="cpu")
    texts = sorted((verifier.ask(q, s.text) for q, s in work.pairs), key=lambda t: len(tokenizer(t)["input_ids"]))
    yes, no = (tokenizer(VERDICT + answer)["input_ids"][-1] for answer in (YES, NO))
    question = tokenizer("\n" + VERDICT)["input_ids"]
    end = model.generation_config.eos_token_id

    def votes(batch_texts: Sequence[str], torch_seed: int) -> tuple[list[float | None], int]:
        torch.manual_seed(torch_seed)
        inputs = tokenizer(list(batch_texts), return_tensors="pt", padding=True)
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=work.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        width = inputs["input_ids"].shape[1]
        p_yes: list[float | None] = []
        count = 0
        for row, ids in enumerate(out.sequences[:, width:].tolist()):
            ids = ids[: ids.index(end)] if end in ids else ids
            count += len(ids) + 1
            at = next((i for i in range(len(ids)) if ids[i : i + len(question)] == question), None)
            if at is None or at + len(question) >= len(out.logits):
                p_yes.append(None)
                continue
            both = out.logits[at + len(question)][row, [yes, no]].double().softmax(-1)
            p_yes.append(float(both[0]))
        return p_yes, count

    with torch.inference_mode():
        votes(texts[:batch], 0)
        cast: list[list[float]] = [[] for _ in texts]
        tokens = 0
        began = time.perf_counter()
        for call in range(calls):
            for start in range(0, len(texts), batch):
                p_yes, count = votes(texts[start : start + batch], work.seed * 1000 + call)
                tokens += count
                for i, vote in enumerate(p_yes):
                    if vote is not None:
                        cast[start + i].append(vote)
        seconds = time.perf_counter() - began
    by_text = {text: statistics.fmean(v) if v else 0.5 for text, v in zip(texts, cast, strict=True)}
    scores = tuple(by_text[verifier.ask(q, s.text)] for q, s in work.pairs)
    return Done(seconds, tokens, calls * len(texts), scores, f"{batch} solutions a call")


def teach(place: Path, seed: int) -> str:
    """Path of a trained verifier of last-letter lists, good enough to write whole rationales."""
    task = registry.load("task", "last_letter", seed=seed, **TASK)
    problems = task.load("train").problems
    verifier = GenerativeVerifier("nowhere", mode="cot", generation=0.3, max_tokens=200)
    examples = [_example(task, p, p.demonstration) for p in problems]
    texts = [f"{p.question}\n{p.reference}" for p in problems]
    texts += [r.text for _, x in examples[:3000] for r in x.rationales] + list(verifier.corpus()) * 100
    shape = checkpoints.Shape(hidden=64, layers=2, heads=4, kv_heads=4, vocab=1024, max_length=512, words=True)
    checkpoints.create(place / "base", texts, shape, seed)
    settings = TrainSettings(epochs=3, lr=1e-2, batch_tokens=1024, row_tokens=128, tensorboard=False, seed=seed)
    train(Generator(str(place / "base")), problems, place / "generator", settings)
    learner: Any = replace(verifier, path=str(place / "generator"))  # Any: its example type is not the generator's
    train(learner, examples, place / "verifier", replace(settings, epochs=1, lr=5e-3, row_tokens=256))
    return str(place / "verifier")


def solutions(count: int, seed: int) -> tuple[tuple[str, Solution], ...]:
    """(question, solution) of distinct test problems. The solutions are demonstrations, some with errors."""
    task = registry.load("task", "last_letter", seed=seed, **TASK)
    return tuple((p.question, _solution(p, p.demonstration)) for p in task.load("test", count).problems)


def _solution(p: Problem, text: str) -> Solution:
    return Solution(f"{p.id}#0", p.id, 0, text, steps.split(text))


def _example(task: Any, p: Problem, text: str) -> tuple[Problem, LabelledSolution]:
    s, right = _solution(p, text), text == p.reference
    rationale = Rationale(task.rationale(p, s) + VERDICT + (YES if right else NO), "yes" if right else "no", "oracle")
    grade = Grade(Verdict.CORRECT if right else Verdict.INCORRECT, "the task's own")
    return p, LabelledSolution(s, grade, (StepLabel(0, 0, source="none"),) * len(s.spans), (rationale,))


def main() -> None:
    """Trains a verifier if none is given, runs the contenders, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--verifier", help="a genrm of last-letter lists, mode=cot; by default one is trained")
    parser.add_argument("--solutions", type=int, default=200)
    parser.add_argument("--votes", type=int, default=32)
    parser.add_argument("--part", type=int, default=6, help="solutions for `generate` one at a time")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 25, 50, 100, 200], help="tried for `generate`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        verifier = args.verifier or alone(teach, Path(place), args.seed)
        work = Work(verifier, solutions(args.solutions, args.seed), args.votes, args.max_tokens, args.seed)
        done = {OURS: alone(stepmark, work), AGAIN: alone(stepmark, replace(work, seed=args.seed + 1))}
        part = replace(work, pairs=work.pairs[:: max(1, len(work.pairs) // args.part)][: args.part])
        done[SINGLE] = alone(generate, part, 1, args.votes)
        trials = {batch: alone(generate, work, batch, 1) for batch in args.batches}
        best = min(trials, key=lambda batch: trials[batch].seconds)
        done[BATCHED] = alone(generate, work, best, args.votes)
    per_vote = {name: d.seconds / d.votes for name, d in done.items()}
    print(f"{'':28}{'votes':>8}{'seconds':>9}{'ms a vote':>11}{'tokens a vote':>15}{'times ours':>12}")
    for name, d in done.items():
        ratio = per_vote[name] / per_vote[OURS]
        print(
            f"{name:28}{d.votes:>8}{d.seconds:>9.1f}{1000 * per_vote[name]:>11.2f}{d.tokens / d.votes:>15.1f}"
            f"{ratio:>12.1f}  {d.note}"
        )
    theirs, ours, again = (done[name].scores for name in (BATCHED, OURS, AGAIN))
    apart = {
        "ours_and_generates": _distance(ours, theirs),
        "two_seeds_of_ours": _distance(ours, again),
        "mean_ours": round(statistics.fmean(ours), 4),
        "mean_generates": round(statistics.fmean(theirs), 4),
    }
    print(
        f"mean score {apart['mean_ours']}, generate's {apart['mean_generates']}; scores of one solution are "
        f"{apart['ours_and_generates']} apart, those of two seeds of ours {apart['two_seeds_of_ours']}"
    )
    figures = {
        "seed": args.seed,
        "solutions": args.solutions,
        "votes": args.votes,
        "contenders": {
            n: {"seconds": round(d.seconds, 2), "votes": d.votes, "tokens": d.tokens, "note": d.note}
            for n, d in done.items()
        },
        "tried_batches_seconds": {str(b): round(d.seconds, 2) for b, d in trials.items()},
        "scores": apart,
        "speedup_batched": round(per_vote[BATCHED] / per_vote[OURS], 1),
        "speedup_k32": round(per_vote[SINGLE] / per_vote[OURS], 1),
    }
    keep("genrm.py", figures, args.out)


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return round(statistics.fmean(abs(x - y) for x, y in zip(a, b, strict=True)), 4)


if __name__ == "__main__":
    main()

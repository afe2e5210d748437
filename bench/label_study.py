"""What bench/label_quality.py makes of a run: completers, a judge, an entailment model, their labels, two verifiers.

All of it is kept in a directory for each run, and what is there already is not made again.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from stepmark.data.store import Records, RunDir, replacing
from stepmark.data.work_units import pair
from stepmark.evaluation import evidence
from stepmark.evaluation.evaluate import evaluate
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import Encoded
from stepmark.plugins import registry
from stepmark.plugins.loading import load_backend, load_task, load_verifier
from stepmark.protocols import Tools
from stepmark.stages.label import distinct, label, ledgers, references_among
from stepmark.stages.score import score
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.text.prompts import Template
from stepmark.types import (
    Finish,
    GradedSolution,
    LabelledSolution,
    Problem,
    Prompt,
    Rollout,
    SamplingParams,
    Solution,
    Unlabelled,
    Verification,
)

Pair = tuple[Problem, Solution]
N = 8  # rollouts where there is one setting only: the paper's
ASK = "{question}\n{steps}\nCheck:\n"  # as short as it goes: the judge is a tiny model


@dataclass(frozen=True, slots=True)
class Pairs:
    """The trainee that makes an entailment model: a two-class head at the last token of premise and hypothesis."""

    path: str  # causal language model to start from

    def build(self) -> torch.nn.Module:
        names = {"id2label": {0: "not_entailed", 1: "entailment"}, "label2id": {"not_entailed": 0, "entailment": 1}}
        return checkpoints.load_model(
            self.path, "SequenceClassification", dtype="float32", device="cpu", new_head=True, pad_token_id=self.pad_id,
            **names,
        )  # fmt: skip

    def encode_example(self, example: tuple[str, str, tuple[str, ...]]) -> Encoded:
        """Each token of the hypothesis has a target, so that little data goes far: can what is said so far still become
        one of the ways to say the premise again? At the last token that is the label; only this one is used later."""
        premise, hypothesis, again = example
        ids, said = self._ids(premise, hypothesis), self._ids(hypothesis)
        ways = [self._ids(way) for way in again]
        targets = tuple(float(any(said[: i + 1] == w[: i + 1] for w in ways)) for i in range(len(said)))
        return Encoded(ids, at=tuple(range(len(ids) - len(said), len(ids))), targets=targets)

    def _ids(self, *texts: str) -> tuple[int, ...]:
        return tuple(checkpoints.load_tokenizer(self.path)(*texts, split_special_tokens=True)["input_ids"])

    def loss(self, model: torch.nn.Module, batch: packing.Batch, totals: packing.Totals) -> torch.Tensor:
        logs = model.score(scoring.outputs(model, batch)[batch.rows, batch.columns]).log_softmax(-1)  # type: ignore
        return scoring.cross_entropy(logs[:, 0], logs[:, 1], batch.targets) / totals.scores

    def save(self, model: torch.nn.Module, out: Path) -> None:
        checkpoints.save(out, model, checkpoints.load_tokenizer(self.path))  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        return checkpoints.pad_id(checkpoints.load_tokenizer(self.path))


class Overheard:
    """A judge that answers nothing and keeps what it was asked: the labeller's own prompts, to train a judge on."""

    def __init__(self) -> None:
        self.asked: dict[str, str] = {}  # solution -> prompt

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        self.asked |= {prompt.id.rpartition("@")[0]: prompt.text for prompt in prompts}
        return iter(())


class Study:
    """One run and what is made of it, in a directory of its own."""

    def __init__(self, run: Path, work: Path, options: dict[str, Any]) -> None:
        self.run, self.options = run, options
        self.config = json.loads((run / "config.json").read_text())
        self.seed: int = self.config["seed"]
        self.place = RunDir(work / str(self.seed)).open({"run": self.config, **options})
        self.task: Any = load_task(self.config["task"]["name"], **self.config["task"]["options"], seed=self.seed)
        self.prompt = Template(self.config["prompt"])
        self.params = SamplingParams(max_tokens=self.config["sample"]["max_tokens"], seed=self.seed)
        self.problems = list(Records(run / "problems/train.jsonl", Problem))
        grades = {g.solution_id: g.grade for g in Records(run / "grades/train.jsonl", GradedSolution)}
        drawn = pair(self.problems, Records(run / "solutions/train.jsonl", Solution))
        self.references = references_among(drawn, lambda _, s: grades[s.id])
        whole = [(p, s) for p, s in distinct(drawn) if s.finish is Finish.STOP and len(s.spans) > 1]
        rng = random.Random(self.seed)
        chosen = set(rng.sample(sorted({p.id for p, _ in whole}), options["solutions"]))
        self.others = [(p, s) for p, s in whole if p.id not in chosen]
        rng.shuffle(whole)
        self.pairs = list({p.id: (p, s) for p, s in whole if p.id in chosen}.values())
        there = (self.place.path / "seconds.json").exists()
        self.seconds: dict[str, float] = self.place.read_json("seconds.json") if there else {}  # all sittings together

    def path(self, name: str) -> str:
        return str(self.place.path / name)

    @property
    def weak(self) -> str:
        return str(self.run / "generator")

    # ---- models ----

    def learn(self, name: str, trainee: Any, examples: Sequence[Any], **settings: Any) -> str:
        """Trained with the recipe's settings for verifiers, but for `settings`."""
        given = {**self.config["verifiers"]["prm"]["train"], **settings}
        done = train(trainee, examples, self.path(name), TrainSettings(**{**given, "seed": self.seed}))
        self.spend(f"train {name}", done.seconds)
        return done.path

    def spend(self, what: str, seconds: float) -> None:
        self.seconds[what] = round(seconds, 1)
        self.place.write_json("seconds.json", self.seconds)
        print(f"{time.strftime('%H:%M:%S')} seed {self.seed}: {what}: {seconds:.0f} s", file=sys.stderr, flush=True)

    @cached_property
    def strong(self) -> str:
        options = {**self.config["task"]["options"], "seed": self.seed, "noise": 0.0}  # 0 plants no error at all
        generator = self.config["generator"]
        there = load_task(self.config["task"]["name"], **options).load("train", generator["problems"]).problems
        base = Generator(str(self.run / "bases/generator"), self.config["prompt"])
        return self.learn("strong", base, there[len(self.problems) :], **generator["train"])

    @cached_property
    def judge(self) -> str:
        ear = Overheard()
        tools = Tools(Numeric(), self.prompt, self.params, judge=ear)
        list(registry.load("labeler", "judge", prompt=ASK).label([Unlabelled(p, s) for p, s in self.others], tools))
        examples = [
            Problem(s.id, ear.asked[s.id], "", "judge", demonstration=marks(self.task.judge_steps(p, s)))
            for p, s in self.others
        ]
        base = self.widened("judge-base", [x.question + x.demonstration for x in examples])
        return self.learn("judge", Generator(base, "{question}"), examples, epochs=self.options["judge_epochs"])

    def widened(self, name: str, texts: Sequence[str]) -> str:
        """The generator with a vocabulary for these texts and room for longer ones. Tokens that it knows keep what it
        knows of them."""
        path = self.place.path / name
        if not path.exists():
            old, words = checkpoints.load_model(self.weak), checkpoints.load_tokenizer(self.weak).get_vocab()
            given = {**self.config["generator"]["init"], "max_length": 512}
            with replacing(path) as place:
                checkpoints.create(place, texts, checkpoints.Shape(**given), self.seed)
                new, tokenizer = checkpoints.load_model(place), checkpoints.load_tokenizer(place)
                before, after = old.state_dict(), new.state_dict()
                weights = {k: v if v.shape == after[k].shape else after[k] for k, v in before.items()}
                for word, i in tokenizer.get_vocab().items():
                    if word in words:
                        for k in ("model.embed_tokens.weight", "lm_head.weight"):
                            after[k][i] = before[k][words[word]]
                            weights[k] = after[k]
                new.load_state_dict(weights)
                checkpoints.save(place, new, tokenizer)
        return str(path)

    @cached_property
    def nli(self) -> str:
        rng = random.Random(self.seed)
        problems = list({p.id: p for p, _ in self.others}.values())
        examples = [x for p in problems for x in entailments(p.reference.splitlines()[:-1], rng)]
        return self.learn("nli", Pairs(self.weak), examples, lr=1e-2, epochs=self.options["nli_epochs"])

    # ---- labels ----

    def label(self, name: str, labeler: str, completer: str = "", judge: str = "", **options: Any) -> Labels:
        backend = {
            role: load_backend("local", path=path) if path else None
            for role, path in (("completer", completer), ("judge", judge))
        }
        tools = Tools(Numeric(), self.prompt, self.params, **backend)
        books = ledgers(self.place.path / "rollouts" / name, tools)
        began = time.process_time()
        with self.place.records(f"labels/{name}", LabelledSolution) as out:
            made = registry.load("labeler", labeler, **options)
            label(self.pairs, made, tools, out, references=self.references, ledgers=books, executor=SerialExecutor())
            found = {x.key: x for x in out}
        self.spend(f"label {name}", self.seconds.get(f"label {name}", 0.0) + time.process_time() - began)
        return Labels(
            [found[s.id] for _, s in self.pairs],
            self.truth,
            sum(x.spent.rollouts for x in books.values()),
            sum(x.spent.tokens for x in books.values()),
        )

    @cached_property
    def truth(self) -> list[tuple[bool, ...]]:
        return [self.task.judge_steps(p, s) for p, s in self.pairs]

    def greedy(self, model: str) -> float:
        """Accuracy on the run's test problems without any sampling."""
        problems = list(Records(self.run / "problems/test.jsonl", Problem))
        prompts = [Prompt(p.id, self.prompt(p)) for p in problems]
        said = load_backend("local", path=model).sample(prompts, replace(self.params, temperature=0.0))
        text = {r.prompt_id: r.text for r in said}
        return mean(Numeric().grade(text[p.id], p).correct for p in problems)

    # ---- claim C6: verifiers on hard and soft labels ----

    def hard_and_soft(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.seed)
        of = {p.id: p for p in self.problems}
        labelled = sorted(Records(self.run / "labels/train.jsonl", LabelledSolution), key=lambda x: x.key)
        examples = [(of[x.solution.problem_id], replace(x, labels=eight(x, rng))) for x in labelled]
        count, n = self.options["test_problems"], 16
        problems = list(Records(self.run / "problems/test.jsonl", Problem))[:count]
        ids = {p.id for p in problems}
        solutions = [
            s for s in Records(self.run / "solutions/test.jsonl", Solution) if s.problem_id in ids and s.sample < n
        ]
        kept = {s.id for s in solutions}
        grades = [g for g in Records(self.run / "grades/test.jsonl", GradedSolution) if g.solution_id in kept]
        scored: dict[str, list[Verification]] = {}
        for kind in ("hard", "soft"):
            trainee = registry.load("verifier", "prm", path=self.weak, labels=kind, template=self.config["prompt"])
            place = self.learn(f"prm_{kind}", trainee, examples, epochs=self.options["prm_epochs"])
            with self.place.records(f"scores/prm_{kind}", Verification) as out:
                score(load_verifier(place), problems, solutions, out, executor=SerialExecutor())
                scored[kind] = list(out)
        metrics = evaluate(problems, solutions, grades, scored, ns=(1, 4, n), seed=self.seed)
        vote = "self_consistency"
        return {
            "vote": metrics.best_of_n[vote][n].mean,
            **{f"vote+{k}": metrics.best_of_n[f"{vote}+{k}"][n].mean for k in scored},
            **{f"best by {k}": metrics.best_of_n[k][n].mean for k in scored},
            **{f"auc {k}": metrics.auc[k].within_problem.mean for k in scored},  # type: ignore[union-attr]
            "vote+soft - vote+hard": metrics.differences[f"{vote}+soft - {vote}+hard"][n],
            "auc soft - hard": metrics.auc_differences["soft - hard"],
        }  # fmt: skip


def eight(x: LabelledSolution, rng: np.random.Generator) -> tuple[Any, ...]:
    """The labels with N of each step's rollouts, as if no more had been drawn."""
    return tuple(
        label
        if label.source == "outcome" or label.gradable <= N
        else replace(
            label, correct=int(rng.hypergeometric(label.correct, label.gradable - label.correct, N)), gradable=N
        )
        for label in x.labels
    )


def marks(flags: Sequence[bool]) -> str:
    return "\n".join(f"Step {i}: {'correct' if right else 'incorrect'}" for i, right in enumerate(flags, 1))


STEP = re.compile(r"(\w+) has (\d+) ([-+*]) (\d+) = (\d+)\.")


def entailments(steps: Sequence[str], rng: random.Random) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """For each step of a worked solution: a way to say it again, two ways to say something else; and all the ways."""
    for i, step in enumerate(steps):
        m = STEP.fullmatch(step)
        assert m is not None, step
        who, a, op, b, c = m[1], int(m[2]), m[3], int(m[4]), int(m[5])
        again = (step, f"{who} has {c}.", *([] if op == "-" else [f"{who} has {b} {op} {a} = {c}."]))
        yield step, rng.choice([step, *again]), again
        off, other = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4]), rng.choice([x for x in "+-*" if x != op])
        changed = [
            f"{who} has {a} {op} {b} = {abs(c + off)}.",
            f"{who} has {abs(a + off)} {op} {b} = {told(abs(a + off), op, b)}.",
            f"{who} has {a} {other} {b} = {told(a, other, b)}.",
            f"{who} has {abs(c + off)}.",
        ]
        others = [x for j, x in enumerate(steps) if j != i]
        yield step, rng.choice(changed), again
        yield step, rng.choice(others or changed), again


def told(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


@dataclass
class Labels:
    """What one method said of the solutions, and what it cost."""

    labelled: list[LabelledSolution]
    flags: list[tuple[bool, ...]]  # the oracle's, by solution
    rollouts: int
    tokens: int  # generated

    def __post_init__(self) -> None:
        rows = [
            (k, x, t)
            for k, (one, flags) in enumerate(zip(self.labelled, self.flags, strict=True))
            for i, (x, t) in enumerate(zip(one.labels, flags, strict=True))
            if not evidence.ends(one.solution, i)
        ]
        self.owner = np.array([k for k, _, _ in rows])
        self.truth = np.array([t for _, _, t in rows])
        self.labels = [x for _, x, _ in rows]

    def counts(self, soft: bool) -> tuple[list[int], list[int]]:
        """Correct and gradable by step; one case of its hard label where counts mean nothing."""
        if soft:
            return [x.correct for x in self.labels], [x.gradable for x in self.labels]
        return [int(x.known and x.hard) for x in self.labels], [int(x.known) for x in self.labels]

"""Models and labels for bench/label_quality.py: completers, a judge, an entailment model, two verifiers.

Each run has a directory for them. A model or label that is stored there is not made again.
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
N = 8  # rollouts wherever there is only one setting, as in the paper
ASK = "{question}\n{steps}\nCheck:\n"  # as short as possible: the judge is a tiny model


@dataclass(frozen=True, slots=True)
class Pairs:
    """The trainee for the entailment model: a two-class head at the last token of premise and hypothesis."""

    path: str  # the causal language model to start from

    def build(self) -> torch.nn.Module:
        names = {"id2label": {0: "not_entailed", 1: "entailment"}, "label2id": {"not_entailed": 0, "entailment": 1}}
        return checkpoints.load_model(
            self.path, "SequenceClassification", dtype="float32", device="cpu", new_head=True, pad_token_id=self.pad_id,
            **names,
        )  # fmt: skip

    def encode_example(self, example: tuple[str, str, tuple[str, ...]]) -> Encoded:
        """Ids of (premise, hypothesis, paraphrases of the premise), with a target at each token of the hypothesis.

        The target is 1 if the hypothesis up to this token is the beginning of a paraphrase. So a few examples give many
        targets. At the last token the target is the label; only that token is used later."""
        premise, hypothesis, paraphrases = example
        ids, hypothesis_ids = self._ids(premise, hypothesis), self._ids(hypothesis)
        paraphrase_ids = [self._ids(text) for text in paraphrases]
        targets = tuple(
            float(any(hypothesis_ids[: i + 1] == p[: i + 1] for p in paraphrase_ids))
            for i in range(len(hypothesis_ids))
        )
        return Encoded(ids, at=tuple(range(len(ids) - len(hypothesis_ids), len(ids))), targets=targets)

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


class PromptRecorder:
    """A judge that gives no answers and stores the labeler's prompts, so that a judge can be trained on them."""

    def __init__(self) -> None:
        self.prompts: dict[str, str] = {}  # solution id -> prompt

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        self.prompts |= {prompt.id.rpartition("@")[0]: prompt.text for prompt in prompts}
        return iter(())


class Study:
    """One run with its models and labels, in a directory of its own."""

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
        timed = (self.place.path / "seconds.json").exists()
        self.seconds: dict[str, float] = self.place.read_json("seconds.json") if timed else {}  # of all calls together

    def path(self, name: str) -> str:
        return str(self.place.path / name)

    @property
    def weak(self) -> str:
        return str(self.run / "generator")

    # ---- models ----

    def learn(self, name: str, trainee: Any, examples: Sequence[Any], **settings: Any) -> str:
        """Path of the trained model. Its settings are the recipe's for verifiers, overridden by `settings`."""
        merged = {**self.config["verifiers"]["prm"]["train"], **settings}
        done = train(trainee, examples, self.path(name), TrainSettings(**{**merged, "seed": self.seed}))
        self.spend(f"train {name}", done.seconds)
        return done.path

    def spend(self, task: str, seconds: float) -> None:
        self.seconds[task] = round(seconds, 1)
        self.place.write_json("seconds.json", self.seconds)
        print(f"{time.strftime('%H:%M:%S')} seed {self.seed}: {task}: {seconds:.0f} s", file=sys.stderr, flush=True)

    @cached_property
    def strong(self) -> str:
        options = {**self.config["task"]["options"], "seed": self.seed, "noise": 0.0}  # 0: no planted errors
        generator = self.config["generator"]
        problems = load_task(self.config["task"]["name"], **options).load("train", generator["problems"]).problems
        base = Generator(str(self.run / "bases/generator"), self.config["prompt"])
        return self.learn("strong", base, problems[len(self.problems) :], **generator["train"])

    @cached_property
    def judge(self) -> str:
        recorder = PromptRecorder()
        tools = Tools(Numeric(), self.prompt, self.params, judge=recorder)
        list(registry.load("labeler", "judge", prompt=ASK).label([Unlabelled(p, s) for p, s in self.others], tools))
        examples = [
            Problem(s.id, recorder.prompts[s.id], "", "judge", demonstration=marks(self.task.judge_steps(p, s)))
            for p, s in self.others
        ]
        base = self.widened("judge-base", [x.question + x.demonstration for x in examples])
        return self.learn("judge", Generator(base, "{question}"), examples, epochs=self.options["judge_epochs"])

    def widened(self, name: str, texts: Sequence[str]) -> str:
        """Path of the generator with a vocabulary for these texts and more positions. Known tokens keep their
        weights."""
        path = self.place.path / name
        if not path.exists():
            old, words = checkpoints.load_model(self.weak), checkpoints.load_tokenizer(self.weak).get_vocab()
            shape = {**self.config["generator"]["init"], "max_length": 512}
            with replacing(path) as place:
                checkpoints.create(place, texts, checkpoints.Shape(**shape), self.seed)
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
            method = registry.load("labeler", labeler, **options)
            label(self.pairs, method, tools, out, references=self.references, ledgers=books, executor=SerialExecutor())
            stored = {x.key: x for x in out}
        self.spend(f"label {name}", self.seconds.get(f"label {name}", 0.0) + time.process_time() - began)
        return Labels(
            [stored[s.id] for _, s in self.pairs],
            self.truth,
            sum(x.spent.rollouts for x in books.values()),
            sum(x.spent.tokens for x in books.values()),
        )

    @cached_property
    def truth(self) -> list[tuple[bool, ...]]:
        return [self.task.judge_steps(p, s) for p, s in self.pairs]

    def greedy(self, model: str) -> float:
        """Accuracy of greedy answers to the run's test problems."""
        problems = list(Records(self.run / "problems/test.jsonl", Problem))
        prompts = [Prompt(p.id, self.prompt(p)) for p in problems]
        rollouts = load_backend("local", path=model).sample(prompts, replace(self.params, temperature=0.0))
        text = {r.prompt_id: r.text for r in rollouts}
        return mean(Numeric().grade(text[p.id], p).correct for p in problems)

    # ---- claim C6: verifiers on hard and soft labels ----

    def hard_and_soft(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.seed)
        by_id = {p.id: p for p in self.problems}
        labelled = sorted(Records(self.run / "labels/train.jsonl", LabelledSolution), key=lambda x: x.key)
        examples = [(by_id[x.solution.problem_id], replace(x, labels=fewer_rollouts(x, rng))) for x in labelled]
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


def fewer_rollouts(x: LabelledSolution, rng: np.random.Generator) -> tuple[Any, ...]:
    """The labels with only N of each step's rollouts, drawn without replacement."""
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
    """(premise, hypothesis, paraphrases of the premise): for each step one entailed hypothesis and two others."""
    for i, step in enumerate(steps):
        m = STEP.fullmatch(step)
        assert m is not None, step
        who, a, op, b, c = m[1], int(m[2]), m[3], int(m[4]), int(m[5])
        paraphrases = (step, f"{who} has {c}.", *([] if op == "-" else [f"{who} has {b} {op} {a} = {c}."]))
        yield step, rng.choice([step, *paraphrases]), paraphrases
        off, other = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4]), rng.choice([x for x in "+-*" if x != op])
        changed = [
            f"{who} has {a} {op} {b} = {abs(c + off)}.",
            f"{who} has {abs(a + off)} {op} {b} = {result(abs(a + off), op, b)}.",
            f"{who} has {a} {other} {b} = {result(a, other, b)}.",
            f"{who} has {abs(c + off)}.",
        ]
        others = [x for j, x in enumerate(steps) if j != i]
        yield step, rng.choice(changed), paraphrases
        yield step, rng.choice(others or changed), paraphrases


def result(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


@dataclass
class Labels:
    """The labels of one method for the solutions, and their cost."""

    labelled: list[LabelledSolution]
    flags: list[tuple[bool, ...]]  # the oracle's, by solution
    rollouts: int
    tokens: int  # generated

    def __post_init__(self) -> None:
        rows = [
            (k, x, t)
            for k, (item, flags) in enumerate(zip(self.labelled, self.flags, strict=True))
            for i, (x, t) in enumerate(zip(item.labels, flags, strict=True))
            if not evidence.ends(item.solution, i)
        ]
        self.owner = np.array([k for k, _, _ in rows])
        self.truth = np.array([t for _, _, t in rows])
        self.labels = [x for _, x, _ in rows]

    def counts(self, soft: bool) -> tuple[list[int], list[int]]:
        """(correct, gradable) rollouts by step. Without `soft`, the hard label counts as one rollout."""
        if soft:
            return [x.correct for x in self.labels], [x.gradable for x in self.labels]
        return [int(x.known and x.hard) for x in self.labels], [int(x.known) for x in self.labels]

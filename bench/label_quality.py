"""What step labels are worth: Monte-Carlo for N = 1 to 32 against rule, entailment, judge, consensus and search.

Each RUN is a finished run of recipes/demo.yaml. In each run, every method labels one finished solution to each of
--solutions training problems. The labels are compared with the task's oracle, which is exact. The last step of a
solution is left out, because its label is the grade and costs nothing. The claims are those of Math-Shepherd (arXiv
2312.08935, section 5.4) and of OmegaPRM (arXiv 2406.06592). Each claim gets one verdict from the 95% bootstrap
intervals (by solution, paired) of all runs.

- Completers: weak is the run's generator. Strong has the same size and training, on demonstrations without planted
  errors and without the run's own problems. N is taken from 32 stored rollouts by the exact estimator of
  evaluation/stats.py.
- No entailment model and no judge of this size knows this task. So both are trained here, on other problems than those
  labelled. The entailment model learns from pairs made of reference steps. The judge is a fine-tuned generator and
  learns from the *oracle's* marks on the generator's solutions. An off-the-shelf model has neither advantage.
- Two process verifiers are trained, on hard and on soft labels, with 8 of the run's 16 rollouts for each step, drawn
  once without replacement.

    for s in 21 22 23; do stepmark run recipes/demo.yaml seed=$s --out runs/demo-$s; done
    python bench/label_quality.py runs/demo-21 runs/demo-22 runs/demo-23     # about ten minutes a run, on one core

After a kill, the same command continues. The last line printed is one line of JSON; it is also written to --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from label_study import ASK, Labels, N, Study
from measure import keep
from stepmark.evaluation import evidence, stats
from stepmark.evaluation.stats import Bootstrap, Interval

NS = (1, 2, 4, 8, 16, 32)
COMPLETERS = ("weak", "strong")
SEARCHED = ("exhaustive", "early stop")
CONSENSUS = "consensus of weak MC and judge"


@lru_cache(maxsize=100_000)
def step_quality(correct: int, gradable: int, truth: bool, n: int) -> tuple[float, float, float]:
    """(1 if known, chance that the hard label is the truth, soft loss) of one step with n rollouts, in expectation."""
    q = stats.label_quality(np.array([correct]), np.array([gradable]), np.array([truth]), n)
    return (0.0, 0.0, 0.0) if q is None else (1.0, q.accuracy, q.soft_cross_entropy)


@dataclass(frozen=True)
class Column:
    """The labels of one method at one N, by step."""

    owner: np.ndarray  # index of the step's solution
    truth: np.ndarray  # the oracle's verdict
    known: np.ndarray  # 1 where there is a label
    hit: np.ndarray  # chance that the hard label is the truth
    loss: np.ndarray  # soft loss, nats
    rollouts: float  # for each step
    tokens: float

    @classmethod
    def of(cls, x: Labels, n: int = 1, drawn: int = 0) -> Column:
        """`drawn` is the number of stored rollouts of each step, of which n count. 0 takes the hard labels."""
        known, hit, loss = np.array(
            [step_quality(c, m, bool(t), n) for c, m, t in zip(*x.counts(drawn > 0), x.truth, strict=True)]
        ).T
        share = (n / drawn if drawn else 1.0) / len(known)
        return cls(x.owner, x.truth, known, hit, loss, x.rollouts * share, x.tokens * share)

    def row(self) -> dict[str, float]:
        def rate(values: np.ndarray, mask: np.ndarray) -> float:
            return float((values * mask).sum() / max(1e-9, mask.sum()))

        return {
            "accuracy": rate(self.hit, self.known),
            "false_positive": rate(1 - self.hit, self.known * ~self.truth),
            "false_negative": rate(1 - self.hit, self.known * self.truth),
            "loss": rate(self.loss, self.known),
            "labelled": float(self.known.mean()),
            "rollouts_per_step": self.rollouts,
            "tokens_per_step": self.tokens,
        }


class Compare:
    """Paired differences, resampled by solution."""

    def __init__(self, solutions: int, seed: int) -> None:
        self.solutions = solutions
        self.boot = Bootstrap(solutions, seed=seed)

    def __call__(
        self, a: Column, b: Column, field: str = "hit", among: Callable[[Column], Any] | None = None
    ) -> Interval:
        """Interval of the field's mean in a minus that in b, over the steps that both have labelled."""
        mask = a.known * b.known * (among(a) if among else 1)
        values = (getattr(a, field) - getattr(b, field)) * mask
        return self.boot.ratio(self._sum(a, values), self._sum(a, mask))

    def kept(self, all_of: Column, part: Column) -> Interval:
        """Accuracy of `all_of` on the steps that `part` has labelled, minus its accuracy on all steps."""
        masks = part.known * all_of.known, all_of.known
        sums = [self._sum(all_of, x) for m in masks for x in (all_of.hit * m, m)]
        return self.function(lambda a, b, c, d: a / b - c / d, *sums)

    def function(self, f: Callable[..., Any], *columns: np.ndarray) -> Interval:
        """Interval of f, applied to the columns' sums over solutions."""
        table = np.stack(columns, axis=1).astype(float)
        resampled = self.boot.counts.astype(float) @ table
        low, high = np.quantile(f(*resampled.T), [0.025, 0.975])
        return Interval(float(f(*table.sum(0))), float(low), float(high))

    def _sum(self, x: Column, values: np.ndarray) -> np.ndarray:
        return np.bincount(x.owner, values, minlength=self.solutions)


def search(halves: Labels, early: Labels, compare: Compare) -> dict[str, Any]:
    """Claim C18, over the solutions with a wrong answer: rollouts for each located error, and how often the located
    step is the oracle's first wrong step."""
    wrong = np.array([not x.grade.correct for x in halves.labelled])
    steps = np.array([sum(not evidence.ends(x.solution, i) for i in range(len(x.labels))) for x in halves.labelled])
    spent = {"binary search": cost(halves) * wrong, "early stop": cost(early) * wrong, "exhaustive": N * steps * wrong}
    right = {}
    for name, labels in (("binary search", halves), ("exhaustive", early)):
        right[name] = wrong * np.array(
            [
                next((i for i, x in enumerate(item.labels) if x.known and not x.hard), -1) == flags.index(False)
                if False in flags
                else False
                for item, flags in zip(labels.labelled, labels.flags, strict=True)
            ]
        )
    ratio: Callable[..., Any] = lambda a, b: a / b  # noqa: E731
    return {
        "wrong_solutions": int(wrong.sum()),
        "rollouts_per_error": {k: float(v.sum() / wrong.sum()) for k, v in spent.items()},
        "at_the_oracles_step": {k: float(v.sum() / wrong.sum()) for k, v in right.items()},
        **{f"rollouts, search / {x}": compare.function(ratio, spent["binary search"], spent[x]) for x in SEARCHED},
        "located rightly, search - exhaustive": compare.function(
            lambda a, b, c: (a - b) / c, right["binary search"], right["exhaustive"], wrong
        ),
    }


def cost(labels: Labels) -> np.ndarray:
    """Rollouts drawn for each solution."""
    return np.array(
        [
            sum(
                x.gradable + x.truncated + x.ungradable for x in item.labels if not x.inferred and x.source != "outcome"
            )
            for item in labels.labelled
        ]
    )


# ---- one run, all runs ----


def measure(study: Study, most: int) -> dict[str, Any]:
    """The figures of one run, with `most` rollouts a step."""
    models = {"weak": study.weak, "strong": study.strong}
    columns: dict[str, Column] = {}
    searches = {}
    compare = Compare(len(study.pairs), study.seed)
    for completer, model in models.items():
        full = study.label(f"{completer}-{most}", "monte_carlo", model, rollouts=most)
        for n in (n for n in NS if n <= most):
            columns[f"{completer} MC, N = {n}"] = Column.of(full, n, most)
        early = study.label(f"{completer}-early", "monte_carlo", model, rollouts=N, early_stop=True)
        halves = study.label(f"{completer}-halves", "first_error", model, rollouts=N)
        columns[f"{completer} MC, N = {N}, early stop"] = Column.of(early)
        columns[f"{completer} first_error, N = {N}"] = Column.of(halves)
        searches[completer] = search(halves, early, compare)
    columns["rule"] = Column.of(study.label("rule", "rule"))
    columns["nli"] = Column.of(study.label("nli", "nli", path=study.nli))
    judge_options = {"prompt": ASK, "max_tokens": 110}
    columns["judge"] = Column.of(study.label("judge", "judge", judge=study.judge, **judge_options))
    both = [{"name": "monte_carlo", "options": {"rollouts": N}}, {"name": "judge", "options": judge_options}]
    consensus = study.label("consensus", "consensus", study.weak, study.judge, labelers=both)
    columns[CONSENSUS] = Column.of(consensus)
    last = max(n for n in NS if n <= most)
    c = columns
    weak, strong = (lambda n: c[f"weak MC, N = {n}"]), (lambda n: c[f"strong MC, N = {n}"])
    tests: dict[str, Any] = {}
    for completer, by_n in (("weak", weak), ("strong", strong)):
        for n in (1, 4):
            tests[f"C5 {completer}: accuracy, N = {last} - {n}"] = compare(by_n(last), by_n(n))
        tests[f"C5 {completer}: false negatives, N = {last} - 1"] = minus(
            compare(by_n(last), by_n(1), among=lambda x: x.truth)
        )
        tests[f"C5 {completer}: false positives, N = {last} - 1"] = minus(
            compare(by_n(last), by_n(1), among=lambda x: ~x.truth)
        )
        tests[f"C6 {completer}: soft loss, N = {last} - 1"] = compare(by_n(last), by_n(1), "loss")
        tests[f"C6 {completer}: soft loss, N = {last} - {N}"] = compare(by_n(last), by_n(N), "loss")
        tests[f"C7: {completer} MC, N = {N} - rule"] = compare(by_n(N), c["rule"])
        tests[f"C7: {completer} MC, N = {N} - nli"] = compare(by_n(N), c["nli"])
        tests[f"C7: {completer} MC, N = {N} - judge"] = compare(by_n(N), c["judge"])
        tests |= {f"C18 {completer}: {name}": x for name, x in searches[completer].items() if isinstance(x, Interval)}
    for n in (1, N, last):
        tests[f"C7: accuracy, strong - weak, N = {n}"] = compare(strong(n), weak(n))
    tests[f"C7: soft loss, strong - weak, N = {last}"] = compare(strong(last), weak(last), "loss")
    tests["consensus: accuracy of weak MC on what is kept - on all"] = compare.kept(weak(N), c[CONSENSUS])
    verifiers = study.hard_and_soft()
    tests["C6: votes weighted, soft - hard, N = 16"] = verifiers.pop("vote+soft - vote+hard")
    tests["C6: AUC within problem, soft - hard"] = verifiers.pop("auc soft - hard")
    return {
        "seed": study.seed,
        "solutions": len(study.pairs),
        "steps": len(weak(1).truth),
        "wrong_steps": float(1 - weak(1).truth.mean()),
        "greedy_accuracy": {name: study.greedy(model) for name, model in models.items()},
        "table": {name: x.row() for name, x in columns.items()},
        "tests": {name: [x.mean, x.low, x.high] for name, x in tests.items()},
        "search": {name: {k: v for k, v in s.items() if not isinstance(v, Interval)} for name, s in searches.items()},
        "verifiers": verifiers,
        "seconds": study.seconds,
    }


def minus(x: Interval) -> Interval:
    """The interval with the other sign: from a difference in right labels to one in wrong labels."""
    return Interval(-x.mean, -x.high, -x.low)


# (claim, the test that decides it, the side of 0 or 1 on which its interval must lie; "= 0": it must contain 0)
CLAIMS = [
    *((f"C5 false negatives fall, {w}", f"C5 {w}: false negatives, N = 32 - 1", "< 0") for w in COMPLETERS),
    *((f"C5 false positives rise, {w}", f"C5 {w}: false positives, N = 32 - 1", "> 0") for w in COMPLETERS),
    *((f"C5 accuracy falls after N = 4, {w}", f"C5 {w}: accuracy, N = 32 - 4", "< 0") for w in COMPLETERS),
    *((f"C6 soft loss falls with N, {w}", f"C6 {w}: soft loss, N = 32 - 1", "< 0") for w in COMPLETERS),
    ("C6 verifiers on hard and soft labels alike, votes", "C6: votes weighted, soft - hard, N = 16", "= 0"),
    ("C6 verifiers on hard and soft labels alike, AUC", "C6: AUC within problem, soft - hard", "= 0"),
    *((f"C7 strong completer better, N = {n}", f"C7: accuracy, strong - weak, N = {n}", "> 0") for n in (1, N, 32)),
    *(
        (f"C7 MC better than {x}, {w}", f"C7: {w} MC, N = {N} - {x}", "> 0")
        for x in ("rule", "nli")
        for w in COMPLETERS
    ),
    *(
        (f"C18 search cheaper than {x}, {w}", f"C18 {w}: rollouts, search / {x}", "< 1")
        for x in SEARCHED
        for w in COMPLETERS
    ),
    *(
        (f"C18 search finds the step as often, {w}", f"C18 {w}: located rightly, search - exhaustive", "= 0")
        for w in COMPLETERS
    ),
    ("consensus: what is kept is labelled better", "consensus: accuracy of weak MC on what is kept - on all", "> 0"),
]


def verdict(intervals: Sequence[Sequence[float]], claim: str) -> str:
    """holds: all whole intervals are on the claim's side. fails: one whole interval is on the other side; for "alike",
    one interval excludes 0. undecided: everything else."""
    bound = float(claim[-1])
    below, above = [high < bound for _, _, high in intervals], [low > bound for _, low, _ in intervals]
    if claim[0] == "=":
        return "fails" if any(below) or any(above) else "holds"
    good, bad = (below, above) if claim[0] == "<" else (above, below)
    return "holds" if all(good) else "fails" if any(bad) else "undecided"


def show(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints the tables of all runs. Returns the verdicts on the claims."""
    print("mean over seeds, in percent (loss in nats):")
    for r in results:
        greedy = ", ".join(f"{k} {100 * v:.1f}%" for k, v in r["greedy_accuracy"].items())
        print(
            f"seed {r['seed']}: {r['solutions']} solutions, {r['steps']} steps, {100 * r['wrong_steps']:.1f}% wrong; "
            f"greedy accuracy {greedy}"
        )
    print(f"{'':34}{'accuracy':>30}{'false+':>8}{'false-':>8}{'loss':>7}{'labelled':>10}{'rollouts':>10}{'tokens':>8}")
    for name in results[0]["table"]:
        rows = [r["table"][name] for r in results]
        m = {k: mean(row[k] for row in rows) for k in rows[0]}
        accuracies = ", ".join(f"{100 * row['accuracy']:.1f}" for row in rows)
        print(
            f"{name:34}{accuracies:>23}{100 * m['accuracy']:7.1f}{100 * m['false_positive']:8.1f}"
            f"{100 * m['false_negative']:8.1f}{m['loss']:7.3f}{100 * m['labelled']:10.1f}"
            f"{m['rollouts_per_step']:10.2f}{m['tokens_per_step']:8.1f}"
        )
    for name in results[0]["tests"]:
        print(f"{name:64}" + "".join("{:9.3f} ({:.3f} to {:.3f})".format(*r["tests"][name]) for r in results))
    verdicts = []
    for claim, test, side in CLAIMS:
        if test in results[0]["tests"]:
            outcome = verdict([r["tests"][test] for r in results], side)
            verdicts.append({"claim": claim, "test": test, "holds_if": side, "verdict": outcome})
            print(f"{claim:64}{outcome}")
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of recipes/demo.yaml, of different seeds")
    parser.add_argument("--solutions", type=int, default=300, help="labelled solutions of each run (300)")
    parser.add_argument("--rollouts", type=int, default=32, help="rollouts for each step (32)")
    parser.add_argument("--test-problems", type=int, default=150, help="on which the two verifiers are compared (150)")
    parser.add_argument("--nli-epochs", type=float, default=8.0)
    parser.add_argument("--judge-epochs", type=float, default=4.0)
    parser.add_argument("--prm-epochs", type=float, default=3.0)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/label-quality"), help="models and labels are stored here"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "label_quality.json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    options = {k: v for k, v in vars(a).items() if k not in ("runs", "work", "out")}
    results = []
    for run in a.runs:
        study = Study(run, a.work, options)
        results.append(measure(study, a.rollouts))
        study.place.write_json("result.json", results[-1])
        study.place.close()
    result = {
        "verdicts": show(results),
        "runs": results,
    }
    keep("label_quality.py", result, a.out)


if __name__ == "__main__":
    main()

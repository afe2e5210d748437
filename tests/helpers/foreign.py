"""Records as the formats of other projects hold them, drawn from one seed."""

import functools
import random

from stepmark.data import exchange
from stepmark.types import (
    Finish,
    Grade,
    GradedSolution,
    Imported,
    LabelledSolution,
    Problem,
    Rationale,
    Solution,
    StepLabel,
    Verdict,
)

# What has broken readers: the tag in words and alone, signs, quotes, line ends, other scripts, a text like JSON.
WORDS = [
    *(
        "яблоки",
        "ки",
        "+",
        "-",
        '"x"',
        "a\r\nb",
        "π ≈ 3",
        "🍎",
        "[1, 2]",
        "<step>",
        "Step 2:",
        "\u2028",
        "שלום",
        "1,000",
    ),
    *(
        "therefore",
        "x = 2.",
        "\\frac{1}{2}",
        "the",
        "sum",
        "is",
        "7",
        "#",
        "a\tb",
        "null",
        "true",
        "=1+1",
        "ﬁ",
        "e\u0301",
    ),
]


def text(rng, most=6):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most))).strip() or "x"


def evidence(rng, kind):
    if kind == "hard":
        return rng.choice((exchange.RIGHT, exchange.WRONG))
    if kind == "share":
        return exchange.share(rng.choice((0.0, 1.0, 0.9, 1 / 3, round(rng.random(), 3), rng.random())))
    of = rng.randint(1, 8)
    return StepLabel(rng.randint(0, of), of, rng.randint(0, 2), source="monte_carlo")


def record(rng, number, *, tag=""):
    """A problem with one to three solutions. No step holds `tag`, and each says which step it is."""
    question = f"{number}. {text(rng)}?"
    reference = f"{text(rng)}\n{text(rng)}" if rng.random() < 0.5 else ""
    id = rng.choice((exchange.question_id(question), f"q{number}", f"gsm-{number}"))
    problem = Problem(id, question, rng.choice(("", "7", "\\frac{1}{2}", "3,000")), "", reference)
    solutions, grades, labels, rationales = [], [], [], []
    for sample in range(rng.randint(1, 3)):
        steps = [f"Step {i}: {text(rng)}" for i in range(1, rng.randint(1, 5) + 1)]
        if tag:
            steps = [step.replace(f" {tag}", " x") for step in steps]
        joined, spans = exchange.joined(steps, "\n")
        finish = Finish.LENGTH if rng.random() < 0.1 else Finish.STOP
        tokens = rng.choice((0, 0, 12))
        s = Solution(f"{id}#{sample}", id, sample, joined, spans, finish, tokens, -1.5 if tokens else 0.0)
        solutions.append(s)
        grade = exchange.UNSAID
        if rng.random() < 0.7:
            grade = Grade(rng.choice((Verdict.CORRECT, Verdict.INCORRECT)), "the flag in the file", "7")
            grades.append(GradedSolution(s.id, id, grade))
        known = tuple(evidence(rng, kind) for kind in [rng.choice(("hard", "share", "counts"))] * len(steps))
        if rng.random() < 0.1:
            known = (*known[:-1], exchange.NONE)
        written = (Rationale("Right.\nVerdict: Yes", "yes", "reference"),) if rng.random() < 0.2 else ()
        if rng.random() < 0.8 and any(x.known for x in known):
            labels.append(LabelledSolution(s, grade, known, written))
        elif written:
            known = (exchange.NONE,) * len(steps)
        if written:
            rationales.append(LabelledSolution(s, grade, known, written))
    extra = {"level": 3, "task": "MATH"} if rng.random() < 0.3 else {}
    return Imported(problem, tuple(solutions), tuple(grades), tuple(rationales), tuple(labels), extra)


@functools.cache
def records(count, seed=0, tag=""):
    rng = random.Random(seed)
    return [record(rng, number, tag=tag) for number in range(count)]

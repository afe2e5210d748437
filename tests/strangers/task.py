"""A third-party task: two additions. It uses only the types of Stepmark."""

from dataclasses import dataclass, field

from stepmark.types import Problem, ProblemSet, Quarantined, Solution


@dataclass(frozen=True)
class Sums:
    size: int = 12
    bad_rows: int = 0
    shift: int = 0  # another number has other questions under the same ids
    grader: str = field(default="numeric", init=False)
    steps: str = field(default="line", init=False)

    def load(self, split, limit=None):
        start = {"train": 0, "test": 1000, "far": 2000}[split]
        problems = []
        for i in range(start, start + self.size)[:limit]:
            a, b, c = (i + self.shift) % 7 + 1, i % 5 + 2, i % 3 + 3
            text = f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}\nThe answer is {a + b + c}."
            problems.append(
                Problem(f"{split}-{i}", f"Add {a} and {b} and {c} (no {i}).", str(a + b + c), "sums", text, text)
            )
        bad = (Quarantined(f"{split}.jsonl", n + 1, "field 'answer': missing") for n in range(self.bad_rows))
        return ProblemSet(tuple(problems), tuple(bad))

    def judge_steps(self, problem: Problem, solution: Solution):
        true = problem.reference.split("\n")
        flags, right = [], True
        for i, step in enumerate(solution.steps):
            right = right and i < len(true) and step == true[i]
            flags.append(right)
        return tuple(flags)

"""A third-party task whose answers can only be guessed: its form is learned in seconds, and some answers are right."""

from dataclasses import dataclass, field

from stepmark.types import Problem, ProblemSet

STARTS = {"train": 0, "dev": 1000, "test": 2000}


@dataclass(frozen=True)
class Guesses:
    size: int = 40
    grader: str = field(default="numeric", init=False)
    steps: str = field(default="line", init=False)

    def load(self, split, limit=None):
        problems = []
        for i in range(STARTS[split], STARTS[split] + self.size)[:limit]:
            answer = str(i * 7 % 3)
            text = f"It is {answer}.\nThe answer is {answer}."
            problems.append(Problem(f"{split}-{i}", f"Guess no {i}.", answer, "guesses", text, text))
        return ProblemSet(tuple(problems))

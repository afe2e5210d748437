"""A stranger's task that nobody can do but by chance: so its answers are learned in seconds, and right now and then."""

from dataclasses import dataclass, field

from stepmark.types import Problem, ProblemSet

STARTS = {"train": 0, "dev": 1000, "test": 2000}


@dataclass(frozen=True)
class Guesses:
    size: int = 40
    grader: str = field(default="numeric", init=False)
    steps: str = field(default="line", init=False)

    def load(self, split, limit=None):
        made = []
        for i in range(STARTS[split], STARTS[split] + self.size)[:limit]:
            answer = str(i * 7 % 3)
            text = f"It is {answer}.\nThe answer is {answer}."
            made.append(Problem(f"{split}-{i}", f"Guess no {i}.", answer, "guesses", text, text))
        return ProblemSet(tuple(made))

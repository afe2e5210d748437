"""A few-shot prompt: worked examples of the task before each question, for a model that was not taught to answer.

    Ann has 3 apples and buys 4. How many?      <- the prompt template with the first example's question
    3 + 4 = 7.
    The answer is 7.                            <- its reference solution
                                                <- a blank line
    Half of 10?                                 <- the question that the model is to answer

The examples are the first problems of the task's split `train` whose reference solution the task's grader reads as
right. All questions have the same examples in the same order, so an engine can read them once. A text of the model ends
where it would begin with another question (`stop`).

With a chat template the whole prompt is the user's turn. Verifiers read the question alone.

    stepmark sample --task gsm8k --model base/ --few-shot 4 --out solutions.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepmark.errors import ConfigError, DataError
from stepmark.protocols import Grader, Task
from stepmark.text.prompts import SLOT, Template
from stepmark.types import Problem

SPLIT = "train"
# What stands between two examples: the first of these that ends no worked solution early, as a stop string
BETWEEN = ("\n\n", "\n\n\n", "\n\n---\n\n")


@dataclass(frozen=True, slots=True)
class FewShot:
    """Renders a problem's question after worked examples; without examples just the question."""

    template: Template
    examples: tuple[tuple[str, str], ...] = ()  # questions with their worked solutions

    def __call__(self, problem: Problem) -> str:
        return self._before + self.template(problem)

    @property
    def text(self) -> str:
        """The whole as a template, with `{question}` at its end, to tell prompts apart."""
        return self._before + self.template.text

    @property
    def stop(self) -> tuple[str, ...]:
        """The stop string that a text needs: the beginning of another question. () without examples."""
        return (self._between + self._begins,) if self.examples else ()

    def shows(self, problem: Problem) -> bool:
        """Whether the problem is one of the examples. Such a problem must not be asked: its solution stands before."""
        return any(problem.question == question for question, _ in self.examples)

    def left(self, problems: Sequence[Problem], most: int | None = None) -> tuple[Problem, ...]:
        """The problems that can be asked, `most` of them at most. Raises DataError if there is none."""
        left = tuple([p for p in problems if not self.shows(p)][:most])
        if problems and not left:
            raise DataError(
                f"few_shot is {len(self.examples)}, and all {len(problems)} problems are its examples. Lower few_shot, "
                "or give more problems."
            )
        return left

    @property
    def _before(self) -> str:
        return "".join(
            self.template.render(question) + solution + self._between for question, solution in self.examples
        )

    @property
    def _begins(self) -> str:
        """The first line of the template, before a question; "" if a question comes first."""
        return self.template.text.partition(SLOT)[0].strip().partition("\n")[0]

    @property
    def _between(self) -> str:
        free = (x for x in BETWEEN if not any(x + self._begins in solution for _, solution in self.examples))
        return next(free, BETWEEN[-1])


def few_shot(template: Template, count: int, task: Task, grader: Grader) -> FewShot:
    """The prompt with the first `count` worked examples of the task; 0 reads nothing.

    Raises ConfigError where the task has fewer."""
    if not count:
        return FewShot(template)
    found: list[tuple[str, str]] = []
    for limit in (count, 32 * count, None):  # mostly the first are enough
        problems = task.load(SPLIT, limit).problems
        found = [(p.question, text) for p in problems if (text := _worked(p, grader))][:count]
        if len(found) == count:
            return FewShot(template, tuple(found))
        if limit is not None and len(problems) < limit:
            break
    raise ConfigError(
        f"few_shot is {count}, but of the {len(problems)} problems in the task's split {SPLIT!r} only {len(found)} "
        "have a worked solution that ends in the right answer. Give them worked solutions (the task jsonl "
        "reads them from the field `solution`), or write examples into the prompt yourself and leave few_shot out."
    )


def _worked(problem: Problem, grader: Grader) -> str:
    """The problem's reference solution, in a form in which the grader finds its answer; "" if there is none."""
    text = problem.reference.strip()
    if not text or not problem.answer:
        return ""
    grade = grader.grade(text, problem)
    if grade.answer is None and not grade.correct:  # it names no answer; one that names another is not mended
        text = f"{text}\nThe answer is {problem.answer}."
        grade = grader.grade(text, problem)
    return text if grade.correct else ""

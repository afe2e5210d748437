"""What the models of a run learn from: examples for its verifiers, and words that a new tokenizer has to know.

stepmark run recipes/demo.yaml
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stepmark.data import work_units
from stepmark.errors import DataError
from stepmark.plugins import registry
from stepmark.run.context import RunContext
from stepmark.run.recipe import Recipe
from stepmark.run.schema import Judge, Labeler
from stepmark.run.schema import Verifier as VerifierSettings
from stepmark.stages.label import distinct, references_among
from stepmark.text import steps
from stepmark.text.prompts import Template
from stepmark.types import REFERENCE, Grade, LabelledSolution, Problem, Solution, StepLabel, Unlabelled, Verdict

Pair = tuple[Problem, Solution]
Example = tuple[Problem, LabelledSolution]

SHOWN = 5_000  # problems whose verifications a new tokenizer is shown
REPEATED = 1_000  # times that it is shown what a verifier always writes, so that these words become tokens


class TrainingData:
    """What there is to learn in one run."""

    def __init__(self, recipe: Recipe, on: RunContext) -> None:
        self.recipe, self.on = recipe, on

    def pairs(self, labeler: Labeler | None) -> list[Pair]:
        """The training solutions that a labeller works on, in an order that no parallel run can change."""
        pairs = work_units.pair(list(self.on.problems("train")), self.on.solutions("train"))
        return distinct(pairs) if labeler is None or labeler.distinct else pairs

    def examples(self) -> list[Example]:
        """What all verifiers learn from: solutions with their grades, step labels and rationales, as far as there are
        any; in the order of `pairs`."""
        if self.recipe.label is not None:
            labelled = {found.key: found for found in self.on.labels}
            found = [(p, labelled[s.id]) for p, s in self.pairs(self.recipe.label) if s.id in labelled]
        else:
            grades = {g.solution_id: g.grade for g in self.on.grades("train")}
            nothing = StepLabel(0, 0, source="none")
            found = [
                (p, LabelledSolution(s, grades[s.id], (nothing,) * len(s.spans)))
                for p, s in self.pairs(self.recipe.rationales)
                if s.id in grades
            ]
        return self.told(found, "")

    def told(self, examples: list[Example], writer: str) -> list[Example]:
        """The examples with what one of the recipe's writers wrote of them."""
        written = {x.key: x.rationales for x in self.on.rationales(writer)}
        return [(p, replace(x, rationales=written.get(x.key, () if writer else x.rationales))) for p, x in examples]

    def of_judge(self, settings: Judge) -> list[Problem]:
        """What a judge learns from: as problems whose question is what a labeller would ask it, and whose demonstration
        is what it should say. Raises DataError where there is nothing of the kind."""
        grades = {g.solution_id: g.grade for g in self.on.grades("train")}
        first = {p.id for p in list(self.on.problems("train"))[: settings.problems]}
        found: dict[tuple[str, str], None] = {}
        for labeler in self.recipe.writers.values():
            teach = getattr(labeler.load(), "lessons", None)
            if teach is None:
                continue
            pairs = [(p, s) for p, s in self.pairs(labeler) if p.id in first]
            references = references_among(pairs, lambda _, s: grades.get(s.id))
            units = [Unlabelled(p, s, tuple(references(p))) for p, s in pairs]
            found.update(dict.fromkeys(teach(units, self.on.tools)))
        if not found:
            raise DataError("judge.train: no training solution could be verified, so there is nothing to learn from.")
        return [Problem(f"lesson-{i}", asked, "", "", said, said) for i, (asked, said) in enumerate(found)]

    def references(self, settings: VerifierSettings) -> list[Example]:
        """Worked solutions of problems that the generator learned from, for a verifier that also learns to write
        correct solutions. Raises DataError where the task has none."""
        if not settings.references:
            return []
        found = [
            (p, LabelledSolution(s, Grade(Verdict.CORRECT, "the task's own solution", p.answer), labels))
            for p in self._read(settings.references)
            if p.reference
            for s in [self._solution(p, p.reference)]
            for labels in [(StepLabel(0, 0, source=REFERENCE),) * len(s.spans)]
        ]
        if not found:
            raise DataError("references: the generator's problems come without worked solutions; leave it out.")
        return found

    def replay(self, settings: VerifierSettings) -> list[Example]:
        """The last demonstrations that the generator learned from, right or wrong, as texts to generate: for a verifier
        that starts from it and would forget what its own problems are too short to show."""
        generator = self.recipe.generator
        if not settings.replay or generator is None or self.on.task is None:
            return []
        read = self.on.task.load(generator.split, generator.problems).problems[-settings.replay :]
        found = []
        for p in read:
            s = self._solution(p, p.demonstration or p.reference)
            labels = (StepLabel(0, 0, source=REFERENCE),) * len(s.spans)
            found.append((p, LabelledSolution(s, Grade(Verdict.UNGRADABLE, "read by the generator"), labels)))
        return found

    def vocabulary(self) -> Iterator[str]:
        """Texts that a tokenizer has to know besides the generator's: of verifications, where the recipe has any."""
        write = self.on.oracle
        if self.recipe.writers and write is not None:
            read = self._read(SHOWN)
            for p, other in zip(read, [*read[1:], *read[:1]], strict=True):
                # What a verification says of errors has to be known too: another problem's solution is wrong here.
                for of in (p, other):
                    yield "\n" + write(p, self._solution(p, of.demonstration or of.reference))
        for name, settings in self.recipe.verifiers.items():
            if hasattr(registry.find("verifier", settings.kind), "corpus"):
                path = "model" if "path" in registry.options("verifier", settings.kind) else ""
                yield from [text for text in self.on.trainee(name, path).corpus() for _ in range(REPEATED)]

    def texts(self, examples: list[Example]) -> list[str]:
        """What a verifier with a base of its own reads and writes."""
        context = Template(self.recipe.prompt)
        read = [context(p) + x.solution.text for p, x in examples]
        return read + ["\n" + r.text for _, x in examples for r in x.rationales if r.kept]

    def _read(self, most: int) -> tuple[Problem, ...]:
        """The first problems of those that the generator learned from, without exercises that have no answer."""
        settings = self.recipe.generator
        if self.on.task is None or settings is None:
            return ()
        found = self.on.task.load(settings.split, min(most, settings.problems or most)).problems
        return tuple(p for p in found if p.answer)

    def _solution(self, problem: Problem, text: str) -> Solution:
        return Solution(f"{problem.id}#{REFERENCE}", problem.id, 0, text, steps.split(text, self.on.steps))

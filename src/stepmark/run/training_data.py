"""The training data of a run: examples for verifiers and judge, and texts for new tokenizers.

stepmark run recipes/demo.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stepmark.data import work_units
from stepmark.data.no_signal import shorten
from stepmark.data.outcome_counts import ANSWERS, QUOTED, most_frequent
from stepmark.data.store import replacing
from stepmark.errors import DataError
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.run.context import RunContext
from stepmark.run.schema import Base, Judge, Labeler
from stepmark.run.schema import Verifier as VerifierSettings
from stepmark.stages.label import distinct, references_among
from stepmark.text import steps
from stepmark.text.prompts import Template
from stepmark.types import REFERENCE, Grade, LabelledSolution, Problem, Solution, StepLabel, Unlabelled, Verdict

Pair = tuple[Problem, Solution]
Example = tuple[Problem, LabelledSolution]

SHOWN = 5_000  # problems whose verifications a new tokenizer learns from
REPEATED = 1_000  # times that the fixed words of a verifier are repeated in them, so that they become tokens


class TrainingData:
    """Examples and texts of one run, from the records of its stages."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.recipe = context, context.recipe

    def pairs(self, labeler: Labeler | None) -> list[Pair]:
        """The training solutions that a labeler labels, in an order that does not depend on the number of workers."""
        pairs = work_units.pair(list(self.context.problems("train")), self.context.solutions("train"))
        return distinct(pairs) if labeler is None or labeler.distinct else pairs

    def need_answers(self) -> None:
        """Raises DataError where no training solution has an answer that the grader can read. Nothing can be learned
        from them, and labelling them would cost much."""
        grades = list(self.context.grades("train"))
        if self.recipe.label is None and len(self.context.labels):  # they came with a file
            return
        if not grades or any(g.grade.correct or g.grade.answer is not None for g in grades):
            return
        place, count = most_frequent([g.grade.reason for g in grades], QUOTED)
        one = next((s.text for s in self.context.solutions("train") if s.id == grades[place].key), "")
        raise DataError(
            f"none of the {len(grades)} graded training solutions has an answer that the grader could read ({count} of "
            f"these because: {grades[place].grade.reason}). One text: {shorten(one)!r}. {ANSWERS}"
        )

    def examples(self) -> list[Example]:
        """The examples of all verifiers: solutions with their grades and, where the recipe or the imported file has
        them, step labels and rationales; in the order of `pairs`."""
        labels = {labelled.key: labelled for labelled in self.context.labels}
        if self.recipe.label is not None:
            examples = [(p, labels[s.id]) for p, s in self.pairs(self.recipe.label) if s.id in labels]
        else:
            grades = {g.solution_id: g.grade for g in self.context.grades("train")}
            pairs = self.pairs(self.recipe.rationales)
            examples = [
                (p, replace(labels[s.id], grade=grades[s.id]) if s.id in labels else unlabelled(s, grades[s.id]))
                for p, s in pairs
                if s.id in grades
            ]
        return self.with_rationales(examples, "")

    def with_rationales(self, examples: list[Example], writer: str) -> list[Example]:
        """The examples with the rationales of one of the recipe's writers."""
        rationales = {x.key: x.rationales for x in self.context.rationales(writer)}
        return [(p, replace(x, rationales=rationales.get(x.key, () if writer else x.rationales))) for p, x in examples]

    def for_judge(self, settings: Judge) -> list[Problem]:
        """The examples of a judge, as problems: the question is the prompt of a labeler, and the demonstration is the
        right answer to it. Raises DataError where there are none."""
        grades = {g.solution_id: g.grade for g in self.context.grades("train")}
        ids = {p.id for p in list(self.context.problems("train"))[: settings.problems]}
        demonstrations: dict[tuple[str, str], None] = {}
        for labeler in self.recipe.writers.values():
            demonstrate = getattr(labeler.load(), "demonstrations", None)
            if demonstrate is None:
                continue
            pairs = [(p, s) for p, s in self.pairs(labeler) if p.id in ids]
            references = references_among(pairs, lambda _, s: grades.get(s.id))
            units = [Unlabelled(p, s, tuple(references(p))) for p, s in pairs]
            demonstrations.update(dict.fromkeys(demonstrate(units, self.context.tools)))
        if not demonstrations:
            raise DataError(
                "judge.train: no training solution could be verified, so the judge has no examples to learn from."
            )
        return [
            Problem(f"lesson-{i}", question, "", "", answer, answer)
            for i, (question, answer) in enumerate(demonstrations)
        ]

    def references(self, settings: VerifierSettings) -> list[Example]:
        """Reference solutions of the generator's training problems, for a verifier that also learns to write correct
        solutions. Raises DataError where the task has none."""
        if not settings.references:
            return []
        examples = []
        for p in self._generator_problems(settings.references):
            if p.reference:
                s = self._solution(p, p.reference)
                grade = Grade(Verdict.CORRECT, "the task's own solution", p.answer)
                examples.append((p, LabelledSolution(s, grade, _reference_labels(s))))
        if not examples:
            raise DataError("references: the generator's problems have no reference solutions; leave it out.")
        return examples

    def replay(self, settings: VerifierSettings) -> list[Example]:
        """The generator's last training demonstrations, correct or not, as texts to generate. They keep a verifier that
        starts from the generator from forgetting long solutions, where its own examples are short."""
        generator = self.recipe.generator
        if not settings.replay or generator is None or self.context.task is None:
            return []
        examples = []
        for p in self.context.task.load(generator.split, generator.problems).problems[-settings.replay :]:
            s = self._solution(p, p.demonstration or p.reference)
            grade = Grade(Verdict.UNGRADABLE, "read by the generator")
            examples.append((p, LabelledSolution(s, grade, _reference_labels(s))))
        return examples

    def base_checkpoint(self, name: str, base: Base, texts: Sequence[str]) -> str:
        """The path of the checkpoint to start from. A new model is created here, with a tokenizer that learns from
        `texts`."""
        if base.init is None:
            assert base.path is not None
            return base.path
        path = self.context.path / "bases" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as place:
                checkpoints.create(place, [*texts, *self.tokenizer_texts()], base.init, self.recipe.seed)
        return str(path)

    def verifier_texts(self, examples: list[Example]) -> list[str]:
        """Texts for the tokenizer of a verifier with its own base: those that it reads and writes."""
        context = Template(self.recipe.prompt)
        questions = [context(p) + x.solution.text for p, x in examples]
        return questions + ["\n" + r.text for _, x in examples for r in x.rationales if r.kept]

    def tokenizer_texts(self) -> Iterator[str]:
        """Texts that every new tokenizer of the run learns from: verifications, where the recipe has any, and the fixed
        words of verifiers."""
        write = self.context.oracle
        if self.recipe.writers and write is not None:
            problems = self._generator_problems(SHOWN)
            for p, next_problem in zip(problems, [*problems[1:], *problems[:1]], strict=True):
                # The words for errors are needed too, so one solution is that of another problem, which is wrong here.
                for source in (p, next_problem):
                    yield "\n" + write(p, self._solution(p, source.demonstration or source.reference))
        for name, settings in self.recipe.verifiers.items():
            if hasattr(registry.find("verifier", settings.kind), "corpus"):
                path = "model" if "path" in registry.options("verifier", settings.kind) else ""
                yield from [text for text in self.context.trainee(name, path).corpus() for _ in range(REPEATED)]

    def _generator_problems(self, most: int) -> tuple[Problem, ...]:
        """The first of the generator's training problems, without exercises that have no answer."""
        settings = self.recipe.generator
        if self.context.task is None or settings is None:
            return ()
        problems = self.context.task.load(settings.split, min(most, settings.problems or most)).problems
        return tuple(p for p in problems if p.answer)

    def _solution(self, problem: Problem, text: str) -> Solution:
        return Solution(f"{problem.id}#{REFERENCE}", problem.id, 0, text, steps.split(text, self.context.steps))


def unlabelled(solution: Solution, grade: Grade) -> LabelledSolution:
    """A graded solution without step labels, an example for outcome verifiers."""
    return LabelledSolution(solution, grade, (StepLabel(0, 0, source="none"),) * len(solution.spans))


def _reference_labels(solution: Solution) -> tuple[StepLabel, ...]:
    return (StepLabel(0, 0, source=REFERENCE),) * len(solution.spans)

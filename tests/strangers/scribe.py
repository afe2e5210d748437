"""A third-party labeler that writes verifications: the task's own, or several that a completer draws."""

from dataclasses import dataclass

from stepmark.types import LabelledSolution, Prompt, Rationale, StepLabel


@dataclass(frozen=True)
class Scribe:
    draws: int = 0  # rollouts for each solution; 0: the task writes one

    @property
    def uses(self):
        return frozenset({"completer"} if self.draws else {"oracle"})

    def label(self, units, tools):
        for unit in units:
            solution, context = unit.solution, tools.context(unit.problem)
            if self.draws:
                prompt = Prompt(f"{solution.id}@verification", context, solution.text, self.draws)
                texts = [r.text for r in sorted(tools.completer.sample([prompt], tools.params), key=lambda r: r.index)]
            else:
                texts = [tools.oracle(unit.problem, solution)]
            grade = tools.grader.grade(solution.text, unit.problem)
            verdict = "yes" if grade.correct else "no"
            no_labels = (StepLabel(0, 0, source="none"),) * len(solution.spans)
            rationales = tuple(Rationale(text, verdict, "unguided" if self.draws else "oracle") for text in texts)
            yield LabelledSolution(solution, grade, no_labels, rationales)

"""A stranger's labeller that writes verifications: the task's own, or as many as a completer draws."""

from dataclasses import dataclass

from stepmark.types import LabelledSolution, Prompt, Rationale, StepLabel


@dataclass(frozen=True)
class Scribe:
    draws: int = 0  # rollouts for each solution; 0 lets the task write

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
            said = "yes" if grade.correct else "no"
            nothing = (StepLabel(0, 0, source="none"),) * len(solution.spans)
            made = tuple(Rationale(text, said, "unguided" if self.draws else "oracle") for text in texts)
            yield LabelledSolution(solution, grade, nothing, made)

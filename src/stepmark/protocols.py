"""One Protocol per role. A plug-in is one file with one public class that has these methods; no base class.

Rules for every role: the constructor takes plain settings and does no I/O (so that an object can be
printed, compared, and sent to a worker process, which loads what it needs on first use).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

from stepmark.types import (
    Grade,
    Imported,
    LabelledSolution,
    Place,
    Problem,
    ProblemSet,
    Prompt,
    Quarantined,
    Reward,
    Rollout,
    SamplingParams,
    Solution,
    Unlabelled,
    Verification,
)

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@runtime_checkable
class Task(Protocol):
    """Problems with checkable answers."""

    grader: str  # name of the grader that reads its answers
    steps: str  # name of the way its solutions split into steps (see text/steps.py)

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of `split`, the same at every call. Bad rows are quarantined.
        Raises ConfigError for a split that the task doesn't have."""
        ...


@runtime_checkable
class StepOracle(Protocol):
    """A task that can also tell, exactly, which steps are right."""

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """For each step whether it is right given the problem: one flag per step. A step that follows
        from a wrong earlier value is wrong too: its prefix can't lead to the answer."""
        ...


@runtime_checkable
class RationaleOracle(Protocol):
    """A task that can also write a correct verification of any solution, however wrong."""

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """The verification, in lines, without a verdict line. It works from the question and the solution alone, as a
        verifier at work has to: it never looks at the reference answer or solution."""
        ...


@runtime_checkable
class Grader(Protocol):
    """Compares the answer in a text with the reference. The only role that sees the reference."""

    def grade(self, text: str, problem: Problem) -> Grade:
        """Never raises for bad text: what can't be checked is UNGRADABLE, with the reason."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Continues text. A generator and a completer are both this."""

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """`prompt.n` independent rollouts of each prompt, yielded as they finish, in any order.
        Raises BackendError when the model can't be used at all; a bad rollout is data, not a raise."""
        ...


@runtime_checkable
class Chooser(Protocol):
    """A backend that can also say how likely a few ways to go on are: what generative verifiers read."""

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Per text, the probability that it goes on with each choice, given that it goes on with one of them. All
        tokens of a choice count. Raises BackendError when it can't be found out."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What a labeller may work with. Each asks for what it needs and says clearly when that is missing."""

    grader: Grader
    context: Callable[[Problem], str]  # renders a problem's question
    params: SamplingParams  # how rollouts are drawn
    completer: Backend | None = None  # continues step prefixes
    judge: Backend | None = None  # marks steps when asked to in words
    steps: str = "line"  # how the solutions were split into steps (text/steps.py), and how others are to be
    oracle: Callable[[Problem, Solution], str] | None = None  # writes verifications: the task's `rationale`


@runtime_checkable
class Labeler(Protocol):
    """Labels every step of solutions without a human. An attribute `uses` names what it needs of "completer", "judge",
    "references" (Unlabelled.references) and "oracle", so that a missing one is found before the work.
    Ids of its prompts are "<solution id>@<what is asked>", or a resumed run can't find what it paid for."""

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """One LabelledSolution per unit, in any order. Labels must not depend on what else is in `units`."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """Scores solutions without seeing the reference answer. An attribute `per_step` is True where each step gets a
    score of its own. It may also have `verify_many`, which takes (question, solutions) pairs and gives all their
    verifications in order, where several questions at once are faster."""

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order."""
        ...


@runtime_checkable
class RewardSource(Protocol):
    """Says what attempts of a policy earn. One that rests on a verifier sees no reference answer; one that rests on
    gold answers does."""

    def reward(self, attempts: Sequence[tuple[Problem, Solution]]) -> list[Reward]:
        """One reward per attempt, in order, with as many step rewards as the solution has steps. A check that failed
        is a lost reward, never a low one. An attempt that ran out of tokens (Finish.LENGTH) earns nothing here: what
        becomes of it is the policy's settings to say."""
        ...


@runtime_checkable
class Format(Protocol):
    """Reads solutions that somebody else drew."""

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """The file's problems with their solutions, and the rows that can't be used, in the file's order.
        Raises DataError when there is no such file."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A format that labelled solutions can be written in. One file may be both this and a Format."""

    def write(
        self, rows: Iterable[tuple[Problem, LabelledSolution]], path: Place, estimate: Literal["hard", "soft"]
    ) -> None:
        """All rows, whole or not at all; every step has a label. Holds one row at a time in memory."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Runs a function over units of work, here or elsewhere."""

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
        """Results as they come, in any order. `work` must be picklable. The first exception ends it,
        after the results already made have been yielded."""
        ...

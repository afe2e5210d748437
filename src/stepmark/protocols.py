"""The protocols of the plug-ins, one per role. A plug-in is one file with one public class that has these methods; it
needs no base class.

A rule for every role: the constructor takes plain settings and does no I/O. So an object can be printed, compared, and
sent to a worker process, which loads models and files on first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

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

    grader: str  # name of the grader of its answers
    steps: str  # how its solutions are split into steps: a name from text/steps.py

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of `split`, the same at every call. Bad rows are quarantined. Raises ConfigError
        for an unknown split."""
        ...


@runtime_checkable
class StepOracle(Protocol):
    """A task that also knows exactly which steps are right."""

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """One flag per step: whether it is right, given the problem. A step that follows from a wrong earlier value is
        wrong too, because its prefix can't lead to the answer."""
        ...


@runtime_checkable
class RationaleOracle(Protocol):
    """A task that can also write a correct verification of any solution, right or wrong."""

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """The verification, in lines, without a verdict line. It uses only the question and the solution, like a
        verifier: never the reference answer or solution."""
        ...


@runtime_checkable
class Grader(Protocol):
    """Compares the answer in a text with the reference. The only role that sees the reference."""

    def grade(self, text: str, problem: Problem) -> Grade:
        """The grade of a text. Never raises for bad text: a text that can't be checked is UNGRADABLE, with the
        reason."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Continues texts. Generator, completer and judge are roles of a backend. One that runs a model in this process may
    count tokens as they are written (data/token_meter.py)."""

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """`prompt.n` independent rollouts of each prompt, yielded as they finish, in any order. Raises BackendError if
        the model can't be used at all; a rollout that failed is yielded as data instead."""
        ...


@runtime_checkable
class Chooser(Protocol):
    """A backend that also gives the probabilities of a few continuations. Generative verifiers read them."""

    def choice_probs(self, texts: Sequence[str], choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Per text, the probability that it continues with each choice, given that it continues with one of them. All
        tokens of a choice count. Raises BackendError if the backend can't compute it."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """The objects that a labeler may use. A labeler raises ConfigError if one that it needs is missing."""

    grader: Grader
    context: Callable[[Problem], str]  # renders a problem's question
    params: SamplingParams  # how rollouts are sampled
    completer: Backend | None = None  # continues step prefixes
    judge: Backend | None = None  # answers prompts: marks steps, or writes rationales
    steps: str = "line"  # how the solutions were split into steps (text/steps.py); split other texts in the same way
    oracle: Callable[[Problem, Solution], str] | None = None  # writes verifications: the task's `rationale`


@runtime_checkable
class Labeler(Protocol):
    """Labels every step of solutions without a human. An attribute `uses` names which of "completer", "judge",
    "references" (Unlabelled.references) and "oracle" it needs, so that a missing one is reported before the work.
    The ids of its prompts must be "<solution id>@<purpose>"; otherwise a resumed run can't find its stored rollouts."""

    def label(self, units: Sequence[Unlabelled], tools: Tools) -> Iterator[LabelledSolution]:
        """One LabelledSolution per unit, in any order. The labels of a unit must not depend on the other `units`."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """Scores solutions without seeing the reference answer. An attribute `per_step` is True if each step gets a score
    of its own, and `remote` if a server does the work, which answers many requests at once. A verifier may also have
    `verify_many`, which takes (question, solutions) pairs and returns all their verifications in order, if several
    questions together are faster."""

    def verify(self, question: str, solutions: Sequence[Solution]) -> list[Verification]:
        """One verification per solution, in order. All scores are numbers from 0 to 1, since votes are weighted by
        them; others are refused, but for the rewards of a policy. A solution that can't be scored gets another outcome
        than SCORED."""
        ...


@runtime_checkable
class Reading(Protocol):
    """How the scores of one family of public verifiers are read. An attribute `signs` says how a checkpoint of the
    family is known (models/detection.py), `head` is the kind of model, as of checkpoints.load_model, and `per_step` is
    True if each step gets a score."""

    def encode(self, tokenizer: Any, question: str, solution: Solution) -> Any:
        """The text as the family was trained on it, with a place for each step, or one in all (encoding.Encoded). What
        users wrote is encoded as plain text, without the family's tags. Raises EncodingError for another tokenizer."""
        ...

    def read(self, path: str, model: Any, tokenizer: Any, batch: Any) -> Any:
        """A tensor with a score from 0 to 1 for each place of a batch. `path` is the checkpoint's directory."""
        ...


@runtime_checkable
class RewardSource(Protocol):
    """Gives the rewards of a policy's attempts. A source that uses a verifier sees no reference answer; a source that
    uses gold answers does."""

    def reward(self, attempts: Sequence[tuple[Problem, Solution]]) -> list[Reward]:
        """One reward per attempt, in order, with as many step rewards as the solution has steps. A failed check gives a
        lost reward, never a low one. An attempt that ran out of tokens (Finish.LENGTH) gets no reward here; the
        policy's settings decide about it."""
        ...


@runtime_checkable
class Format(Protocol):
    """Reads solutions from files of other projects. A format may also have `sniff(row)`, a static method that says
    whether a row's fields are its own; `stepmark convert` then recognises its files."""

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """The file's problems with their solutions, and the rows that can't be used, in the file's order. Two with the
        same id are one problem. Raises DataError if the file does not exist."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A format in which problems with solutions can be written. One class may be a Writer and a Format. An attribute
    `holds` names what its rows have a place for (data/exchange.py); the rest is counted as lost by the caller. An
    option `estimate` of the class chooses how step labels are written: "hard", "soft", or "auto", as the evidence
    is."""

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """The rows of one problem, all with the same fields. What keeps a solution from being written is counted in
        `lost`, in words for the user."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Maps a function over units of work, in this process or in others."""

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
        """Results as they come, in any order. `work` must be picklable. The first exception ends the map, after all
        results made before it have been yielded."""
        ...


@runtime_checkable
class Streamer(Protocol):
    """An executor that also passes on the results of a unit while the unit is in progress. With one that does not, a
    kill loses the units that were in progress."""

    def stream(self, work: Callable[[Unit], Iterable[Result]], units: Iterable[Unit]) -> Iterator[Result]:
        """The results of all units, in any order, each at most about a second after `work` yielded it. A unit's results
        keep their order. Otherwise as `map`: an exception comes after all results that were yielded before it."""
        ...

"""The nouns of Stepmark: every value that crosses from one stage to the next.

Frozen dataclasses over the standard library only, so that each can be stored as one JSON line, hashed,
sent to another process, and read by a person. A stage takes these and returns these; nothing else.

    Task -> Problem --sample--> Solution --grade--> Grade
                                   |--label--> LabelledSolution --train--> checkpoint
                                   '--score--> Verification --rank--> Selection

`key` on a stored type names the record once and for all: a resumed run skips the keys that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

REFERENCE = "reference"  # source of the labels of a solution that is there to be generated, and that nobody verified


class Verdict(StrEnum):
    """What a grader found. UNGRADABLE is a check that could not be made; it is never a wrong answer."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNGRADABLE = "ungradable"


class Finish(StrEnum):
    """Why a text ended: STOP at an end token or stop string, LENGTH when the token budget ran out, FAILED when
    the backend could not get it. Only a rollout can be FAILED; it never becomes a solution, nor a wrong answer."""

    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"


class Outcome(StrEnum):
    """How a verification went. Only SCORED carries scores that may be compared."""

    SCORED = "scored"
    UNPARSED = "unparsed"
    TRUNCATED = "truncated"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer."""

    id: str  # unique within its task and split
    question: str
    answer: str  # reference answer, as the task's grader reads it
    task: str  # name of the task it came from
    reference: str = ""  # a correct worked solution; "" when the data has none
    demonstration: str = ""  # what a generator learns from; differs from `reference` only where a task plants errors

    @property
    def key(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be used, and why. The rows around it go on."""

    file: str
    line: int  # 1-based
    reason: str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """What a task loaded: the problems, and the rows that it had to leave out."""

    problems: tuple[Problem, ...]
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text to be continued. `context` and `prefix` are kept apart so that a chat backend can put the
    first in the user's turn and open the assistant's turn with the second; others join them."""

    id: str  # names the unit of work; rollouts carry it back
    context: str  # the rendered question
    prefix: str = ""  # the solution so far; "" asks for a whole solution
    n: int = 1  # independent continuations wanted
    first: int = 0  # index of the first of them: more can be asked for later without repeating any

    @property
    def text(self) -> str:
        return self.context + self.prefix


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Each rollout's randomness comes from (seed, prompt id, index) alone, not from
    what else happens to be in the batch."""

    max_tokens: int = 256  # budget of new tokens per rollout
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # in (0, 1]; 1 keeps the whole distribution
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    seed: int = 0
    choices: tuple[str, ...] = ()  # where a stop string ended a text: how likely is each of these to follow it?


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled continuation of a prompt."""

    prompt_id: str
    index: int  # 0 <= index: which of the prompt's independent continuations this is
    text: str  # the continuation alone, stop string and end token removed
    finish: Finish
    tokens: int  # tokens generated, the end token included
    logprob: float = 0.0  # sum over those tokens of log p at temperature 1, in nats
    prompt_tokens: int = 0  # prompt tokens charged for it; rollouts of one request share them, so one carries them all
    reason: str = ""  # for FAILED: what happened, for a person
    # Per `SamplingParams.choices`, its probability right after the stop string, given that one of them follows; empty
    # where no stop string ended the text, or the backend can't say without asking again (`Chooser`)
    choices: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.prompt_id}#{self.index}"


@dataclass(frozen=True, slots=True)
class Solution:
    """A full attempt at a problem: the text once, its steps as spans of it."""

    id: str  # unique within a run: "<problem id>#<sample>"
    problem_id: str
    sample: int  # which of the problem's samples; lower ones were drawn first
    text: str
    spans: tuple[tuple[int, int], ...]  # one [start, end) per step, in order, together the whole text
    finish: Finish = Finish.STOP
    tokens: int = 0  # tokens generated for it; 0 when it was imported
    logprob: float = 0.0  # sum over those tokens, in nats

    @property
    def key(self) -> str:
        return self.id

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps' texts without the white space that separates them."""
        return tuple(self.text[a:b].strip() for a, b in self.spans)


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's finding about one text."""

    verdict: Verdict
    reason: str  # one line, for a person
    answer: str | None = None  # what was read out of the text, normalised; None when nothing was found

    @property
    def correct(self) -> bool:
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, slots=True)
class GradedSolution:
    """A solution's grade, stored beside the solution under the same key."""

    solution_id: str
    problem_id: str
    grade: Grade

    @property
    def key(self) -> str:
        return self.solution_id


@dataclass(frozen=True, slots=True)
class Imported:
    """A problem with solutions that somebody else drew, as a data format reads them."""

    problem: Problem
    solutions: tuple[Solution, ...]  # by rising `sample`
    grades: tuple[GradedSolution, ...] = ()  # one per solution where the data says what is correct; else none
    rationales: tuple[LabelledSolution, ...] = ()  # those that came with verifications; without step labels


@dataclass(frozen=True, slots=True)
class StepLabel:
    """The evidence about one step. Estimates derive from the counts (Math-Shepherd, section 3.3).

    Truncated, ungradable and failed rollouts say nothing about the step: they leave the denominator. A label whose
    source begins with "inferred" rests on another step's evidence and stands for one case, drawn by nobody."""

    correct: int  # rollouts that reached the reference answer
    gradable: int  # rollouts that ended and could be graded, right or wrong
    truncated: int = 0  # rollouts that ran out of tokens
    ungradable: int = 0  # rollouts that ended but could not be graded
    source: str = "monte_carlo"  # how the evidence was obtained: a labeller's name, "oracle", "outcome", "inferred:..."
    failed: int = 0  # rollouts that the backend could not get

    @property
    def inferred(self) -> bool:
        """Whether it follows from another step's evidence instead of its own."""
        return self.source.startswith("inferred")

    @property
    def known(self) -> bool:
        """Whether there is any evidence at all."""
        return self.gradable > 0

    @property
    def hard(self) -> float:
        """y_HE: 1.0 if any rollout was correct, else 0.0. Raises ValueError without evidence."""
        self._need_evidence()
        return 1.0 if self.correct else 0.0

    @property
    def soft(self) -> float:
        """y_SE: the share of gradable rollouts that were correct. Raises ValueError without evidence."""
        self._need_evidence()
        return self.correct / self.gradable

    def _need_evidence(self) -> None:
        if not self.gradable:
            raise ValueError("a step without a gradable rollout has no label: check `known` first")


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A solution whose steps are to be labelled, with what else is known about its problem."""

    problem: Problem
    solution: Solution
    references: tuple[str, ...] = ()  # correct worked solutions of the problem: the data's own first, then sampled ones


@dataclass(frozen=True, slots=True)
class Rationale:
    """A written verification of a solution, ending in a verdict, from which a generative verifier may learn."""

    # The verification alone, without the question and the solution. Where it is kept it ends in the line that asks for
    # the verdict (prompts.VERDICT) and answers it; for a failed one this says what happened
    text: str
    said: str  # the verdict that was read from it: "yes", "no" or "unparsed"
    source: str  # who wrote it: "oracle" (the task itself), "unguided" or "reference" (a model, without or with one)
    lost: str = ""  # why nothing learns from it: unasked, failed, truncated, unparsed, mismatch or leak; "" if kept
    rewritten: bool = False  # words that leaned on the reference were taken out

    @property
    def kept(self) -> bool:
        """Whether something may learn from it."""
        return not self.lost


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution with one label per step, and the grade of its own final answer."""

    solution: Solution
    grade: Grade
    labels: tuple[StepLabel, ...]  # as many as the solution has steps
    rationales: tuple[Rationale, ...] = ()  # written verifications of it, those that were lost included

    @property
    def key(self) -> str:
        return self.solution.id


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verifier, which never saw the reference answer, makes of one solution."""

    solution_id: str
    scores: tuple[float, ...]  # in [0, 1]: one per step, or one in all for an outcome verifier
    score: float  # the solution's score under `aggregate`; 0.0 unless outcome is SCORED
    aggregate: str  # how `score` came from `scores`: min, prod, mean, last
    outcome: Outcome = Outcome.SCORED
    reason: str = ""  # for any outcome but SCORED: what happened, for a person
    rationales: tuple[str, ...] = ()  # what a generative verifier wrote
    votes: tuple[float, ...] = ()  # p(Yes) after each rationale, in the order drawn; empty for one-pass verifiers
    tokens: int = 0  # tokens that went through a model for it: read once and written; 0 where no model was used

    @property
    def key(self) -> str:
        return self.solution_id


@dataclass(frozen=True, slots=True)
class Reward:
    """What a policy's attempt earns (Math-Shepherd, section 3.5): a number for each step and one for the whole."""

    solution_id: str
    steps: tuple[float, ...]  # one per step of the solution, in order; each is given at its step's last token
    end: float = 0.0  # given at the attempt's very last token, after all steps
    lost: str = ""  # why it can't be known, for a person: nothing may be learned from the attempt; "" where it is known

    @property
    def total(self) -> float:
        """All that the attempt earns, undiscounted."""
        return sum(self.steps) + self.end


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution as a decision rule sees it: its answer, its scores, whether it may be chosen."""

    solution_id: str
    answer: str | None  # normalised; None when none was found
    finished: bool = True  # False for a truncated solution, which must lose to any that ended
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # verifier name -> its scores


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer chosen for a problem, and why."""

    problem_id: str
    answer: str | None  # None when no candidate had an answer
    solution_id: str | None  # a solution that gives this answer, the best-scored one
    method: str  # e.g. "self_consistency+prm"
    n: int  # candidates considered
    weight: float  # what the method maximised: a score, a number of votes, a sum of scores
    share: float  # weight over the sum of all answers' weights (1 when there is one answer)

    @property
    def key(self) -> str:
        return f"{self.problem_id}|{self.method}|{self.n}"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line about work under way, for whoever shows it."""

    stage: str
    done: int
    total: int  # 0 where it isn't known
    seconds: float  # since the stage began
    note: str = ""


Place = str | Path  # where a file or a directory is

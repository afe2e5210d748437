"""The data types that stages take and return.

They are frozen dataclasses of standard Python types, so that each can be stored as one JSON line, hashed, sent to
another process, and read by a person. A stage takes and returns nothing else.

    Task -> Problem --sample--> Solution --grade--> Grade
                                   |--label--> LabelledSolution --train--> checkpoint
                                   '--score--> Verification --rank--> Selection

The `key` of a stored type identifies the record and never changes: a resumed run skips the keys that are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

# Source of the labels of a solution that is only an example for generating correct solutions; nobody verified it.
REFERENCE = "reference"
# Sources of labels that a file of another project brought: a verdict, or counts of cases; and a share without counts.
IMPORTED, SHARE = "imported", "imported:share"


class Verdict(StrEnum):
    """A grader's verdict. UNGRADABLE means that the answer could not be checked; it is never a wrong answer."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNGRADABLE = "ungradable"


class Finish(StrEnum):
    """Why a text ended: STOP at an end token or stop string, LENGTH when its tokens ran out, FAILED when the backend
    could not get it. Only a rollout can be FAILED; it never becomes a solution, and never counts as a wrong answer."""

    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"


class Outcome(StrEnum):
    """How a verification ended. Only a SCORED one has scores that may be compared."""

    SCORED = "scored"
    UNPARSED = "unparsed"
    TRUNCATED = "truncated"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer."""

    id: str  # unique within its task and split
    question: str
    answer: str  # reference answer, in the form that the task's grader reads
    task: str  # name of its task
    reference: str = ""  # a correct worked solution; "" if the data has none
    demonstration: str = ""  # training text of a generator; differs from `reference` only if the task adds errors

    @property
    def key(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be used, with the reason. Other rows are not affected."""

    file: str
    line: int  # 1-based
    reason: str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems that a task loaded, and the rows that it left out."""

    problems: tuple[Problem, ...]
    quarantined: tuple[Quarantined, ...] = ()
    note: str = ""  # one or two sentences for the user: how the rows were divided, or why there is no problem


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to be continued. `context` and `prefix` are separate, so that a chat backend can put the context in the
    user's turn and begin the assistant's turn with the prefix; other backends join them."""

    id: str  # names the unit of work; it is the `prompt_id` of its rollouts
    context: str  # the rendered question
    prefix: str = ""  # the solution so far; "" for a whole solution
    n: int = 1  # number of independent continuations
    first: int = 0  # index of the first continuation; later prompts can go on from there without repeating any

    @property
    def text(self) -> str:
        return self.context + self.prefix


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. The randomness of a rollout comes only from (seed, prompt id, index), not from the other rollouts
    in its batch."""

    max_tokens: int = 256  # most new tokens per rollout
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # in (0, 1]; 1 keeps the whole distribution
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    seed: int = 0
    choices: tuple[str, ...] = ()  # continuations whose probabilities are read after the stop string that ended a text


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled continuation of a prompt."""

    prompt_id: str
    index: int  # 0 <= index: its number among the prompt's independent continuations
    text: str  # the continuation alone, without stop string and end token
    finish: Finish
    tokens: int  # tokens generated, with the end token
    logprob: float = 0.0  # sum over those tokens of log p at temperature 1, in nats
    prompt_tokens: int = 0  # prompt tokens charged for it; of the rollouts of one request, only one has the charge
    reason: str = ""  # for FAILED: what happened, for a person
    # For each of `SamplingParams.choices`, its probability right after the stop string, given that one of them follows.
    # Empty if no stop string ended the text, or if the backend needs another request for it (`Chooser`)
    choices: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.prompt_id}#{self.index}"


@dataclass(frozen=True, slots=True)
class Solution:
    """A full attempt at a problem: its text, and its steps as spans of the text."""

    id: str  # unique within a run: "<problem id>#<sample>"
    problem_id: str
    sample: int  # its number among the problem's samples; lower ones were drawn first
    text: str
    spans: tuple[tuple[int, int], ...]  # one [start, end) per step, in order; together they cover the text
    finish: Finish = Finish.STOP
    tokens: int = 0  # tokens generated for it; 0 if it was imported
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
    """A grader's verdict on one text."""

    verdict: Verdict
    reason: str  # one line, for a person
    answer: str | None = None  # the answer in the text, normalised; None if no answer was found

    @property
    def correct(self) -> bool:
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, slots=True)
class GradedSolution:
    """A solution's grade, stored under the solution's key."""

    solution_id: str
    problem_id: str
    grade: Grade

    @property
    def key(self) -> str:
        return self.solution_id


@dataclass(frozen=True, slots=True)
class Imported:
    """A problem with solutions from a file of another project, as a data format reads them."""

    problem: Problem
    solutions: tuple[Solution, ...]  # by rising `sample`
    grades: tuple[GradedSolution, ...] = ()  # of the solutions that the data calls correct or not; otherwise empty
    rationales: tuple[LabelledSolution, ...] = ()  # the solutions that have verifications; without step labels
    labels: tuple[LabelledSolution, ...] = ()  # the solutions whose steps have labels
    extra: Mapping[str, object] = field(default_factory=dict)  # fields of the row that have no place here


@dataclass(frozen=True, slots=True)
class StepLabel:
    """The evidence about one step. The hard and soft estimates are computed from the counts (Math-Shepherd, section
    3.3).

    Truncated, ungradable and failed rollouts say nothing about the step: they are not in the denominator. A label whose
    source begins with "inferred" follows from another step's evidence; it counts as one case, without a rollout. One
    with the source "imported" comes from a file: a verdict is one case. A share that came without counts has the source
    "imported:share": `correct` of `gradable` is exactly that share, and counts nothing."""

    correct: int  # rollouts that reached the reference answer
    gradable: int  # rollouts that ended and could be graded, right or wrong
    truncated: int = 0  # rollouts that ran out of tokens
    ungradable: int = 0  # rollouts that ended but could not be graded
    source: str = "monte_carlo"  # how the evidence was obtained: a labeler's name, "oracle", "outcome", "inferred:..."
    failed: int = 0  # rollouts that the backend could not get

    @property
    def inferred(self) -> bool:
        """Whether the label follows from another step's evidence instead of its own."""
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
    """A solution whose steps are to be labelled, with its problem and correct solutions of it."""

    problem: Problem
    solution: Solution
    references: tuple[str, ...] = ()  # correct worked solutions of the problem: the data's own first, then sampled ones


@dataclass(frozen=True, slots=True)
class Rationale:
    """A written verification of a solution, ending in a verdict: training data of a generative verifier."""

    # The verification alone, without the question and the solution. A kept one ends in the line with the question for
    # the verdict (prompts.VERDICT) and its answer; for a failed one, the text says what happened
    text: str
    said: str  # the verdict that was read from it: "yes", "no" or "unparsed"
    source: str  # its writer: "oracle" (the task itself), "unguided" or "reference" (a model, without or with one)
    lost: str = ""  # why it is no training data: unasked, failed, truncated, unparsed, mismatch or leak; "" if kept
    rewritten: bool = False  # whether words that named the reference were removed

    @property
    def kept(self) -> bool:
        """Whether it may be used as training data."""
        return not self.lost


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution with one label per step, and the grade of its own final answer."""

    solution: Solution
    grade: Grade
    labels: tuple[StepLabel, ...]  # as many as the solution has steps
    rationales: tuple[Rationale, ...] = ()  # written verifications of it, including lost ones

    @property
    def key(self) -> str:
        return self.solution.id


@dataclass(frozen=True, slots=True)
class Verification:
    """A verifier's output for one solution. The verifier never saw the reference answer."""

    solution_id: str
    scores: tuple[float, ...]  # in [0, 1]: one per step, or a single one of an outcome verifier
    score: float  # the solution's score under `aggregate`; 0.0 unless outcome is SCORED
    aggregate: str  # how `score` is computed from `scores`: min, prod, mean, last
    outcome: Outcome = Outcome.SCORED
    reason: str = ""  # for any outcome but SCORED: what happened, for a person
    rationales: tuple[str, ...] = ()  # the texts of a generative verifier
    votes: tuple[float, ...] = ()  # p(Yes) after each rationale, in the order drawn; empty for one-pass verifiers
    tokens: int = 0  # tokens that a model read (once) and wrote for it; 0 if no model was used

    @property
    def key(self) -> str:
        return self.solution_id


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The verifications of a row of a user's file: a question with its solutions."""

    key: str  # the row's id, or its line number if it has none
    fingerprint: str  # of the texts, how they were split, and the verifier: tells whether these have changed since
    verifications: tuple[Verification, ...]  # one per solution, in the row's order


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a policy's attempt (Math-Shepherd, section 3.5): a number for each step and one for the whole."""

    solution_id: str
    steps: tuple[float, ...]  # one per step of the solution, in order; each is given at its step's last token
    end: float = 0.0  # given at the attempt's very last token, after all steps
    lost: str = ""  # why the reward is unknown, for a person: the policy must not learn from the attempt; "" if known

    @property
    def total(self) -> float:
        """The undiscounted sum of all rewards."""
        return sum(self.steps) + self.end


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution as a selection method reads it: its answer, its scores, and whether it ended."""

    solution_id: str
    answer: str | None  # normalised; None if no answer was found
    finished: bool = True  # False for a truncated solution, which must lose to every solution that ended
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # verifier name -> its scores


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer chosen for a problem, with its weight."""

    problem_id: str
    answer: str | None  # None if no candidate could be chosen
    solution_id: str | None  # the best-scored solution with this answer
    method: str  # e.g. "self_consistency+prm"
    n: int  # number of candidates
    weight: float  # the value that the method maximised: a score, a number of votes, or a sum of scores
    share: float  # weight over the sum of all answers' weights (1 if there is only one answer)

    @property
    def key(self) -> str:
        return f"{self.problem_id}|{self.method}|{self.n}"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a stage, as one line for the user."""

    stage: str
    done: int
    total: int  # 0 if unknown
    seconds: float  # since the stage started
    note: str = ""
    tokens: int | None = None  # that models wrote since the stage started; for scores, read or wrote. None: not known
    tokens_per_second: float | None = None  # None while it is not known
    seconds_left: float | None = None  # to the end, at the speed so far; at first rather too many. None: not known


Place = str | Path  # the path of a file or a directory

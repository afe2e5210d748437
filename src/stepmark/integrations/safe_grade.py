"""Grades an answer inside anybody's reward function. No text can make it hang, crash or raise.

    import stepmark
    stepmark.safe_grade("... The answer is \\\\boxed{x(x+1)}", "x^2+x")     # true: correct

For use where Math-Verify's `verify(parse(gold), parse(text))` is used, in a trainer's reward: from any thread, from
asyncio (`await asyncio.to_thread(stepmark.safe_grade, text, reference)`), in worker processes, daemonic ones too, and
after a fork. Its time limit is no signal, so it needs no main thread: algebra runs in worker processes that are killed
when they take too long (graders/symbolic.py), and started again when they die. Loads neither torch nor sympy here.

Only as many comparisons run at once as the machine has cores, at most 4 in each process. The limit counts from when a
comparison begins; how long it waits for a worker depends on the others, and changes no grade.

    python bench/safe_grade.py --peer /path/to/math-verify
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from stepmark.errors import ConfigError, UnknownName
from stepmark.graders.exact import Exact
from stepmark.graders.numeric import Numeric
from stepmark.graders.symbolic import Symbolic
from stepmark.protocols import Grader
from stepmark.text.grading import TRUNCATED, grade_text
from stepmark.types import Grade, Problem, Verdict

MAX_TEXT = 1_000_000  # characters; finding the answer in so many takes at most about a second
MAX_REFERENCE = 10_000  # characters
GRADERS = ("exact", "numeric", "symbolic")


@dataclass(frozen=True, slots=True)
class SafeGrade(Grade):
    """A grade that is true only if the answer is correct. `verdict` tells an incorrect answer from one that could not
    be checked, which says nothing about the text; `reason` is a line for a person."""

    def __bool__(self) -> bool:
        return self.verdict is Verdict.CORRECT


def safe_grade(
    text: str,
    reference: str | int | float,
    *,
    question: str = "",
    ended: bool = True,
    grader: str = "symbolic",
    timeout: float = 5.0,
    memory_mb: int = 2048,
) -> SafeGrade:
    r"""Whether the answer that `text` states equals `reference`. True only if it does.

    `text` is a whole attempt, with its answer in \boxed{...}, after "The answer is" or the like (text/answers.py), or
    the answer alone; of a text with a thought, only what follows </think> is read. `question` decides whether "25%"
    may be 0.25. `ended` is false for an attempt that ran out of tokens; one that ends inside a thought did.

    `grader` is "symbolic" for mathematics, "numeric" for numbers or "exact" for words. `timeout` is the limit of one
    comparison by algebra, in seconds, and `memory_mb` that of its process, in MiB.

    Raises no error for any text or reference; what can't be checked is UNGRADABLE. Raises ConfigError for limits that
    are too low, for an unknown grader, and where sympy is needed and not installed."""
    compare = _grader(grader, timeout, memory_mb)
    checked = _reference(reference)
    if isinstance(checked, Grade):
        return _safe(checked)
    given: object = text  # trainers hold lists of messages, too
    if not isinstance(given, str):
        return _ungradable(f"the text is no text but {type(given).__name__}")
    if len(text) > MAX_TEXT:
        return _ungradable(f"a text of {len(text):,} characters; at most {MAX_TEXT:,} are read")
    if not ended:
        return _safe(TRUNCATED)
    problem = Problem("", question, checked, "")
    try:
        return _safe(grade_text(text, problem, compare))
    except Exception as e:  # also OSError: no process, file handle or memory is left for a worker
        if isinstance(e, ConfigError) and find_spec("sympy") is None:
            raise
        return _ungradable(f"the comparison can't be made: {type(e).__name__}: {e}")


@lru_cache(maxsize=64)
def _grader(name: str, timeout: float, memory_mb: int) -> Grader:
    if name not in GRADERS:
        raise UnknownName("grader of safe_grade", name, GRADERS)
    if name == "symbolic":
        return Symbolic(timeout, memory_mb)
    return Exact() if name == "exact" else Numeric()


def _reference(reference: object) -> str | Grade:
    """The reference as text, or why it is none."""
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        return _ungradable(f"the reference is neither text nor a number but {type(reference).__name__}")
    if isinstance(reference, float):
        if not math.isfinite(reference):
            return _ungradable(f"the reference {reference} is not a finite number")
        return repr(reference)
    try:
        text = str(reference)
    except ValueError:  # Python refuses to write integers of many digits
        return _ungradable("the reference has too many digits")
    if len(text) > MAX_REFERENCE:
        return _ungradable(f"a reference of {len(text):,} characters; at most {MAX_REFERENCE:,} are read")
    return text


def _ungradable(reason: str) -> SafeGrade:
    return SafeGrade(Verdict.UNGRADABLE, reason)


def _safe(grade: Grade) -> SafeGrade:
    return SafeGrade(grade.verdict, grade.reason, grade.answer)

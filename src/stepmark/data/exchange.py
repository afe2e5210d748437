"""What the formats of other projects share: steps as one text, values as evidence, and what a format can't hold.

A reader makes an `Imported` of each row, or says in words why it can't. A solution that comes as a list of steps is
their text, joined; the spans are where they were joined. Values of step labels become evidence (types.StepLabel): true,
1 and + are one case that is right, false, 0 and - one that is wrong. A share such as 0.9 stays exactly that share, and
is marked as one that has no counts. null is a step without a label. Nothing else is a label.

A writer's class has `holds`, the names of what its rows have a place for. `lose` counts the rest.

    stepmark convert math-shepherd.jsonl --to stepwise rows.jsonl
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

from stepmark.data import rows
from stepmark.text import tagged
from stepmark.text.grading import flagged
from stepmark.text.steps import split as split_steps
from stepmark.types import (
    IMPORTED,
    SHARE,
    Finish,
    Grade,
    GradedSolution,
    Imported,
    LabelledSolution,
    Place,
    Problem,
    Quarantined,
    Solution,
    StepLabel,
    Verdict,
)

Estimate = Literal["auto", "hard", "soft"]
Made = Imported | str  # what a row holds, or the reason why it can't be used

RIGHT, WRONG = StepLabel(1, 1, source=IMPORTED), StepLabel(0, 1, source=IMPORTED)
NONE = StepLabel(0, 0, source="none")  # a step without a label
UNSAID = Grade(Verdict.UNGRADABLE, "the file does not say whether it is right")
MADE = "q-"  # how ids begin that are made of a question's text
SMALL = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 32, 64, 100, 128)  # denominators of most shares

# What a format may hold, and how its loss is told. The rest has its own words in the formats.
ANSWERS, REFERENCES, IDS, SPACE = "answers", "references", "ids", "space"
GRADES, RATIONALES, SAMPLING = "grades", "rationales", "sampling"
LABELS, SOFT, COUNTS, SOURCES = "labels", "soft", "counts", "sources"
EVERYTHING = frozenset((ANSWERS, REFERENCES, IDS, SPACE, GRADES, RATIONALES, SAMPLING, LABELS, SOFT, COUNTS, SOURCES))
TOLD = {
    ANSWERS: "reference answers",
    REFERENCES: "worked reference solutions",
    IDS: "ids of problems",
    SPACE: "white space between the steps of a solution",
    GRADES: "grades of whole solutions",
    RATIONALES: "rationales",
    SAMPLING: "tokens, log-probability and end of a sampled solution",
    LABELS: "step labels",
    SOFT: "shares of step labels (written as right or wrong)",
    COUNTS: "counts of cases behind step labels",
    SOURCES: "how step labels were obtained",
}
UNLABELLED = "solutions left out: a step has no label"
UNGRADED = "solutions left out: nothing says whether they are right"
BOUNDARY = "boundaries between problem and solution"
UNWORKED = "problems left out: they have no worked solution or no answer"
TAGGED = "solutions left out: their text contains the tag"


# ---- reading ----


def each(
    path: Place,
    fields: Sequence[rows.Field],
    make: Callable[[rows.Row], Made],
    *,
    split: str = "train",
    id_field: str | None = None,
) -> Iterator[Imported | Quarantined]:
    """What `make` makes of each row of a source; a row that it gives a reason for is quarantined."""
    for row in rows.read(path, fields, split=split, id_field=id_field):
        if isinstance(row, rows.Row):
            made = make(row)
            yield Quarantined(row.file, row.line, made) if isinstance(made, str) else made
        else:
            yield row


def extra(row: rows.Row, *used: str) -> dict[str, object]:
    """The fields of a row that are not among those used, without empty ones."""
    return {k: v for k, v in row.values.items() if k not in used and v is not None and v != ""}


def question_id(question: str) -> str:
    """The id of a problem that has none: equal questions are one problem."""
    return MADE + blake2b(question.encode(), digest_size=8).hexdigest()


class Numbering:
    """Numbers the solutions of each problem, also where rows with the same question are not together."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def take(self, problem_id: str, count: int) -> range:
        """The numbers of the problem's next solutions."""
        first = self._next.get(problem_id, 0)
        self._next[problem_id] = first + count
        return range(first, first + count)


def listed(value: object) -> list[object] | None:
    """A list; in a table, whose cells are text, it is written as JSON. None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def joined(steps: Sequence[str], separator: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The steps as one text, with their spans; each span but the last ends with the separator."""
    spans, start, gap = [], 0, len(separator)
    for step in steps:
        end = start + len(step) + gap
        spans.append((start, end))
        start = end
    if spans:
        spans[-1] = spans[-1][0], start - gap
    return separator.join(steps), tuple(spans)


def fault_of_steps(steps: Sequence[object]) -> str:
    """What is wrong with a list of steps; "" if each is a text that is not blank."""
    if not steps:
        return "it has no step"
    for i, step in enumerate(steps, 1):
        if not isinstance(step, str):
            return f"step {i} of {len(steps)} is no text but {step!r:.60}"
        if not step or step.isspace():
            return f"step {i} of {len(steps)} is blank"
        if fault := rows.fault_of_text(step):
            return f"step {i} of {len(steps)} has {fault}"
    return ""


def fault_of_text(text: object) -> str:
    """What is wrong with a whole solution, which may be blank: a model may write nothing."""
    if not isinstance(text, str):
        return f"a text is needed, got {text!r:.60}"
    fault = rows.fault_of_text(text)
    return f"it has {fault}" if fault else ""


def labels_of(values: Sequence[object], steps: int) -> tuple[StepLabel, ...] | str:
    """The evidence that the values of a row's labels are, one for each step; or what is wrong with them."""
    if len(values) != steps:
        return f"{len(values)} labels for {steps} steps"
    labels = []
    for i, value in enumerate(values, 1):
        label = RIGHT if value is True else WRONG if value is False else label_of(value)
        if label is None:
            return f"label {i} of {len(values)} is {value!r:.60}; it can be true or false, + or -, a share from 0 to 1"
        labels.append(label)
    return tuple(labels)


def label_of(value: object) -> StepLabel | None:
    """The evidence that a value is; None if it is no label."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return RIGHT if value else WRONG
    if isinstance(value, str):
        return {"+": RIGHT, "-": WRONG}.get(value.strip())
    if isinstance(value, int):
        return {1: RIGHT, 0: WRONG}.get(value)
    return share(value) if isinstance(value, float) and 0 <= value <= 1 else None  # false for NaN too


@lru_cache(4096)
def share(value: float) -> StepLabel:
    """The evidence of a share from 0 to 1 that came without counts. `correct / gradable` is the very same number."""
    for whole in SMALL:
        if (part := round(value * whole)) / whole == value:
            return StepLabel(part, whole, source=SHARE)
    part, whole = value.as_integer_ratio()
    return StepLabel(part, whole, source=SHARE)


def grade_of(text: str, correct: object) -> Grade | str:
    """The grade that a flag is: UNSAID for null. Or what is wrong with it."""
    if correct is None or correct == "":
        return UNSAID
    flag = {"true": True, "false": False, "1": True, "0": False}.get(str(correct).strip().lower().removesuffix(".0"))
    if flag is None:
        return f"{correct!r:.60} says neither right nor wrong; it can be true or false, 1 or 0"
    return flagged(text, flag)


def imported(
    row: rows.Row,
    question: str,
    steps: Sequence[str],
    labels: tuple[StepLabel, ...],
    *,
    separator: str = "\n",
    answer: str = "",
    grade: Grade = UNSAID,
    more: Mapping[str, object] | None = None,
    id: str = "",
) -> Imported:
    """One labelled solution of one problem. Its sample number is that of its row, so it is the only one with its id."""
    problem = Problem(id or question_id(question), question, answer, "")
    text, spans = joined(steps, separator)
    solution = Solution(f"{problem.id}#{row.line}", problem.id, row.line, text, spans)
    graded = () if grade is UNSAID else (GradedSolution(solution.id, problem.id, grade),)
    labelled = LabelledSolution(solution, grade, labels)
    return Imported(problem, (solution,), graded, labels=(labelled,), extra=more or {})


@dataclass(frozen=True, slots=True)
class Text:
    """A whole solution as a row has it."""

    text: str
    grade: Grade = UNSAID
    finish: Finish = Finish.STOP
    tokens: int = 0  # 0: not known
    logprob: float = 0.0  # sum over the tokens, in nats; 0: not known


def several(
    problem: Problem,
    texts: Sequence[Text],
    numbers: Iterable[int],
    steps: str,
    more: Mapping[str, object] | None = None,
) -> Imported:
    """Whole solutions of one problem, with their numbers. `steps` says how they divide into steps. Those whose grade is
    UNSAID have no grade."""
    solutions, graded = list[Solution](), list[GradedSolution]()
    for number, x in zip(numbers, texts, strict=True):
        id = f"{problem.id}#{number}"
        solutions.append(
            Solution(id, problem.id, number, x.text, split_steps(x.text, steps), x.finish, x.tokens, x.logprob)
        )
        if x.grade is not UNSAID:
            graded.append(GradedSolution(id, problem.id, x.grade))
    return Imported(problem, tuple(solutions), tuple(graded), extra=more or {})


def of_tagged(row: rows.Row, found: tagged.Tagged, *used: str) -> dict[str, object]:
    """The other fields of a row whose text has tags, and whether white space around these is lost."""
    more = extra(row, "input", "label", "value", *used)
    return more if found.plain else more | {"unusual white space": True}


# ---- writing ----


def lose(x: Imported, holds: frozenset[str], also: Sequence[str], lost: Counter[str]) -> None:
    """Counts what is in `x` and has no place in a format. `also` names fields of the source that it has as well."""
    p = x.problem
    if p.answer and ANSWERS not in holds:
        lost[TOLD[ANSWERS]] += 1
    if p.reference and REFERENCES not in holds:
        lost[TOLD[REFERENCES]] += 1
    if IDS not in holds and not p.id.startswith(MADE):
        lost[TOLD[IDS]] += 1
    for name in x.extra:
        if name not in also:
            lost[f"field {name!r} of the source"] += 1
    if x.grades and GRADES not in holds:
        lost[TOLD[GRADES]] += len(x.grades)
    if x.rationales and RATIONALES not in holds:
        lost[TOLD[RATIONALES]] += sum(len(r.rationales) for r in x.rationales)
    if SAMPLING not in holds:
        sampled = sum(1 for s in x.solutions if s.tokens or s.logprob or s.finish is not Finish.STOP)
        if sampled:
            lost[TOLD[SAMPLING]] += sampled
    for labelled in x.labels:
        if LABELS not in holds:
            lost[TOLD[LABELS]] += sum(label.known for label in labelled.labels)
        else:
            _lose_of_labels(labelled.labels, holds, lost)


def _lose_of_labels(labels: Sequence[StepLabel], holds: frozenset[str], lost: Counter[str]) -> None:
    for label in labels:
        if label is RIGHT or label is WRONG or label is NONE:
            continue
        if 0 < label.correct < label.gradable and SOFT not in holds:
            lost[TOLD[SOFT]] += 1
        unusual = label.truncated or label.ungradable or label.failed
        if (label.gradable > 1 or unusual) and label.source != SHARE and COUNTS not in holds:
            lost[TOLD[COUNTS]] += 1
        if label.source not in (IMPORTED, SHARE, "none") and SOURCES not in holds:
            lost[TOLD[SOURCES]] += 1


def whole(x: Imported, lost: Counter[str]) -> Iterator[LabelledSolution]:
    """The solutions with a label for every step; the others are counted."""
    if len(x.solutions) != len(x.labels):
        lost[UNLABELLED] += len(x.solutions) - len(x.labels)
    for labelled in x.labels:
        if labelled.labels and all(label.gradable for label in labelled.labels):
            yield labelled
        else:
            lost[UNLABELLED] += 1


def labelled(x: Imported) -> list[LabelledSolution]:
    """All solutions, with what is known of them: the grade, step labels and rationales."""
    if len(x.labels) == len(x.solutions) and not x.rationales and not x.grades:
        return list(x.labels)
    grades = {g.solution_id: g.grade for g in x.grades}
    labels = {known.key: known.labels for known in x.labels}
    rationales = {written.key: written.rationales for written in x.rationales}
    return [
        LabelledSolution(
            s, grades.get(s.id, UNSAID), labels.get(s.id, (NONE,) * len(s.spans)), rationales.get(s.id, ())
        )
        for s in x.solutions
    ]


def graded(x: Imported, lost: Counter[str]) -> Iterator[tuple[Solution, bool]]:
    """The solutions that are right or wrong, and which; the others are counted."""
    grades = {g.solution_id: g.grade for g in x.grades}
    for s in x.solutions:
        grade = grades.get(s.id, UNSAID)
        if grade.verdict is Verdict.UNGRADABLE:
            lost[UNGRADED] += 1
        else:
            yield s, grade.correct


def worked(x: Imported, lost: Counter[str]) -> str:
    """The problem's worked solution, or else its first right one; "" for none. Other solutions are counted."""
    texts = [x.problem.reference] if x.problem.reference else [s.text for s, good in graded(x, Counter()) if good]
    lost["solutions besides the worked one"] += sum(s.text != texts[0] for s in x.solutions) if texts else 0
    return texts[0] if texts else ""


def as_messages(row: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """The texts of a row as lists of one message: `prompt` of the user, the others of the assistant."""
    return {k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] for k, v in row.items()}


def pieces(solution: Solution, separator: str, lost: Counter[str]) -> list[str]:
    """The steps without the white space around them. Where joining them does not give the text, that is counted."""
    text = solution.text
    steps = [text[a:b].strip() for a, b in solution.spans]
    if separator.join(steps) != text:
        lost[TOLD[SPACE]] += 1
    return steps


def for_tags(x: Imported, tag: str, mark: str, lost: Counter[str]) -> Iterator[tuple[str, list[str], LabelledSolution]]:
    """The question, the steps and the labels of the solutions that can be written as one text with tags."""
    for labelled in whole(x, lost):
        steps = pieces(labelled.solution, "\n", lost)
        if tagged.contains(tag, *steps):
            lost[TAGGED] += 1
            continue
        lose_boundary(x.problem.question, steps, mark, lost)
        yield x.problem.question, steps, labelled


def lose_boundary(question: str, steps: Sequence[str], mark: str, lost: Counter[str]) -> None:
    """Counts a solution of which a reader can't tell where it begins."""
    if not steps[0].startswith(mark) or tagged.boundary(question, mark) >= 0 or mark in steps[0][1:]:
        lost[BOUNDARY] += 1
    elif question != question.strip():
        lost[TOLD[SPACE]] += 1


def values(labels: Sequence[StepLabel], estimate: Estimate) -> list[bool] | list[float]:
    """The values of labels: hard ones are true or false, soft ones shares. "auto" gives shares where there are any: a
    share of a file, or more than one case behind a step."""
    if estimate == "auto":
        one_case = all(label.gradable == 1 and label.source != SHARE for label in labels)
        estimate = "hard" if one_case else "soft"
    if estimate == "hard":
        return [label.correct > 0 for label in labels]
    return [label.correct / label.gradable for label in labels]

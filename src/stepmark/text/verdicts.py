"""Reads the verdict, Yes or No, of a verification rationale, and finds rationales that rely on a reference answer.

GenRM (Zhang et al., arXiv 2408.15240) keeps a rationale for training only if its verdict equals the solution's grade,
and reads votes from rationales that a verifier writes. Both need the verdict that the text states. A text without a
readable verdict is `Said.UNPARSED` with a reason; it is never a guess and never a No.

A verdict has one of two forms. Markup (bold, HTML tags, quotes, full-width punctuation) is ignored:

- an answer to one of `Reader.questions`: "Is the answer correct (Yes/No)? **No**". The answer may be on the next line,
  or after an echo such as "Answer:";
- a closing label: "Verdict: No", "Final grade: Verification: Yes", "Overall verification is: No".

The answer is one of a few whole words, followed by nothing but punctuation or "because". So "not", "nobody", "no errors
were found" and "Yes/No" are not answers, and neither are letter grades and marks ("A+", "3 out of 4").

Which verdict counts: writers often repeat the question under each step. If the step numbers continue after an answer,
it belongs to that step. If steps have answers of their own, the first answer after the last step belongs to that step,
unless its line says "final" or similar. All other answers must agree; the last one is returned. There is no verdict if
the last question has no answer (the text was cut off), or if a sentence after the last verdict says the opposite.

A rationale may quote the solution, with a verdict that the solution contains. Lines that begin with "Solution:" are not
read. Other quotations can't be recognised, so a quoted verdict that disagrees makes the text contradictory. This module
sees only rationales; verdicts inside solutions are removed by `sanitize`.

    python bench/rationales.py data/genrm_gsm8k
"""

from __future__ import annotations

import functools
import re
from bisect import bisect
from dataclasses import dataclass
from enum import StrEnum

from stepmark.errors import ConfigError

HEADING = 40  # characters; a longer line is not a heading
QUESTIONS = ("Is the answer correct", "Is the solution correct", "Is the final answer correct")

# Markup is replaced by the same number of "*", so that offsets do not change.
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,9}\s*/?>|\\(?:boxed|textbf|text)\b|&nbsp;|&quot;")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("_`#\"'“”„‟‘’«»‹›「」『』【】〈〉《》{}[]|", "*"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "*"),
        "？": "?",
        "：": ":",
        "。": ".",
        "．": ".",
        "，": ",",
        "！": "!",
        "；": ";",
        "（": "(",
        "）": ")",
        "／": "/",
        "\u00a0": " ",
        "\u3000": " ",
        "\r": "\n",
        "–": "-",
        "—": "-",
        "−": "-",
    }
)

_YES = r"yes|correct"
_NO = r"no|incorrect|not\s+correct|wrong"
# An answer must be followed by the end of the line, a punctuation mark, a dash with a space, or a reason.
# Repetitions are possessive (*+), so that every text takes linear time.
_ENDED = (
    r"(?=\s*+(?:$|[.,;:!?)*]|-\s|(?:because|since|as|due\s+to)\b)|[ \t]*+\n)"
    r"(?![\s*]*+(?:/|(?:or|and)\b))(?!\s*+[,*)]*+\s*+(?:yes|no)\b[^\w\n]*+(?:$|\n))"
)
_ANSWER = rf"(?:(?P<yes>(?:{_YES})\b)|(?P<no>(?:{_NO})\b)){_ENDED}"
_GAP = r"[ \t*?:.(]*+(?:\n[ \t*?:.(]*+){0,3}+"  # between a question and its answer; at most two empty lines
_CHOICE = r"yes[*\s]*+(?:/|or|\\)[*\s]*+(?:yes|no)\b[*\s)?]*+"
_ECHO = (
    r"(?:(?:the[ ]+)?(?:final[ ]+|overall[ ]+)?(?:answer|verification|verdict|grade|result|response)[ *]*+(?::|is\b))"
)
_CLOSING = re.compile(r"\b(?:final(?:ly)?|overall|conclusion|in[ ]+summary|therefore)\b", re.IGNORECASE)
_LABEL = (
    r"\b(?:verdict|conclusion|(?:final|overall)[ ]+(?:\w+[ ]+)?"
    r"(?:grade|verification|verdict|judge?ment|assessment|decision|evaluation|conclusion))\b"
    rf"[ *]*+(?::|-[ ]|is\b|\n){_GAP}(?:{_ECHO}{_GAP})?{_ANSWER}"
)
_STEP = re.compile(r"^[ \t*>-]*+(?:step[ *]+(\d{1,3})\b|(\d{1,3})[.)](?=[\s*]|$))", re.IGNORECASE | re.MULTILINE)
_QUOTE = re.compile(r"^[ \t*>-]*+solution[ *]*+:.*$", re.IGNORECASE | re.MULTILINE)
_RIGHT = r"(?:correct|right)\b"
_WRONG = r"(?:incorrect|wrong|not[ ]+(?:correct|right))\b"
_SUBJECT = (
    r"(?:^|[.!?:]\s)[ \t*>-]*(?:(?:therefore|thus|so|hence|overall|in[ ]+conclusion)[ *,]+)?(?:the|this)[ ]+"
    r"(?:(?:given|provided|proposed|final|student[*]s)[ ]+)*(?:answer|solution)(?:[ ]+(?:given|provided))?[ ]+is[ *]+"
)
_STATED = re.compile(
    rf"{_SUBJECT}(?:(?P<no>{_WRONG})|(?P<yes>{_RIGHT}))(?=[ *]*(?:$|[.!,]|because\b|and[ ]+(?:match|the)))"
    r"|(?P<none>\bno[ ]+(?:errors?|mistakes?)[ ]+(?:were|was|are|is)[ ]+found\b)",
    re.IGNORECASE | re.MULTILINE,
)


class Said(StrEnum):
    """The verdict that a text states."""

    YES = "yes"
    NO = "no"
    UNPARSED = "unparsed"


class Why(StrEnum):
    """The source of a verdict, or the reason why there is none."""

    QUESTION = "the question's answer"
    LABEL = "a closing label"
    MISSING = "no verdict"
    UNANSWERED = "the last question has no answer"
    STEPS = "verdicts on steps only"
    CONTRADICTORY = "verdicts that contradict one another"


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading one text."""

    said: Said
    why: Why
    span: tuple[int, int] | None = None  # [start, end) of the answer's word, in characters; None if unparsed
    start: int | None = None  # start of its question or label, in characters; None if unparsed


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One question or label in a text, with its answer."""

    start: int  # in characters
    yes: bool | None  # None: a question without an answer
    word: tuple[int, int]  # [start, end) of the answer, in characters
    final: bool  # whether its line, or the heading above it, says "final" or similar
    why: Why


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads verdicts. Case, markup and white space in the questions don't matter; "(Yes/No)" and "?" may be missing.
    Raises ConfigError if there are no questions, or one has no words."""

    questions: tuple[str, ...] = QUESTIONS  # the questions that the text answers, without "(Yes/No)?"
    strict: bool = False  # use the simple rule of the published data: see `_read_strictly`

    def __post_init__(self) -> None:
        if not self.questions or not all(map(_words, self.questions)):
            raise ConfigError(
                f"questions is {self.questions!r}; it must be a tuple of one or more questions, each with words in it."
            )

    @property
    def _pattern(self) -> re.Pattern[str]:
        return _compiled(self.questions)  # when it is first used: it is large, and most commands read no verdict

    def read(self, text: str) -> Reading:
        """The verdict of `text`. Never raises."""
        if self.strict:
            return _read_strictly(text, self.questions)
        plain = _without_markup(text)
        verdicts = list(_verdicts(plain, self._pattern))
        if not verdicts:
            return Reading(Said.UNPARSED, Why.MISSING)
        if verdicts[-1].yes is None:
            return Reading(Said.UNPARSED, Why.UNANSWERED)
        overall = _overall([v for v in verdicts if v.yes is not None], plain)
        if not overall:
            return Reading(Said.UNPARSED, Why.STEPS)
        last = overall[-1]
        if len({v.yes for v in overall}) > 1 or _is_contradicted(plain[last.word[1] :], bool(last.yes)):
            return Reading(Said.UNPARSED, Why.CONTRADICTORY)
        return Reading(Said.YES if last.yes else Said.NO, last.why, last.word, last.start)

    def places(self, text: str) -> tuple[tuple[int, int], ...]:
        """[start, end) of every question and label in `text`, with or without an answer, in order."""
        return tuple(m.span() for m in self._pattern.finditer(_without_markup(text)))


def read(text: str) -> Reading:
    """The verdict of `text`, read by the default reader."""
    return _DEFAULT.read(text)


@functools.cache
def _compiled(questions: tuple[str, ...]) -> re.Pattern[str]:
    stems = "|".join(r"[\W_]+".join(map(re.escape, _words(q))) for q in questions)
    question = rf"\b(?P<question>{stems})\b(?:{_GAP}{_CHOICE})?(?:{_GAP}(?:{_ECHO}{_GAP})?{_ANSWER})?"
    # The two alternatives can't share group names, so the groups of the label are renamed.
    label = _LABEL.replace("(?P<yes>", "(?P<label_yes>").replace("(?P<no>", "(?P<label_no>")
    return re.compile(f"{question}|(?P<label>{label})", re.IGNORECASE)


def _words(question: str) -> list[str]:
    stem = re.sub(r"\(?\s*yes\s*/\s*no\s*\)?", " ", question.translate(_SIGNS), flags=re.IGNORECASE)
    return re.findall(r"\w+", stem)


def _without_markup(text: str) -> str:
    """`text` with its markup replaced by "*" and its "Solution:" lines by spaces; the length is the same."""
    plain = _TAG.sub(lambda m: "*" * len(m[0]), text).translate(_SIGNS)
    return _QUOTE.sub(lambda m: " " * len(m[0]), plain)


def _verdicts(plain: str, pattern: re.Pattern[str]) -> list[_Verdict]:
    verdicts: list[_Verdict] = []
    for m in pattern.finditer(plain):
        yes, no = ("yes", "no") if m["question"] else ("label_yes", "label_no")
        word = m.span(yes) if m[yes] else m.span(no)
        answer = True if m[yes] else False if m[no] else None
        why = Why.QUESTION if m["question"] else Why.LABEL
        final = _is_final(plain, m.start()) or bool(_CLOSING.match(m[0]))
        verdicts.append(_Verdict(m.start(), answer, word, final, why))
    return verdicts


def _is_final(plain: str, start: int) -> bool:
    """Whether the text before `start`, on its line or in a heading above it, says "final" or similar."""
    head, _, line = plain[:start].rpartition("\n")
    above = head.rstrip().rpartition("\n")[2].strip("* ")
    return bool(_CLOSING.search(line) or (len(above) < HEADING and _CLOSING.search(above)))


def _overall(verdicts: list[_Verdict], plain: str) -> list[_Verdict]:
    """The verdicts on the whole solution: those that do not belong to a single step."""
    steps = [(m.start(), int(m[1] or m[2])) for m in _STEP.finditer(plain)]
    starts, last_start = [start for start, _ in steps], {n: start for start, n in steps}
    overall, steps_have_verdicts = [], False
    for v in verdicts:
        before = bisect(starts, v.start)
        steps_continue = before > 0 and last_start.get(steps[before - 1][1] + 1, -1) > v.start
        if v.final or not steps_continue:
            overall.append(v)
        else:
            steps_have_verdicts = True
    return overall[1:] if steps_have_verdicts and overall and not overall[0].final else overall


def _is_contradicted(rest: str, yes: bool) -> bool:
    """Whether a sentence in `rest`, the text after the verdict, says the opposite of it."""
    return any((m["no"] is not None) if yes else (m["no"] is None) for m in _STATED.finditer(rest))


def _read_strictly(text: str, questions: tuple[str, ...]) -> Reading:
    """The strict rule: the exact words of the first question, "(Yes/No)?", stars or white space, then Yes or No. The
    last match counts, whatever else the text says."""
    rule = re.compile(re.escape(questions[0]) + r" \(Yes/No\)\?[\s*]*(Yes|No)\b")
    matches = list(rule.finditer(text))
    if not matches:
        return Reading(Said.UNPARSED, Why.MISSING)
    last = matches[-1]
    return Reading(Said.YES if last[1] == "Yes" else Said.NO, Why.QUESTION, last.span(1), last.start())


_DEFAULT = Reader()

# Phrases that name something which a verifier does not see. "The correct answer is 12" is not among them: it names no
# source, and a verifier may have computed the answer itself.
_SOURCE = r"(?:answers?|solutions?|values?|results?|outputs?)"
_LEAK = re.compile(
    rf"\b(?:expected|reference|ground[ -]?truth)[ ]+{_SOURCE}\b"
    r"|\b(?:gold(?:en)?|official|model|target)[ ]+(?:answers?|solutions?)\b|\bgold(?:en)?[ -]standard\b"
    r"|\bground[ -]?truth\b|\bexpected[ ]?:|\baccording[ ]+to[ ]+the[ ]+(?:reference|key)\b"
    rf"|\bthe[ ]+reference\b(?:[ ]+{_SOURCE}\b)?"
    r"|\b(?:answer|solution|marking)[ ]+(?:key|sheet|scheme)\b"
    rf"|\bthe[ ]+(?:correct|right|true)[ ]+{_SOURCE}[ ]+(?:says?|states?|shows?|uses?|gives|given|provided)\b"
    r"|\b(?:compar\w+|match\w*|consistent|agrees?|according|differs?)[ ]+(?:(?:to|with|from)[ ]+)?the[ ]+"
    rf"(?:correct|known)[ ]+{_SOURCE}\b",
    re.IGNORECASE,
)


def leaks(text: str) -> str | None:
    """The first words in `text` that name a reference which a verifier does not see ("Expected Answer", "the answer
    key"); None if there are none. A copy of the reference that does not name it is not found."""
    plain = _TAG.sub(lambda m: " " * len(m[0]), text)
    m = _LEAK.search(re.sub(r"[*_`\s]", " ", plain))
    return None if m is None else text[m.start() : m.end()]
